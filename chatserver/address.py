"""Where a client comes from."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

NETWORK_BITS = 64  # of an IPv6 address: who has one address there has them all


class Peer(NamedTuple):
    """A client's address: `label` for the log, `origin` for the limits of what one address may do; whether it is
    `exposed`, so that others may read what it sends.
    """

    label: str
    origin: str
    exposed: bool = False


def peer_of(address: tuple[str, int], encrypted: bool) -> Peer:
    """`address` as accept() gives it."""
    ip = ip_address(address[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return Peer(format_address(address), _origin(ip), not (encrypted or ip.is_loopback))


def format_address(address: tuple[str, int]) -> str:
    """HOST:PORT, an IPv6 host in brackets."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _origin(ip: IPv4Address | IPv6Address) -> str:
    return str(ip if ip.version == 4 else IPv6Network((int(ip), NETWORK_BITS), strict=False))
