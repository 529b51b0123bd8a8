"""Many servers as one, on Redis: the only place that knows of other processes. docs/CLUSTER.md tells how it works."""
