"""A server's address, as people write it."""

from protocol import DEFAULT_PORT


def format_address(host: str, port: int) -> str:
    """host:port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of `host`, `host:port`, `[::1]:port`, each with or without `tcp://`. Raises ValueError."""
    scheme, separator, address = text.rpartition("://")
    if separator and scheme != "tcp":
        known = "tls:// is not supported yet" if scheme == "tls" else f"{scheme}:// is unknown"
        raise ValueError(f"{known}; an address is HOST, HOST:PORT or tcp://HOST:PORT")
    address = address.removesuffix("/")
    if address.startswith("["):
        host, bracket, port = address[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"{text!r} is no address: an IPv6 one is [HOST] or [HOST]:PORT")
    else:
        host, colon, number = address.partition(":")
        port = colon + number
    if ":" in port[1:]:
        raise ValueError(f"{text!r} is no address: write an IPv6 one in brackets, like [::1]:{DEFAULT_PORT}")
    if not host:
        raise ValueError(f"{text!r} is no address: the host is missing")
    return host, _parse_port(port[1:]) if port else DEFAULT_PORT


def _parse_port(number: str) -> int:
    if not (number.isascii() and number.isdecimal() and 1 <= int(number) <= 65535):
        raise ValueError(f"{number!r} is no port: it is a number from 1 to 65535")
    return int(number)
