"""The bytes of docs/PROTOCOL.md, read and written a second time for stress/model.py, without protocol.py's code."""

from collections.abc import Iterable, Iterator, Set

from protocol import PacketType, Reason

CORE = frozenset((0x01, 0x02, 0x03, 0x08, 0x09))  # what any client may send
HISTORY = 0x07
WITH_HISTORY = CORE | {HISTORY}
NOTICES = (0x05, 0x06)  # what a server may say at any time, but within a replay


def header_fault(accepted: Set[int], kind: int, length: int) -> Reason | None:
    """What is wrong with these first two bytes of a packet."""
    if length > 138:
        return Reason.PACKET_TOO_LONG
    return None if kind in accepted else Reason.UNKNOWN_PACKET_TYPE


def body_fault(kind: int, body: bytes) -> Reason | None:
    """What is wrong with this body of a client's packet."""
    try:
        found = list(strings(body)) if kind in (0x01, 0x03) else []
    except ValueError:
        return Reason.MALFORMED_PACKET
    well_formed = {
        0x01: 1 <= len(found) <= 2 and len(body) - sum(2 + len(string) for string in found) <= 1,
        0x02: len(body) <= 4 and any(body),
        0x03: len(found) == 1 and len(body) == 2 + len(found[0]),
        0x07: 2 <= len(body) <= 5 and any(body[1:]),
    }
    return None if well_formed.get(kind, True) else Reason.MALFORMED_PACKET


def strings(body: bytes) -> Iterator[bytes]:
    """The first two Strings of a body at most. Raises ValueError for one that is longer than the rest, or no UTF-8."""
    for number in range(2):
        if not body and number:
            return
        length = int.from_bytes(body[:2], "big")
        if len(body) < 2 + length:
            raise ValueError
        body[2 : 2 + length].decode()
        yield body[2 : 2 + length]
        body = body[2 + length :]


def config(body: bytes) -> tuple[str, str, int | None]:
    """(name, password, features) of a client's Config; features are None if it has no such field."""
    name, *more = strings(body)
    rest = body[2 + len(name) + sum(2 + len(password) for password in more) :]
    return name.decode(), more[0].decode() if more else "", rest[0] if rest else None


def receipt(packet: bytes) -> tuple[int, int, int]:
    """(level, first, last)."""
    return packet[2], int.from_bytes(packet[3:7], "big"), int.from_bytes(packet[7:], "big")


def ranges(numbered: Iterable[tuple[int, int]]) -> int:
    """The smallest number of Receipts that confirm these numbers, each with its level."""
    numbers = set(numbered)
    return sum((level, number - 1) not in numbers for level, number in numbers)


def whole_packets(stream: bytes) -> tuple[list[bytes], bytes]:
    """The whole packets at the beginning of a stream, and the rest, which is less than a packet."""
    packets, at = [], 0
    while len(stream) >= at + 2 and len(stream) >= (end := at + 2 + stream[at + 1]):
        packets.append(stream[at:end])
        at = end
    return packets, stream[at:]


# What a server sends


def packet(kind: int, body: bytes) -> bytes:
    """Any packet."""
    return bytes((kind, len(body))) + body


def string(text: bytes) -> bytes:
    """A String."""
    return bytes((0, len(text))) + text


def error(reason: Reason) -> bytes:
    """An Error."""
    return packet(PacketType.ERROR, string(reason.encode()))


def entry(name: str, user_id: int) -> bytes:
    """A user's entry in the list."""
    return string(name.encode()) + bytes((user_id,))


def message(sender: str, text: str) -> list[bytes]:
    """The packets as which a Message arrives, cut between characters (section 3.6)."""
    pieces, piece = [], f"{sender}:".encode()
    for character in text:
        if len(piece) + len(character.encode()) > 136:
            pieces.append(piece)
            piece = f"{sender}:".encode()
        piece += character.encode()
    return [packet(PacketType.MESSAGE, string(piece)) for piece in (*pieces, piece)]


def dated(sender_id: int) -> bytes:
    """The History packet before a past Message of this user, without its date."""
    return packet(HISTORY, bytes(4) + bytes((sender_id,)))


def without_date(packet: bytes) -> tuple[int | None, bytes]:
    """The date of a History packet, None for any other packet; and the packet without it."""
    if packet[0] != HISTORY or len(packet) < 7:
        return None, packet
    return int.from_bytes(packet[2:6], "big"), packet[:2] + bytes(4) + packet[6:]


HISTORY_END = packet(HISTORY, b"")
