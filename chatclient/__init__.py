"""What client.py is made of: the pure dialogue, the socket, TLS. Programs import client.py."""
