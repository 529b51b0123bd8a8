"""Where a client comes from."""

from functools import lru_cache
from ipaddress import IPv6Network, ip_address
from typing import NamedTuple

NETWORK_BITS = 64  # of an IPv6 address: who has one address there has them all


class ClientAddress(NamedTuple):
    """A client's address: `label` for the log, `origin` for the limits of what one address may do; whether it is
    `exposed`, so that others may read what it sends.
    """

    label: str
    origin: str
    exposed: bool = False


def client_address(address: tuple[str, int], encrypted: bool) -> ClientAddress:
    """`address` as accept() gives it."""
    origin, is_here = _place(address[0])
    return ClientAddress(format_address(address), origin, not (encrypted or is_here))


def format_address(address: tuple[str, int]) -> str:
    """HOST:PORT, an IPv6 host in brackets."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@lru_cache(1024)
def _place(host: str) -> tuple[str, bool]:
    """What counts as one address, and whether that is this machine. Parsing it costs as much as relaying a message."""
    ip = ip_address(host)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return str(ip if ip.version == 4 else IPv6Network((int(ip), NETWORK_BITS), strict=False)), ip.is_loopback
