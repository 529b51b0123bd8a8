"""Where a client comes from."""

from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

NETWORK_BITS = 64  # of an IPv6 address: who has one address there has them all


class Peer(NamedTuple):
    """A client's address: `label` for the log, `origin` for the limits of what one address may do."""

    label: str
    origin: str


def peer_of(address: tuple[str, int]) -> Peer:
    """`address` as accept() gives it."""
    return Peer(format_address(address), _origin(address[0]))


def format_address(address: tuple[str, int]) -> str:
    """HOST:PORT, an IPv6 host in brackets."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _origin(host: str) -> str:
    ip = ip_address(host)
    if not isinstance(ip, IPv6Address):
        return host
    if ip.ipv4_mapped:
        return str(ip.ipv4_mapped)
    return str(IPv6Network((int(ip), NETWORK_BITS), strict=False))
