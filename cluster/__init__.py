"""Several servers as one, over Redis: the only package that knows of other nodes. See docs/CLUSTER.md."""
