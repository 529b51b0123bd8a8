"""What server.py is made of; docs/DEVELOPING.md says what each module does."""

__version__ = "0.2.0"
