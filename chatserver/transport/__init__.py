"""One client's socket and what waits for it: bytes in, bytes out, bounded. Knows packets only as bytes to frame."""
