"""Long programs that try what docs/RELIABILITY.md promises: each is `python -m stress.NAME`, and a Make target."""
