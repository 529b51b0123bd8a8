"""Chats in Redis, beyond test_chats_contract.py: mail for offline users, repeated requests, removed users."""

from collections.abc import Iterator

import pytest

from cluster.chats import ROWS_AT_ONCE, ReceiverOnline, RedisChats
from cluster.directory import Directory
from cluster.engine import Argument, Engine
from cluster.storage import RedisStorage
from testkit.redis_server import RedisServer
from tests.test_chats import ALICE, BOB, CAROL, batch, ids, single


@pytest.fixture
def engine(shared_redis: RedisServer, redis_prefix: str) -> Iterator[Engine]:
    engine = Engine(shared_redis.url, redis_prefix)
    yield engine
    engine.close()


@pytest.fixture
def storage(engine: Engine) -> Iterator[RedisStorage]:
    """alice (1), bob (2) and carol (3) have signed up."""
    with RedisStorage(Directory(engine, lease=60), max_users=10, max_id=255) as storage:
        for name in ("alice", "bob", "carol"):
            storage.sign_up(name, None)
        yield storage


@pytest.fixture
def chats(engine: Engine, storage: RedisStorage) -> RedisChats:  # noqa: ARG001 - the users have to be there
    """Bounded to 100 messages of each pair."""
    return RedisChats(engine, 100)


# Mail


def test_mail_waits_complete_and_is_in_the_history(chats: RedisChats) -> None:
    row = batch(5, ALICE, BOB, "one", "two")
    assert chats.mail(row, 10) == 2
    assert chats.mailbox(BOB, 0, 1000) == [row._replace(waiting=2)] == chats.last(ALICE, BOB, 10)
    assert chats.mailbox_sizes() == {BOB: 2}


def test_mail_that_does_not_fit_is_refused_with_the_number_that_would_fit(chats: RedisChats) -> None:
    assert chats.mail(batch(1, ALICE, BOB, "a", "b"), 5) == 2
    assert chats.mail(batch(2, CAROL, BOB, *"abcd"), 5) == 3
    assert ids(chats.mailbox(BOB, 0, 1000)) == [1]
    assert chats.last(CAROL, BOB, 10) == []
    assert chats.mail(batch(2, CAROL, BOB, *"abc"), 5) == 3
    assert chats.mail(single(3, ALICE, BOB), 5) == 0
    assert chats.mail(single(4, ALICE, BOB), 2) == 0, "more wait than the bound of this node says"
    assert chats.mail(single(5, ALICE, CAROL), 5) == 1, "each mailbox has its own bound"


def test_there_is_no_mail_for_a_user_who_is_online_anywhere(chats: RedisChats, storage: RedisStorage) -> None:
    storage.set_status(BOB, online=True)
    with pytest.raises(ReceiverOnline):
        chats.mail(single(1, ALICE, BOB), 10)
    assert chats.last(ALICE, BOB, 10) == chats.mailbox(BOB, 0, 1000) == []
    storage.set_status(BOB, online=False)
    assert chats.mail(single(1, ALICE, BOB), 10) == 1


def test_mail_that_is_put_in_twice_is_stored_once(chats: RedisChats, storage: RedisStorage) -> None:
    row = batch(1, ALICE, BOB, "a", "b")
    for _ in range(2):
        assert chats.mail(row, 2) == 2
    assert chats.mailbox_sizes() == {BOB: 2}
    storage.set_status(BOB, online=True)
    assert chats.mail(row, 2) == 2
    chats.write([], {1: 0})
    assert chats.mail(row, 2) == 2
    assert chats.mailbox_sizes() == {}
    assert chats.last(ALICE, BOB, 10) == [row]


def test_mail_counts_for_the_bound_of_the_history_which_keeps_what_waits(chats: RedisChats) -> None:
    for number in range(1, 201):
        chats.mail(single(number, ALICE, BOB), 1000)
    assert len(chats.last(ALICE, BOB, 1000)) == 200
    chats.write([], dict.fromkeys(range(1, 201), 0))
    assert ids(chats.last(ALICE, BOB, 1000)) == [*range(101, 201)]


# Twice


def test_a_repeated_write_is_stored_once_with_the_smallest_number_waiting(chats: RedisChats) -> None:
    row = batch(1, ALICE, BOB, *"abc", waiting=3)
    chats.write([row], {})
    chats.write([row._replace(waiting=2)], {})
    assert chats.mailbox(BOB, 0, 1000) == [row._replace(waiting=2)]
    chats.write([row], {1: 3})
    assert chats.mailbox(BOB, 0, 1000) == [row._replace(waiting=2)]
    chats.write([], {1: 0})
    chats.write([row], {1: 3})
    assert chats.mailbox(BOB, 0, 1000) == []
    assert chats.last(ALICE, BOB, 10) == [row._replace(waiting=0)]
    assert chats.mailbox_sizes() == {}


def test_a_thousand_rows_are_a_few_commands(chats: RedisChats, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[Argument] = []
    call = engine.call

    def counted(*command: Argument) -> object:
        commands.append(command[0])
        return call(*command)

    monkeypatch.setattr(engine, "call", counted)
    rows = [single(number, ALICE, BOB, waiting=1) for number in range(1, 1001)]
    chats.write(rows, {})
    assert len(commands) <= 1000 / ROWS_AT_ONCE + 1
    commands.clear()
    chats.write([], dict.fromkeys(ids(rows), 0))
    assert len(commands) <= 1000 / ROWS_AT_ONCE


# Removed users


def test_removing_a_user_removes_its_chats_and_mail_in_both_directions(
    chats: RedisChats, storage: RedisStorage, engine: Engine
) -> None:
    chats.write([single(1, ALICE, BOB, waiting=1), single(2, BOB, CAROL), single(3, CAROL, ALICE, waiting=1)], {})
    storage.remove(ALICE)
    assert list(chats.export()) == [single(2, BOB, CAROL)]
    assert chats.mailbox_sizes() == {}
    assert chats.users() == [BOB, CAROL]
    assert engine.call("SMEMBERS", engine.key("partners", BOB)) == [b"3"]


def test_nothing_more_is_stored_for_a_removed_user(chats: RedisChats, storage: RedisStorage) -> None:
    chats.write([single(1, ALICE, BOB, waiting=1)], {})
    storage.remove(ALICE)
    late = [single(2, ALICE, BOB, waiting=1), single(3, BOB, ALICE), single(4, BOB, CAROL)]
    chats.write(late, {1: 1})
    assert list(chats.export()) == [late[2]]
    for row in late[:2]:
        with pytest.raises(KeyError):
            chats.mail(row, 10)
    assert chats.mailbox_sizes() == {}


def test_nothing_of_a_removed_users_chats_is_left_in_redis(
    chats: RedisChats, storage: RedisStorage, engine: Engine
) -> None:
    chats.write([single(1, ALICE, BOB, waiting=1), single(2, CAROL, CAROL, waiting=1)], {})
    for user in (ALICE, BOB, CAROL):
        storage.remove(user)
    keys = {key.decode().removeprefix(f"{engine.prefix}:") for key in engine.call("KEYS", f"{engine.prefix}:*")}
    assert keys <= {"last-id", "nodes", "epochs", "events", "numbers", "looks"}
