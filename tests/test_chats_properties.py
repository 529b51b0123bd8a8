"""Any sequence of calls equals a plain dict, from which only what may go has gone."""

import sqlite3
import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, takewhile
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from chatstorage.chat_file import OVERSHOOT, ChatFile, copy, export
from chatstorage.chats import ChatRow, Chats
from cluster.chats import ReceiverOnline, RedisChats
from cluster.engine import Engine
from protocol import Envelope
from testkit.redis_server import RedisServer

USERS = (1, 2, 3)
WRAP = Envelope("somebody").wrap
PAIRS = [(low, high) for low in USERS for high in USERS if low <= high]


@st.composite
def batches(draw: st.DrawFn) -> ChatRow:
    """Of one or several messages, some of which wait; the id is given later."""
    texts = draw(st.lists(st.binary(max_size=20), min_size=1, max_size=4))
    waiting = draw(st.just(0) | st.integers(0, len(texts)))
    sender, receiver, time = draw(st.sampled_from(USERS)), draw(st.sampled_from(USERS)), draw(st.integers(0, 2**32 - 1))
    return ChatRow(0, sender, receiver, time, len(texts), waiting, b"".join(map(WRAP, texts)))


def pair(row: ChatRow) -> tuple[int, int]:
    return min(row.sender, row.receiver), max(row.sender, row.receiver)


class ChatsAreADict(RuleBasedStateMachine):
    """A database next to a dict of all that it should hold."""

    _chats: Chats

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[int, ChatRow] = {}
        self._highest_id = 0
        self._touched: set[tuple[int, int]] = set()  # the pairs that the last write has to have bounded

    @initialize(bound=st.sampled_from([0, 1, 5, 16]))
    def open(self, bound: int) -> None:
        self._bound = bound
        self.reopen()

    @abstractmethod
    def reopen(self) -> None: ...

    @abstractmethod
    def everything(self) -> list[ChatRow]:
        """All that is there, by id."""

    @abstractmethod
    def most_waiting(self, row: ChatRow) -> int:
        """How many messages of this one may wait after another write."""

    @rule(data=st.data(), new=st.lists(batches(), max_size=9), gap=st.integers(0, 2))
    def write(self, data: st.DataObject, new: list[ChatRow], gap: int) -> None:
        known = sorted(self._rows)
        some = st.lists(st.sampled_from(known), unique=True, max_size=8) if known else st.just([])
        waiting = {batch: data.draw(st.integers(0, self.most_waiting(self._rows[batch]))) for batch in data.draw(some)}
        first = self._highest_id + 1 + gap
        rows = [row._replace(id=number) for number, row in enumerate(new, first)]
        self._chats.write(rows, waiting | {10_000: 1})
        self._highest_id = max([self._highest_id, *(row.id for row in rows)])
        self._touched = {pair(row) for row in [*rows, *(self._rows[batch] for batch in waiting)]}
        self._rows |= {row.id: row for row in rows}
        for batch, still in waiting.items():
            self._rows[batch] = self._rows[batch]._replace(waiting=still)
        self._forget_what_may_go()

    def _forget_what_may_go(self) -> None:
        """What is gone must be of a pair that was written to, not waiting, and followed by enough that is kept."""
        kept = {row.id for row in self.everything()}
        for batch in set(self._rows) - kept:
            row = self._rows.pop(batch)
            assert pair(row) in self._touched
            assert not row.waiting
            newer = [self._rows[other] for other in kept if other > batch and pair(self._rows[other]) == pair(row)]
            assert sum(other.count for other in newer) >= self._bound

    @rule(user=st.sampled_from(USERS))
    def remove(self, user: int) -> None:
        self._chats.remove(user)
        self._rows = {batch: row for batch, row in self._rows.items() if user not in (row.sender, row.receiver)}

    def _between(self, one: int, other: int) -> Iterator[ChatRow]:
        """The newest first."""
        return (
            row for _, row in sorted(self._rows.items(), reverse=True) if {row.sender, row.receiver} == {one, other}
        )

    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        assert self.everything() == [row for _, row in sorted(self._rows.items())]
        having_chats = set(chain.from_iterable((row.sender, row.receiver) for row in self._rows.values()))
        assert having_chats <= set(self._chats.users())

    @invariant()
    def finds_the_last_messages(self) -> None:
        for low, high in PAIRS:
            newest = list(self._between(low, high))
            for count in (0, 1, 3, 8, 255):
                found = self._chats.last(low, high, count)
                assert found == self._chats.last(high, low, count) == newest[: len(found)][::-1]
                enough = sum(row.count for row in found) >= count
                assert enough or len(found) == len(newest)
                assert not found or sum(row.count for row in found[1:]) < count

    @invariant()
    def finds_what_waits(self) -> None:
        sizes = {}
        for user in USERS:
            box = [row for _, row in sorted(self._rows.items()) if row.receiver == user and row.waiting]
            if box:
                sizes[user] = sum(row.waiting for row in box)
            parts, after = [], 0
            while part := self._chats.mailbox(user, after, 60):
                parts += part
                after = part[-1].id
                assert sum(len(row.packets) for row in part[:-1]) < 60
            assert parts == box == self._chats.mailbox(user, 0, 10**6)
        assert self._chats.mailbox_sizes() == sizes

    @invariant()
    def keeps_no_more_than_the_bound_says(self) -> None:
        for touched in self._touched:
            rows = sorted(row for row in self._rows.values() if pair(row) == touched)
            free = [*takewhile(lambda row: not row.waiting, rows)]
            kept = sum(row.count for row in rows)
            if free and kept > self._bound + self._bound // OVERSHOOT:
                assert kept - free[0].count < self._bound


class ChatFileIsADict(ChatsAreADict):
    """A file."""

    _chats: ChatFile

    def __init__(self) -> None:
        super().__init__()
        self._scratch = tempfile.TemporaryDirectory()
        self._path = Path(self._scratch.name, "chats.db")

    def teardown(self) -> None:
        self._chats.__exit__()
        self._scratch.cleanup()

    @rule()
    def reopen(self) -> None:
        if hasattr(self, "_chats"):
            self._chats.__exit__()
        self._chats = ChatFile(self._path, self._bound).__enter__()

    @rule()
    def continue_with_a_copy(self) -> None:
        copied = self._path.with_name("copy.db")
        copy(self._path, copied)
        self._chats.__exit__()
        copied.replace(self._path)
        self._chats = ChatFile(self._path, self._bound).__enter__()

    def everything(self) -> list[ChatRow]:
        return list(export(self._path))

    def most_waiting(self, row: ChatRow) -> int:
        return row.count

    @invariant()
    def the_file_is_sound(self) -> None:
        assert self._chats.highest_id() == max(self._rows, default=0)
        with closing(sqlite3.connect(self._path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            counted = "SELECT low, high, sum(count) FROM batches GROUP BY low, high"
            assert connection.execute(counted).fetchall() == [
                row for row in connection.execute("SELECT low, high, messages FROM pairs ORDER BY low, high") if row[2]
            ]


TestChatFileIsADict = ChatFileIsADict.TestCase
TestChatFileIsADict.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


class RedisChatsAreADict(ChatsAreADict):
    """In Redis, where all three have signed up, and 3 is online."""

    _chats: RedisChats
    _engine: Engine

    def __init__(self) -> None:
        super().__init__()
        self._engine.prefix = f"test-{uuid4().hex}"
        for user in USERS:
            self._engine.call("HSET", self._engine.key("users"), user, "name")
        self._engine.call("HSET", self._engine.key("online"), 3, "node name")

    @rule()
    def reopen(self) -> None:
        self._chats = RedisChats(self._engine, self._bound)

    @rule(row=batches(), bound=st.integers(0, 20))
    def mail(self, row: ChatRow, bound: int) -> None:
        self._highest_id += 1
        row = row._replace(id=self._highest_id)
        room = bound - self._chats.mailbox_sizes().get(row.receiver, 0)
        try:
            put = self._chats.mail(row, bound)
        except ReceiverOnline:
            assert row.receiver == 3
            return
        assert row.receiver != 3
        assert put == (row.count if row.count <= room else max(0, room))
        if put == row.count:
            self._rows[row.id] = row._replace(waiting=row.count)
            self._touched = {pair(row)}
            self._forget_what_may_go()
            assert self._chats.mail(row, bound) == row.count, "it is asked for again"

    @precondition(lambda self: self._rows)
    @rule(data=st.data())
    def write_again(self, data: st.DataObject) -> None:
        """Where no answer came; some may have been delivered meanwhile."""
        rows = data.draw(st.lists(st.sampled_from([row for _, row in sorted(self._rows.items())]), unique=True))
        self._chats.write(rows, {row.id: row.waiting for row in rows[::2]})

    def everything(self) -> list[ChatRow]:
        return sorted(self._chats.export())

    def most_waiting(self, row: ChatRow) -> int:
        return row.waiting

    @invariant()
    def nothing_is_left_over(self) -> None:
        counted = dict.fromkeys(self._touched, 0)
        for row in self._rows.values():
            counted[pair(row)] = counted.get(pair(row), 0) + row.count
        kept = [item for page in self._engine.scan("pairs") for item in page.items()]
        assert {key: int(count) for key, count in kept if int(count)} == {
            b"%d:%d" % key: count for key, count in counted.items() if count
        }
        waiting = sum(row.waiting > 0 for row in self._rows.values())
        assert self._engine.call("HLEN", self._engine.key("mail-of")) == waiting
        boxes = [self._engine.call("ZCARD", self._engine.key("mail", user)) for user in USERS]
        assert sum(boxes) == waiting


@pytest.mark.slow
def test_redis_chats_are_a_dict(shared_redis: RedisServer) -> None:
    engine = Engine(shared_redis.url, "")

    class OnThisRedis(RedisChatsAreADict):
        _engine = engine

    run_state_machine_as_test(OnThisRedis, settings=settings(max_examples=15, stateful_step_count=25, deadline=None))
    engine.close()
