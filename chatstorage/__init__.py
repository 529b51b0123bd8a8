"""What storage.py is made of: the interface, and how lines and files are read and written."""
