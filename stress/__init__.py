"""Long programs that try the promises of docs/RELIABILITY.md: `python -m stress.NAME`, or `make` and its target."""
