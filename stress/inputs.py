"""Inputs of the fuzzer: what their bytes mean, the initial ones, and how to mutate one.

An input is a row of steps. The lowest two bits of a step's first byte are the number of a hostile client, and then
come a length and so many bytes for it; or they are 3, and the next bits say what happens to which client.
"""

from collections.abc import Iterator
from enum import IntEnum
from random import Random

from protocol import (
    Feature,
    PacketType,
    encode,
    encode_chat_init,
    encode_history_request,
    encode_login,
    encode_message,
    encode_string,
)
from stress.model import MAX_USERS
from stress.seeds import (
    ASKS,
    CHATS,
    COMERS,
    LOGINS,
    MESSAGES,
    NEVERMIND,
    PACKETS,
    PINGS,
    REFUSED,
    REPLAYS,
    UNKNOWN,
)

HOSTILE = 3
FORGETFUL = b"\xff"  # an input that begins with it runs on a server without history
REPEATED = 0b11100  # set in the first byte: the bytes are sent many times at once
MAX_PIECE = 255

Step = tuple[int, bytes]  # the first byte, and what is sent


class Operation(IntEnum):
    """What can happen to a hostile client or to the server."""

    END = 0
    CLOSE = 1  # by the server, with an Error that the number tells
    CUT_OFF = 2
    DISK = 3  # one that the number tells fails, or works again
    COMMIT = 4
    HOLD = 5  # reads only when somebody waits for room; or reads on
    REFUSE = 6  # does not read even then; or reads on
    READ = 7  # half of what is in flight


ENDS = (Operation.END, Operation.CLOSE, Operation.CUT_OFF)


def keeps_nothing(data: bytes) -> bool:
    """Whether the server keeps no past chats."""
    return data.startswith(FORGETFUL)


def steps(data: bytes) -> Iterator[Step]:
    """The steps of an input; any bytes are valid."""
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


def operation(which: Operation, number: int = 0) -> bytes:
    """The byte that makes this happen to a hostile client."""
    return _render((HOSTILE | which << 2 | number << 5, b""))


def _render(one: Step) -> bytes:
    first, piece = one
    return bytes((first,)) if first & 3 == HOSTILE else bytes((first, len(piece[:MAX_PIECE]))) + piece[:MAX_PIECE]


def corpus() -> list[bytes]:
    """Initial inputs: each packet whole, cut in two and many times, before the login and in a chat; ends; and
    conversations of which each is for something in section 7, with and without past chats.
    """
    whole = [step(0, CHATS[0] + packet) + step(1, packet) for packet in PACKETS]
    cut = [step(0, packet[:3]) + step(0, packet[3:]) for packet in PACKETS]
    many = [step(0, CHATS[1]) + step(0, packet, repeated=True) for packet in (*MESSAGES, *PINGS, LOGINS[6])]
    ends = [
        step(1, LOGINS[0] + CHATS[3] + MESSAGES[1]) + operation(which, number) + step(1, MESSAGES[1] + LOGINS[6])
        for which in Operation
        for number in range(HOSTILE)
    ]
    wrong = [step(1, LOGINS[2] * 4 + PINGS[0]), step(1, LOGINS[3]) + step(2, LOGINS[3] + LOGINS[5])]
    full = [step(1, encode_login(f"u{number}")) + operation(Operation.END, 1) for number in range(MAX_USERS)]
    featured = [*_alone(), *_asked(), *_away(), *_slow(), *_broken()]
    return [*whole, *cut, *many, *ends, *wrong, b"".join(full), *featured, *(FORGETFUL + data for data in featured)]


def _alone() -> Iterator[bytes]:
    """Messages that come one by one and need no waiting: also behind half of one, and while the receiver comes, goes,
    or reads slowly.
    """
    alone = b"".join(step(0, message) for message in MESSAGES)
    nested = encode_message(MESSAGES[1])  # its text looks like a Message
    end, holds = operation(Operation.END, 1), operation(Operation.HOLD, 1)
    for login in (LOGINS[6], ASKS[1], ASKS[-1]):
        begin = step(0, login + encode_chat_init(5) + MESSAGES[1])
        yield step(0, login + CHATS[3] + MESSAGES[1]) + alone + step(0, nested[:4]) + step(0, nested[4:]) + alone
        for comer in (LOGINS[0], COMERS[-1]):
            comes = step(1, comer)
            yield comes + begin + alone + end + alone + comes + alone
            yield comes + begin + holds + alone + alone + holds + alone
            yield comes + begin + alone + step(0, NEVERMIND) + alone + operation(Operation.CUT_OFF, 1) + alone


def _asked() -> Iterator[bytes]:
    """Receipts, presence and history: mallory asks for them and chats with herself; others come and go."""
    come, comes_again = step(1, COMERS[-1]), step(2, LOGINS[0])
    go = operation(Operation.END, 1)
    for ask in (*ASKS, NEVERMIND, UNKNOWN):
        yield step(0, ask + CHATS[3] + MESSAGES[1] * 5) + step(0, MESSAGES[4] + b"".join(REPLAYS))
        yield step(0, ask) + come + go + step(1, COMERS[-2]) + operation(Operation.CUT_OFF, 1) + comes_again + go
        yield step(0, ASKS[-1] + ask) + come + step(0, CHATS[0] + MESSAGES[1] + NEVERMIND + MESSAGES[1] + ask)
    slowly = operation(Operation.HOLD, 0)
    for again in (b"", come, come + go + come):
        yield step(0, ASKS[0]) + slowly + come + go + again + slowly
    yield step(0, ASKS[-1] + CHATS[4] + MESSAGES[1] + CHATS[5] + CHATS[2] + MESSAGES[1])
    for comer in COMERS:
        yield step(1, comer + CHATS[0] + MESSAGES[1] * 3 + REPLAYS[0] + LOGINS[0])
    yield step(0, ASKS[-1] + NEVERMIND + REPLAYS[0])
    for then in (operation(Operation.COMMIT), come, step(0, MESSAGES[1])):
        yield step(0, ASKS[-1] + CHATS[0] + MESSAGES[1] + NEVERMIND) + then + step(0, ASKS[1]) + step(0, MESSAGES[1])
    yield step(1, REFUSED + REPLAYS[0]) + step(0, REFUSED + REPLAYS[0])
    yield step(1, MESSAGES[1] + COMERS[1] + MESSAGES[1] + CHATS[3] + MESSAGES[1])  # numbered 1 to 3


def _away() -> Iterator[bytes]:
    """Mailboxes: mallory and another client write to vault, who logs in later."""
    writes = step(0, ASKS[-1] + CHATS[2] + MESSAGES[1])
    both = writes + step(1, COMERS[-1] + CHATS[2] + MESSAGES[2]) + step(0, MESSAGES[3])
    comes = step(2, LOGINS[3] + CHATS[3] + MESSAGES[1])
    yield both + comes + step(0, MESSAGES[1]) + step(1, MESSAGES[4])
    yield both + operation(Operation.COMMIT) + operation(Operation.END, 0) + comes
    yield both + step(0, NEVERMIND + MESSAGES[1]) + comes
    yield writes + step(0, MESSAGES[4], repeated=True) + comes  # more than may wait, and than an outbox takes
    yield writes + step(0, ASKS[1] + ASKS[-1] + MESSAGES[1]) + comes + operation(Operation.END, 2) + comes


def _slow() -> Iterator[bytes]:
    """A client (5) reads slowly and is lost, with part of what it was sent, or while it is sent more than there is room
    for; and its mailbox, or a replay, is more than that.
    """
    end, reads = operation(Operation.END, 1), operation(Operation.READ, 1)
    to_one = step(0, ASKS[-1] + encode_chat_init(5) + MESSAGES[1] * 3)
    flood = step(0, MESSAGES[1] + MESSAGES[4] + MESSAGES[2], repeated=True)
    without = step(0, NEVERMIND) + flood
    for holds in (operation(Operation.HOLD, 1), operation(Operation.REFUSE, 1)):
        for login in (LOGINS[0], COMERS[-1]):
            slow = step(1, login) + holds + reads + reads + to_one + reads + operation(Operation.COMMIT)
            for happens in (holds, flood, without, *(operation(one, 1) for one in ENDS)):
                yield slow + happens + step(0, MESSAGES[4] + MESSAGES[2]) + end + step(2, login)
        mailbox = step(0, ASKS[-1] + CHATS[2]) + step(0, MESSAGES[4], repeated=True) + holds + step(1, LOGINS[3])
        yield mailbox + step(0, MESSAGES[1]) + reads + end + step(2, LOGINS[3])
    past = step(0, ASKS[-1] + CHATS[3]) + step(0, MESSAGES[4][:-1] + b"y", repeated=True)
    for holds in (operation(Operation.HOLD, 0), operation(Operation.REFUSE, 0)):
        comes = holds + step(1, COMERS[0])
        yield past + comes + step(0, MESSAGES[1] * 3) + step(0, REPLAYS[1]) + holds + step(2, COMERS[0])
        yield past + comes + step(0, MESSAGES[4], repeated=True) + operation(Operation.END, 0) + step(2, ASKS[-1])
        yield comes + step(0, PINGS[1], repeated=True) + holds
    between = step(0, ASKS[-1] + encode_chat_init(5) + MESSAGES[1] + CHATS[0] + MESSAGES[1])  # the second comes first
    yield (
        step(1, COMERS[0])
        + operation(Operation.HOLD, 1)
        + operation(Operation.HOLD, 0)
        + between
        + operation(Operation.HOLD, 1)
    )


def _broken() -> Iterator[bytes]:
    """Each disk fails for a while, during reads and writes of history and mailboxes."""
    writes = step(0, ASKS[-1] + CHATS[2] + MESSAGES[1]) + step(0, CHATS[3] + MESSAGES[2])
    looks = step(0, CHATS[2] + MESSAGES[1] + REPLAYS[1]) + step(1, LOGINS[3])
    for number in range(HOSTILE):
        fails = operation(Operation.DISK, number)
        yield writes + fails + looks + step(0, MESSAGES[1]) + fails + operation(Operation.COMMIT) + looks
        yield fails + writes + looks + operation(Operation.COMMIT) + fails + step(2, LOGINS[3])


def mutate(data: bytes, seed: int) -> bytes:
    """An input with other steps. Lengths stay right, so that it has whole packets, as random bytes rarely do."""
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
    """An initial input or a new one."""
    text = random.choice(("é", "a", "😀", ":")) * random.randrange(34)
    return random.choice(
        (
            random.choice(PACKETS),
            encode(random.choice(list(PacketType)), random.randbytes(random.randrange(12))),
            encode_message(text.encode()),
            encode_chat_init(random.randint(1, MAX_USERS)),
            encode_history_request(random.choice((0, 1, 2, 5, 255)), random.randint(1, MAX_USERS)),
            encode_login(random.choice(("mallory", "zoë", "one")), "", Feature(random.randrange(32))),
            encode(PacketType.CONFIG, encode_string(text[:8].encode()) + random.randbytes(random.randrange(4))),
        )
    )
