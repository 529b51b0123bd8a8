"""A server's address, as people write it: HOST, HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT; and that of a Redis."""

import re
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from protocol import DEFAULT_PORT


class Address(NamedTuple):
    """Where a server is, and whether it speaks TLS."""

    host: str
    port: int
    tls: bool


def format_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether this numeric address stays on this machine, so that nobody else can read what is sent to it."""
    address = ip_address(host)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def parse_address(text: str) -> Address:
    """Read `host`, `host:port` or `[::1]:port`, bare or after `tcp://` or `tls://`. Raises ValueError."""
    scheme, separator, address = text.rpartition("://")
    if separator and scheme not in ("tcp", "tls"):
        raise ValueError(f"{scheme}:// is unknown; an address is HOST, HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT")
    address = address.removesuffix("/")
    if address.startswith("["):
        host, bracket, port = address[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"{text!r} is not an address: write IPv6 as [HOST] or [HOST]:PORT")
    else:
        host, colon, number = address.partition(":")
        port = colon + number
    if ":" in port[1:]:
        raise ValueError(f"{text!r} is not an address: write IPv6 in brackets, like [::1]:{DEFAULT_PORT}")
    if not host:
        raise ValueError(f"{text!r} is not an address: the host is missing")
    return Address(host, _parse_port(port[1:]) if port else DEFAULT_PORT, scheme == "tls")


def check_redis_url(text: str) -> str:
    """`text`, which is a URL of Redis. Raises ValueError, which quotes nothing: what is no URL may be a password."""
    try:
        url = urlsplit(text)
        readable = url.port is None or url.port > 0
    except ValueError:
        readable = False
    if not readable or url.fragment or (url.scheme != "unix" and "@" in url.path + url.query):
        raise ValueError("this URL of Redis cannot be read; in its password, write # / ? @ % as %23 %2F %3F %40 %25")
    if url.scheme not in ("redis", "rediss", "unix"):
        raise ValueError("this is not a URL of Redis such as redis://localhost:6379/0")
    return text


def without_passwords(text: str) -> str:
    """`text` with nothing of the user and the password that a URL in it may hold."""
    return re.sub(r"://\S*@", "://...@", text)


def _parse_port(number: str) -> int:
    if not (number.isascii() and number.isdecimal() and 1 <= int(number) <= 65535):
        raise ValueError(f"{number!r} is not a port: a port is a number from 1 to 65535")
    return int(number)
