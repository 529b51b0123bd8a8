"""Inputs of the fuzzer: what their bytes mean, some to begin with, and how one becomes another.

An input is a row of steps. The lowest two bits of a step's first byte are the number of a hostile client, and then
come a length and so many bytes for it; or they are 3, and the next bits say what happens to which client.
"""

from collections.abc import Iterator
from random import Random

from protocol import PacketType, encode, encode_chat_init, encode_login, encode_message, encode_string
from stress.model import MAX_USERS
from stress.seeds import CHATS, LOGINS, MESSAGES, PACKETS, PINGS

HOSTILE = 3
OPERATIONS = 4
REPEATED = 0b11100  # set in the first byte: the bytes come many times, at once
MAX_PIECE = 255

Step = tuple[int, bytes]  # the first byte, and what is sent


def steps(data: bytes) -> Iterator[Step]:
    """What an input means; any bytes mean something."""
    at = 0
    while at < len(data):
        first, length = data[at], data[at + 1] if at + 1 < len(data) else 0
        if first & 3 == HOSTILE:
            yield first, b""
            at += 1
        else:
            yield first, data[at + 2 : at + 2 + length]
            at += 2 + length


def step(number: int, piece: bytes, repeated: bool = False) -> bytes:
    """The bytes that send this piece, of at most 255 bytes."""
    return _render((number | REPEATED * repeated, piece))


def operation(which: int, number: int) -> bytes:
    """The byte that has this happen to a hostile client."""
    return _render((HOSTILE | which << 2 | number << 4, b""))


def _render(one: Step) -> bytes:
    first, piece = one
    return bytes((first,)) if first & 3 == HOSTILE else bytes((first, len(piece[:MAX_PIECE]))) + piece[:MAX_PIECE]


def corpus() -> list[bytes]:
    """Inputs to begin with: each packet whole, cut in two and many times, before the login and in a chat; and ends."""
    whole = [step(0, CHATS[0] + packet) + step(1, packet) for packet in PACKETS]
    cut = [step(0, packet[:3]) + step(0, packet[3:]) for packet in PACKETS]
    many = [step(0, CHATS[1]) + step(0, packet, repeated=True) for packet in (*MESSAGES, *PINGS, LOGINS[6])]
    ends = [
        step(1, LOGINS[0] + CHATS[3] + MESSAGES[1]) + operation(which, number) + step(1, MESSAGES[1] + LOGINS[6])
        for which in range(OPERATIONS)
        for number in range(HOSTILE)
    ]
    wrong = [step(1, LOGINS[2] * 4 + PINGS[0]), step(1, LOGINS[3]) + step(2, LOGINS[3] + LOGINS[5])]
    full = [step(1, encode_login(f"u{number}")) + operation(0, 1) for number in range(MAX_USERS)]
    return [*whole, *cut, *many, *ends, *wrong, b"".join(full)]


def mutate(data: bytes, seed: int) -> bytes:
    """An input whose steps differ: lengths stay right, so that whole packets come of it, as bare bytes rarely do."""
    random = Random(seed)
    changed = list(steps(data))
    at = random.randrange(len(changed) + 1)
    first, piece = changed[at] if at < len(changed) else (random.randrange(HOSTILE), b"")
    cut = random.randrange(len(piece) + 1)
    match random.randrange(5):
        case 0:
            changed.insert(at, (random.randrange(256), _packet(random)))
        case 1:
            changed[at : at + 1] = [(first, piece + _packet(random))]
        case 2:
            changed[at : at + 1] = [(first, _packet(random) + piece)]
        case 3:
            changed[at : at + 1] = [(first, piece[:cut]), (first, piece[cut:])]
        case _:
            del changed[at : at + 1]
    return b"".join(map(_render, changed))


def _packet(random: Random) -> bytes:
    """One of those to begin with, or a new one."""
    text = random.choice(("é", "a", "😀", ":")) * random.randrange(34)
    return random.choice(
        (
            random.choice(PACKETS),
            encode(random.choice(list(PacketType)), random.randbytes(random.randrange(12))),
            encode_message(text.encode()),
            encode_chat_init(random.randint(1, MAX_USERS)),
            encode(PacketType.CONFIG, encode_string(text[:8].encode()) + random.randbytes(random.randrange(4))),
        )
    )
