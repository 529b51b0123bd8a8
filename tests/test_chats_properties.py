"""Any sequence of calls equals a plain dict, from which only what may go has gone."""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from itertools import takewhile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chatstorage.chats import OVERSHOOT, ChatFile, Row, copy, export
from protocol import Envelope

USERS = (1, 2, 3)
WRAP = Envelope("somebody").wrap
PAIRS = [(low, high) for low in USERS for high in USERS if low <= high]


@st.composite
def batches(draw: st.DrawFn) -> Row:
    """Of one or several messages, some of which wait; the id is given later."""
    texts = draw(st.lists(st.binary(max_size=20), min_size=1, max_size=4))
    waiting = draw(st.just(0) | st.integers(0, len(texts)))
    sender, receiver, time = draw(st.sampled_from(USERS)), draw(st.sampled_from(USERS)), draw(st.integers(0, 2**32 - 1))
    return Row(0, sender, receiver, time, len(texts), waiting, b"".join(map(WRAP, texts)))


def pair(row: Row) -> tuple[int, int]:
    return min(row.sender, row.receiver), max(row.sender, row.receiver)


class ChatFileIsADict(RuleBasedStateMachine):
    """A file next to a dict of all that it should hold."""

    def __init__(self) -> None:
        super().__init__()
        self._scratch = tempfile.TemporaryDirectory()
        self._path = Path(self._scratch.name, "chats.db")
        self._rows: dict[int, Row] = {}
        self._highest_id = 0
        self._touched: set[tuple[int, int]] = set()  # the pairs that the last write has to have bounded

    @initialize(bound=st.sampled_from([0, 1, 5, 16]))
    def open(self, bound: int) -> None:
        self._bound = bound
        self._chats = ChatFile(self._path, bound).__enter__()

    def teardown(self) -> None:
        self._chats.__exit__()
        self._scratch.cleanup()

    @rule(data=st.data(), new=st.lists(batches(), max_size=9), gap=st.integers(0, 2))
    def write(self, data: st.DataObject, new: list[Row], gap: int) -> None:
        known = sorted(self._rows)
        some = st.lists(st.sampled_from(known), unique=True, max_size=8) if known else st.just([])
        waiting = {batch: data.draw(st.integers(0, self._rows[batch].count)) for batch in data.draw(some)}
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
        kept = {row.id for row in export(self._path)}
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

    @rule()
    def reopen(self) -> None:
        self._chats.__exit__()
        self._chats = ChatFile(self._path, self._bound).__enter__()

    @rule()
    def continue_with_a_copy(self) -> None:
        copied = self._path.with_name("copy.db")
        copy(self._path, copied)
        self._chats.__exit__()
        copied.replace(self._path)
        self._chats = ChatFile(self._path, self._bound).__enter__()

    def _between(self, one: int, other: int) -> Iterator[Row]:
        """The newest first."""
        return (
            row for _, row in sorted(self._rows.items(), reverse=True) if {row.sender, row.receiver} == {one, other}
        )

    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        assert list(export(self._path)) == [row for _, row in sorted(self._rows.items())]
        assert self._chats.highest_id() == max(self._rows, default=0)

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

    @invariant()
    def the_file_is_sound(self) -> None:
        with closing(sqlite3.connect(self._path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            counted = "SELECT low, high, sum(count) FROM batches GROUP BY low, high"
            assert connection.execute(counted).fetchall() == [
                row for row in connection.execute("SELECT low, high, messages FROM pairs ORDER BY low, high") if row[2]
            ]


TestChatFileIsADict = ChatFileIsADict.TestCase
TestChatFileIsADict.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
