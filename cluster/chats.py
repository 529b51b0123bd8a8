"""Past chats and mailboxes in Redis: the `Chats` interface for a group of servers."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from struct import Struct
from typing import Any

from chatstorage.chats import ChatRow, Chats
from chatstorage.interface import StorageError
from cluster.clock import Clock
from cluster.engine import Argument, Engine, Script

WRITE, MAIL, FORGET = Script("write"), Script("mail"), Script("forget")
LAST, MAILBOX, ROWS = Script("last"), Script("mailbox"), Script("rows")

ID = Struct(">Q")
HEAD = Struct(">QBIIIQQQ")  # id, 1, sender, receiver, count, time, connection, first; then the packets
PAGE = 1000  # pairs of users read at once
PAGE_BYTES = 256 * 1024  # of packets read or written at once: a script blocks all other clients of Redis
ROWS_AT_ONCE = 200  # rows written by one script


class ReceiverOnline(StorageError):
    """The receiver is online: nothing goes into its mailbox."""


class RedisChats(Chats):
    """Keys behind the prefix of the engine:

    chat:LOW:HIGH  sorted set  rows, by id: all scores are 0, and the bytes of a row begin with its id
    pairs          hash        "LOW:HIGH" -> messages kept
    partners:ID    set         the users with whom this user has a chat
    mail:ID        sorted set  the beginnings (id and sender) of the rows that wait for this user
    mail-of        hash        id of a row -> sender, receiver, and how many of its messages wait
    mail-sizes     hash        user -> messages that wait

    A write without an answer may be repeated: the batch is stored once. A batch of a removed user is not stored at all.
    """

    def __init__(self, engine: Engine, history_messages: int, clock: Clock | None = None) -> None:
        """`clock` gives the ids of this node."""
        self._engine = engine
        self._history_messages = history_messages
        self._clock = clock or Clock()

    def new_id(self) -> int:
        return self._clock.new_id()

    # Reading

    def users(self) -> list[int]:
        return sorted({user for pair in self._pairs() for user in pair})

    def mailbox_sizes(self) -> dict[int, int]:
        return {int(user): int(size) for page in self._engine.scan("mail-sizes") for user, size in page.items()}

    def last(self, one: int, other: int, count: int) -> list[ChatRow]:
        return _rows(self._engine.run(LAST, _pair(one, other), count))[::-1]

    def mailbox(self, receiver: int, after: int, max_bytes: int) -> list[ChatRow]:
        return _rows(self._engine.run(MAILBOX, receiver, ID.pack(after), max_bytes))

    def export(self) -> Iterator[ChatRow]:
        """All batches, pair by pair, each by id; may include batches written meanwhile."""
        for low, high in sorted(self._pairs()):
            after = 0
            while rows := _rows(self._engine.run(ROWS, _pair(low, high), ID.pack(after), PAGE_BYTES)):
                yield from rows
                after = rows[-1].id

    def _pairs(self) -> set[tuple[int, int]]:
        pairs = (pair.partition(b":") for page in self._engine.scan("pairs") for pair in page)
        return {(int(low), int(high)) for low, _, high in pairs}

    # Writing

    def write(self, new: Sequence[ChatRow], waiting: Mapping[int, int]) -> None:
        """Write in parts, each of them whole or not at all."""
        changes = [argument for row_id, count in waiting.items() for argument in (ID.pack(row_id), count)]
        for start in range(0, len(changes), 2 * ROWS_AT_ONCE):
            part = changes[start : start + 2 * ROWS_AT_ONCE]
            self._engine.run(WRITE, self._history_messages, len(part) // 2, *part)
        for rows in _parts(new):
            self._engine.run(WRITE, self._history_messages, 0, *chain.from_iterable(map(_packed, rows)))

    def mail(self, row: ChatRow, bound: int, leaving: str = "") -> int:
        """Store this batch in its receiver's mailbox; or nothing of it, if the mailbox would then exceed `bound`
        messages. Returns the row's count, or how many messages would still fit.

        Raises ReceiverOnline, except for a receiver who is online at the node `leaving`; KeyError if the sender or the
        receiver has been removed.
        """
        packed, _ = _packed(row)
        answer = self._engine.run(MAIL, self._history_messages, bound, packed, leaving)
        match answer:
            case int():
                return answer
            case b"online":
                raise ReceiverOnline(f"user {row.receiver} is online")
        raise KeyError(row.receiver)

    def remove(self, user: int) -> None:
        self._engine.run(FORGET, user)

    def clear(self) -> None:
        """Delete everything, while nobody else writes. After an interruption it can be repeated."""
        pairs = sorted(self._pairs())
        for start in range(0, len(pairs), PAGE):
            page = pairs[start : start + PAGE]
            names: list[tuple[str, str | int]] = [("chat", _pair(low, high)) for low, high in page]
            names += [(kind, user) for kind in ("partners", "mail") for pair in page for user in pair]
            self._engine.call("UNLINK", *(self._engine.key(*name) for name in names))
        self._engine.call("UNLINK", *map(self._engine.key, ("pairs", "mail-of", "mail-sizes")))


def _pair(one: int, other: int) -> str:
    return f"{min(one, other)}:{max(one, other)}"


def _packed(row: ChatRow) -> tuple[Argument, Argument]:
    head = HEAD.pack(row.id, 1, row.sender, row.receiver, row.count, row.time, row.connection, row.first)
    return head + row.packets, row.waiting


def _rows(found: list[Any]) -> list[ChatRow]:
    """Parse packed rows, each followed by how many messages wait."""
    return [_row(packed, waiting) for packed, waiting in zip(found[::2], found[1::2], strict=True)]


def _row(packed: bytes, waiting: int) -> ChatRow:
    row_id, _, sender, receiver, count, time, connection, first = HEAD.unpack_from(packed)
    return ChatRow(row_id, sender, receiver, time, count, waiting, packed[HEAD.size :], connection, first)


def _parts(rows: Sequence[ChatRow]) -> Iterator[list[ChatRow]]:
    part: list[ChatRow] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len(row.packets)
        if len(part) == ROWS_AT_ONCE or size >= PAGE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part
