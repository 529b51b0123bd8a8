"""Faulty conversations with a server, each determined by a seed and a number. This module sends nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from random import Random

from protocol import (
    ALL_FEATURES,
    NO_FEATURES,
    Feature,
    PacketType,
    encode,
    encode_chat_init,
    encode_history_request,
    encode_login,
    encode_message,
)

NAMES = 24
HONEST = 4  # honest users, who signed up first: ids 1 to 4
FLOOD = 1500  # packets at once
SLOW_BYTES = 60
BIG_PING = encode(PacketType.PING, b"x" * 138)


class Ending(Enum):
    """What the client does after it has sent everything."""

    HALF_CLOSE = "half-close, and read to the end"
    LEAVE = "close at once"
    RESET = "reset, in the middle of a packet if possible"
    DEAF = "read nothing for some seconds, then read to the end"


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the client sends, in pieces `pause` seconds apart, and how it ends. It requests `features` at most."""

    pieces: tuple[bytes, ...]
    pause: float
    ending: Ending
    features: Feature


Packets = list[bytes]


def conversation(seed: int, number: int) -> Conversation:
    """The conversation of this seed and number, always the same one."""
    random = Random(f"{seed}/{number}")
    (ending,) = random.choices(list(Ending), weights=(75, 12, 12, 0.5))
    features = Feature(random.randrange(ALL_FEATURES + 1)) if random.random() < 0.6 else NO_FEATURES
    packets = _valid(random, f"mutant-{number % NAMES}", features)
    for mutate in random.choices(list(MUTATIONS), weights=list(MUTATIONS.values()), k=random.randrange(4)):
        packets = mutate(random, packets)
        features = ALL_FEATURES
    if ending is Ending.DEAF:
        packets = [*packets, BIG_PING * FLOOD * 2]  # more than the outbox and the kernel's buffers hold
    stream = b"".join(packets)
    if ending is Ending.RESET:
        stream = stream[: len(stream) - random.randrange(3)]
    if random.random() < 0.01:
        return Conversation(tuple(bytes((byte,)) for byte in stream[:SLOW_BYTES]), 0.002, ending, features)
    return Conversation(tuple(_pieces(random, stream)), 0.0, ending, features)


def _valid(random: Random, name: str, features: Feature) -> Packets:
    """Packets that a correct client might send."""
    password = "secret" if random.random() < 0.01 else ""
    login = encode_login("locked" if password else name, password, features)
    partner_id = random.randint(1, HONEST + NAMES)
    partner = encode_chat_init(partner_id)
    past = encode_history_request(random.choice((0, 1, 20, 255)), partner_id)
    talk = (
        login,
        partner,
        past if Feature.HISTORY in features else partner,
        encode(PacketType.PING, b"?"),
        encode(PacketType.PONG, b""),
        encode_message(b"x" * random.randrange(137)),
        encode_message("größer, 😀".encode()),
    )
    return [login, partner, *random.choices(talk, k=random.randrange(12)), encode(PacketType.PING, b"the end")]


def _pieces(random: Random, stream: bytes) -> list[bytes]:
    """The stream in one piece, or cut at random places."""
    cuts = sorted(random.randrange(len(stream) + 1) for _ in range(random.choice((0, 0, 1, 5))))
    return [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


# Mutations: each takes packets and returns packets, some of them malformed


def _flip(random: Random, packets: Packets) -> Packets:
    stream = bytearray(b"".join(packets))
    for _ in range(random.randint(1, 4) if stream else 0):
        stream[random.randrange(len(stream))] ^= 1 << random.randrange(8)
    return [bytes(stream)]


def _change_one(change: Callable[[Random, bytes], bytes]) -> Callable[[Random, Packets], Packets]:
    """A mutation of one packet."""

    def mutate(random: Random, packets: Packets) -> Packets:
        at = random.randrange(len(packets))
        return [*packets[:at], change(random, packets[at]), *packets[at + 1 :]]

    return mutate


def _swap(random: Random, packets: Packets) -> Packets:
    first, second = random.randrange(len(packets)), random.randrange(len(packets))
    swapped = packets.copy()
    swapped[first], swapped[second] = packets[second], packets[first]
    return swapped


def _cut_short(random: Random, packet: bytes) -> bytes:
    return packet[: random.randrange(len(packet) + 1)]


def _wrong_length(random: Random, packet: bytes) -> bytes:
    return packet[:1] + bytes((random.randrange(256),)) + packet[2:]


def _insane_id(random: Random, _: bytes) -> bytes:
    return encode(PacketType.CHAT_INIT, random.randbytes(random.randrange(8)) or b"\0")


def _wrong_type(random: Random, packet: bytes) -> bytes:
    return bytes((random.randrange(256),)) + packet[1:]


def _insert_random(random: Random, packet: bytes) -> bytes:
    return packet + random.randbytes(random.randrange(300))


def _nothing(_: Random, __: Packets) -> Packets:
    return [b""]


MUTATIONS: dict[Callable[[Random, Packets], Packets], float] = {  # with their weights
    _flip: 8,
    _swap: 4,
    _change_one(_cut_short): 4,
    _change_one(lambda _, packet: packet * 2): 4,
    _change_one(lambda _, __: b""): 4,
    _change_one(_wrong_length): 4,
    _change_one(_wrong_type): 2,
    _change_one(_insane_id): 4,
    _change_one(_insert_random): 4,
    _change_one(lambda _, packet: packet * FLOOD): 0.15,
    _nothing: 1,
}
