"""One client's connection: bytes in, bytes out, bounded in memory. It knows packets only by their framing."""
