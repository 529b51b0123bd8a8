"""The modules that only server.py wires together; docs/DEVELOPING.md shows who does what."""

__version__ = "0.2.0"
