"""The address that a client connects from."""

from functools import lru_cache
from ipaddress import IPv6Network, ip_address
from typing import NamedTuple

from chatnet.address import format_address

NETWORK_BITS = 64  # of an IPv6 address: a client with one address of such a network usually has all of them


class ClientAddress(NamedTuple):
    """A client's address: `label` is for the log, `origin` for limits per address.

    `exposed`: others may read what the client sends, since it is neither encrypted nor local.
    """

    label: str
    origin: str
    exposed: bool = False


def client_address(address: tuple[str, int], encrypted: bool) -> ClientAddress:
    """Make one of an `address` as accept() returns it."""
    origin, is_local = _parse(address[0])
    return ClientAddress(format_address(*address[:2]), origin, not (encrypted or is_local))


@lru_cache(1024)
def _parse(host: str) -> tuple[str, bool]:
    """(origin, whether it is this machine). Cached, since parsing an address costs as much as relaying a message."""
    ip = ip_address(host)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return str(ip if ip.version == 4 else IPv6Network((int(ip), NETWORK_BITS), strict=False)), ip.is_loopback
