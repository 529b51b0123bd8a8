"""Long programs that test the promises of docs/RELIABILITY.md: `python -m stress.NAME`, or its Make target."""
