"""Long programs that try the promises of docs/RELIABILITY.md: each is `python -m stress.NAME`, and a Make target."""
