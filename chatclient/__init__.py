"""The rooms behind client.py, which is what programs import; docs/DEVELOPING.md shows who does what."""
