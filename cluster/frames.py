"""The frames that nodes send each other, many in one message on the receiving node's channel.

    | name of the node: 12 | its clock: 8 | frame ... |

All integers are big-endian.
"""

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple, TypeAlias

from protocol import Level, Reason, Run

REASONS = tuple(Reason)
NAME_BYTES = 12  # of a node's name

HEAD = Struct(f"!{NAME_BYTES}sQ")
HAND_OVER = Struct("!BQII?QIII")
ANSWER = Struct("!BQI?B")
FLUSH = Struct("!BQI")
RECEIPT = Struct("!BIQBII")


class HandOver(NamedTuple):
    """Messages for a user of the receiving node. Asks for an Answer."""

    id: int
    sender: int
    receiver: int
    mails: bool  # the sender may write to offline users
    connection: int  # of the sender, if it wants receipts, else 0
    first: int  # number of the first Message on that connection
    run: Run

    def encode(self) -> bytes:
        id_, sender, receiver, mails, connection, first, (packets, count) = self
        return HAND_OVER.pack(0, id_, sender, receiver, mails, connection, first, count, len(packets)) + packets


class Answer(NamedTuple):
    """The outcome of a HandOver or Flush."""

    id: int
    taken: int  # of the Messages
    is_here: bool  # False: the receiver, or the sender, is not at the node where the other node expected it
    reason: Reason  # why the others were not taken

    def encode(self) -> bytes:
        id_, taken, is_here, reason = self
        return ANSWER.pack(1, id_, taken, is_here, REASONS.index(reason))


class Flush(NamedTuple):
    """Write all chats that wait to be written. Asks for an Answer."""

    id: int
    sender: int  # the user who wants to see them

    def encode(self) -> bytes:
        return FLUSH.pack(2, *self)


class Reached(NamedTuple):
    """Receipts for a connection of a user of the receiving node."""

    user_id: int
    connection: int
    level: Level
    first: int
    last: int

    def encode(self) -> bytes:
        return RECEIPT.pack(3, *self)


Frame: TypeAlias = HandOver | Answer | Flush | Reached
Head: TypeAlias = tuple[str, int]


def encode_head(node: str, clock: int) -> bytes:
    """The beginning of a message."""
    return HEAD.pack(node.encode(), clock)


def decode(message: bytes) -> tuple[Head, Iterator[Frame]]:
    """Decode what encode_head and the frames' encode() have made. It comes from another node and is trusted."""
    name, clock = HEAD.unpack_from(message)
    return (name.decode(), clock), _frames(message)


def _frames(message: bytes) -> Iterator[Frame]:
    at, end = HEAD.size, len(message)
    while at < end:
        match message[at]:
            case 0:
                _, id_, sender, receiver, mails, connection, first, count, length = HAND_OVER.unpack_from(message, at)
                at += HAND_OVER.size + length
                run = Run(message[at - length : at], count)
                yield HandOver(id_, sender, receiver, mails, connection, first, run)
            case 1:
                _, id_, taken, is_here, reason = ANSWER.unpack_from(message, at)
                at += ANSWER.size
                yield Answer(id_, taken, is_here, REASONS[reason])
            case 2:
                _, id_, sender = FLUSH.unpack_from(message, at)
                at += FLUSH.size
                yield Flush(id_, sender)
            case 3:
                _, user_id, connection, level, first, last = RECEIPT.unpack_from(message, at)
                at += RECEIPT.size
                yield Reached(user_id, connection, Level(level), first, last)
            case unknown:
                raise ValueError(f"a frame of type {unknown}: is another version of the server among the nodes?")
