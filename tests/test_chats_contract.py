"""What every backend of past chats and mailboxes does. To test another one, add a line to BACKENDS."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from chatstorage.chat_file import ChatFile, export
from chatstorage.chats import ChatRow, Chats
from cluster.chats import RedisChats
from cluster.engine import Engine
from tests.test_chats import ALICE, BOB, CAROL, WRAP, batch, ids, single


class Database(Protocol):
    """The one database of a test."""

    def open(self, bound: int) -> AbstractContextManager[Chats]:
        """It is bounded to so many messages of each pair."""

    def everything(self) -> list[ChatRow]:
        """All rows, by id."""


class FileDatabase:
    """chats.db"""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, bound: int) -> AbstractContextManager[Chats]:
        return ChatFile(self._path, bound)

    def everything(self) -> list[ChatRow]:
        return list(export(self._path))


class RedisDatabase:
    """In Redis, where alice, bob and carol have signed up."""

    def __init__(self, url: str, prefix: str) -> None:
        self._url = url
        self._prefix = prefix

    @contextmanager
    def open(self, bound: int) -> Iterator[Chats]:
        engine = Engine(self._url, self._prefix)
        engine.call("HSET", engine.key("users"), ALICE, "alice", BOB, "bob", CAROL, "carol")
        yield RedisChats(engine, bound)
        engine.close()

    def everything(self) -> list[ChatRow]:
        engine = Engine(self._url, self._prefix)
        rows = sorted(RedisChats(engine, 0).export())
        engine.close()
        return rows


def redis_database(request: pytest.FixtureRequest) -> Database:
    return RedisDatabase(request.getfixturevalue("shared_redis").url, request.getfixturevalue("redis_prefix"))


BACKENDS: dict[str, Callable[[pytest.FixtureRequest], Database]] = {
    "file": lambda request: FileDatabase(request.getfixturevalue("tmp_path") / "chats.db"),
    "redis": redis_database,
}


@pytest.fixture(params=BACKENDS)
def database(request: pytest.FixtureRequest) -> Database:
    return BACKENDS[request.param](request)


@pytest.fixture
def opened(database: Database) -> Iterator[Chats]:
    """Bounded to 100 messages of each pair."""
    with database.open(100) as chats:
        yield chats


# Batches


def test_written_rows_are_the_same_after_reopening(database: Database) -> None:
    rows = [batch(7, ALICE, BOB, "hello", "żó\0ł", ""), single(8, BOB, ALICE, waiting=1), single(9, CAROL, CAROL)]
    with database.open(100) as opened:
        opened.write(rows[:2], {})
        opened.write(rows[2:], {})
    with database.open(100) as opened:
        assert opened.last(ALICE, BOB, 100) == rows[:2]
        assert opened.last(CAROL, CAROL, 100) == rows[2:]
        assert opened.mailbox_sizes() == {ALICE: 1}


@pytest.mark.parametrize("count", [0, 1, 2, 3, 63, 64, 65, 1999])
def test_any_number_of_rows_is_written_and_changed_at_once(database: Database, count: int) -> None:
    rows = [single(number, ALICE, BOB, waiting=1) for number in range(1, count + 1)]
    with database.open(10_000) as opened:
        opened.write(rows, {})
        assert database.everything() == rows
        assert opened.mailbox_sizes() == ({BOB: count} if count else {})
        opened.write([], dict.fromkeys(ids(rows), 0))
        assert database.everything() == [row._replace(waiting=0) for row in rows]


# The last messages


def test_the_last_messages_of_a_pair_are_those_of_both_in_order_and_of_nobody_else(opened: Chats) -> None:
    rows = [
        single(1, ALICE, BOB),
        single(2, BOB, ALICE),
        single(3, ALICE, CAROL),
        single(4, CAROL, BOB),
        single(5, ALICE, ALICE),
        single(6, ALICE, BOB),
    ]
    opened.write(rows, {})
    for one, other in ((ALICE, BOB), (BOB, ALICE)):
        assert ids(opened.last(one, other, 10)) == [1, 2, 6]
        assert ids(opened.last(one, other, 2)) == [2, 6]
        assert opened.last(one, other, 0) == []
    assert ids(opened.last(ALICE, ALICE, 10)) == [5]
    assert opened.last(BOB, BOB, 10) == []


@pytest.mark.parametrize(("count", "found"), [(1, [3]), (2, [3]), (3, [2, 3]), (4, [1, 2, 3]), (255, [1, 2, 3])])
def test_of_the_last_messages_whole_batches_are_found(opened: Chats, count: int, found: list[int]) -> None:
    opened.write([batch(1, ALICE, BOB, "a", "b"), single(2, BOB, ALICE), batch(3, ALICE, BOB, "d", "e")], {})
    assert ids(opened.last(ALICE, BOB, count)) == found


# Mailboxes


def test_a_mailbox_returns_waiting_batches_above_an_id_oldest_first(opened: Chats) -> None:
    rows = [
        single(1, ALICE, BOB),
        single(2, CAROL, BOB, waiting=1),
        single(3, ALICE, CAROL, waiting=1),
        batch(4, ALICE, BOB, "one", "two", "three", waiting=2),
        single(5, BOB, ALICE),
        single(6, CAROL, BOB, waiting=1),
    ]
    opened.write(rows, {})
    assert opened.mailbox(BOB, 0, 10_000) == [rows[1], rows[3], rows[5]]
    assert ids(opened.mailbox(BOB, 2, 10_000)) == [4, 6]
    assert opened.mailbox(BOB, 6, 10_000) == []
    assert opened.mailbox(ALICE, 0, 10_000) == []
    assert opened.mailbox_sizes() == {BOB: 4, CAROL: 1}


def test_a_mailbox_is_read_up_to_a_number_of_bytes_but_at_least_one_batch(opened: Chats) -> None:
    opened.write([single(number, ALICE, BOB, waiting=1) for number in range(1, 5)], {})
    size = len(single(1, ALICE, BOB).packets)
    sizes = {1: 1, size: 1, size + 1: 2, 3 * size: 3, 99 * size: 4}
    assert {allowed: len(opened.mailbox(BOB, 0, allowed)) for allowed in sizes} == sizes


def test_delivered_messages_no_longer_wait_and_others_still_do(opened: Chats) -> None:
    opened.write([batch(1, ALICE, BOB, "a", "b", "c", waiting=3), single(2, ALICE, BOB, waiting=1)], {})
    opened.write([single(3, BOB, ALICE)], {1: 2})
    assert opened.mailbox(BOB, 0, 1) == [batch(1, ALICE, BOB, "a", "b", "c", waiting=2)]
    assert opened.mailbox_sizes() == {BOB: 3}
    opened.write([], {1: 0, 2: 0})
    assert opened.mailbox(BOB, 0, 1) == []
    assert opened.mailbox_sizes() == {}


def test_an_id_that_no_longer_exists_is_ignored(opened: Chats, database: Database) -> None:
    opened.write([single(2, ALICE, BOB)], {1: 1, 9: 0})
    assert database.everything() == [single(2, ALICE, BOB)]


# How many are kept


def test_the_oldest_batches_of_a_pair_go_and_other_pairs_keep_theirs(database: Database) -> None:
    with database.open(16) as opened:
        opened.write([single(1, ALICE, CAROL), single(2, BOB, CAROL)], {})
        kept = []
        for number in range(3, 60):
            opened.write([single(number, *((ALICE, BOB) if number % 2 else (BOB, ALICE)))], {})
            kept.append(ids(opened.last(ALICE, BOB, 1000)))
            assert kept[-1] == [*range(kept[-1][0], number + 1)]
        assert [len(numbers) for numbers in kept[:21]] == [*range(1, 19), 16, 17, 18], "not every write has to delete"
        assert {len(numbers) for numbers in kept[21:]} == {16, 17, 18}
        assert ids(database.everything())[:2] == [1, 2]


def test_a_batch_goes_only_when_enough_messages_remain_without_it(database: Database) -> None:
    with database.open(4) as opened:
        opened.write([batch(1, ALICE, BOB, *"abc"), batch(2, ALICE, BOB, *"abc")], {})
        opened.write([], {})
        assert ids(database.everything()) == [1, 2]
        opened.write([single(3, BOB, ALICE)], {})
        assert ids(database.everything()) == [2, 3]
        opened.write([batch(4, BOB, ALICE, *"abcdefgh")], {})
        assert ids(database.everything()) == [4]


def test_one_write_may_bring_more_than_is_kept(database: Database) -> None:
    with database.open(10) as opened:
        opened.write([single(number, ALICE, BOB + number % 2) for number in range(1, 2001)], {})
        assert ids(database.everything()) == [*range(1981, 2001)]


def test_waiting_batches_are_kept_until_they_are_delivered(database: Database) -> None:
    with database.open(5) as opened:
        opened.write([single(number, ALICE, BOB, waiting=1) for number in range(1, 10)], {})
        opened.write([single(number, BOB, ALICE) for number in range(10, 30)], {})
        assert ids(database.everything()) == [*range(1, 10), *range(25, 30)], "the last ones are kept all the same"
        opened.write([], {2: 0, 3: 0})
        assert ids(database.everything()) == [1, *range(4, 10), *range(25, 30)]
        opened.write([], dict.fromkeys(range(1, 10), 0))
        assert ids(database.everything()) == [*range(25, 30)]


def test_waiting_batches_are_kept_among_many_deleted_ones(database: Database) -> None:
    with database.open(50) as opened:
        opened.write([single(n, ALICE, BOB, waiting=n % 2 if n <= 300 else 0) for n in range(1, 501)], {})
        assert ids(database.everything()) == [*range(1, 301, 2), *range(451, 501)]


# Ids, users and all fields


def test_new_ids_go_up_also_after_reopening(database: Database) -> None:
    found = []
    for _ in range(3):
        with database.open(100) as opened:
            found += [opened.new_id() for _ in range(10)]
            opened.write([single(found[-1], ALICE, BOB)], {})
    assert found == sorted(set(found))
    assert 0 < found[0] < found[-1] < 2**63


@pytest.mark.parametrize("number", [1, 254, 255, 2**32 - 1, 2**53, 2**63 - 3])
def test_the_largest_numbers_survive_the_round_trip(opened: Chats, number: int) -> None:
    packets = WRAP[ALICE](b"\r\n\0\xff")
    rows = [ChatRow(number + n, ALICE, BOB, 2**33, 1, 1, packets, connection=2**62, first=2**40) for n in range(3)]
    opened.write(rows, {})
    assert opened.last(ALICE, BOB, 3) == rows
    assert opened.mailbox(BOB, 0, 1000) == rows
    assert opened.mailbox(BOB, number, 1000) == rows[1:]
    opened.write([], {number + 1: 0})
    assert [row.waiting for row in opened.last(ALICE, BOB, 3)] == [1, 0, 1]
    assert opened.mailbox(BOB, 0, 1000) == [rows[0], rows[2]]


def test_all_users_with_a_chat_are_listed(opened: Chats) -> None:
    assert opened.users() == []
    opened.write([single(1, CAROL, CAROL)], {})
    assert opened.users() == [CAROL]
    opened.write([single(2, BOB, ALICE)], {})
    assert opened.users() == [ALICE, BOB, CAROL]


# Removal


def test_a_removed_user_disappears_from_every_chat_and_mailbox(database: Database) -> None:
    rows = [
        batch(1, ALICE, BOB, "a", "b", waiting=2),
        single(2, CAROL, ALICE, waiting=1),
        single(3, BOB, CAROL, waiting=1),
        single(4, ALICE, ALICE, waiting=1),
        single(5, CAROL, BOB, waiting=1),
        single(6, BOB, ALICE),
    ]
    with database.open(1000) as opened:
        opened.write(rows, {})
        for _ in range(2):
            opened.remove(ALICE)
            assert database.everything() == [rows[2], rows[4]]
            assert opened.mailbox_sizes() == {BOB: 1, CAROL: 1}
            assert opened.mailbox(ALICE, 0, 1000) == []
            assert opened.mailbox(BOB, 0, 1000) == [rows[4]]
            assert opened.users() == [BOB, CAROL]
        opened.write([single(7, ALICE, BOB)], {})
        assert opened.last(ALICE, BOB, 10) == [single(7, ALICE, BOB)]
