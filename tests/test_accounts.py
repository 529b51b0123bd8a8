"""Who may come in, where it matters what else happens meanwhile: races, and a database that fails."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import gevent
import pytest
from gevent import monkey

from chatserver.accounts import Accounts, Refused
from chatserver.counters import Counters
from chatserver.passwords import HASHES_AT_ONCE, Passwords
from chatserver.relay import Member, Outbox, Relay
from protocol import Reason
from storage import CsvStorage, StorageUnavailable

RealEvent = monkey.get_original("threading", "Event")
RealLock = monkey.get_original("threading", "Lock")
real_sleep = monkey.get_original("time", "sleep")


class FailingStorage(CsvStorage):
    """A database whose disk can be made to fail."""

    fails = False

    def set_status(self, user_id: int, online: bool) -> None:
        if self.fails:
            raise StorageUnavailable("the disk is on fire")
        super().set_status(user_id, online)


class Door:
    """Accounts over a database in a folder of its own."""

    def __init__(self, storage: FailingStorage) -> None:
        self.storage = storage
        self.relay = Relay()
        self.accounts = Accounts(storage, self.relay, Counters(), 1, password_required=False, login_attempts=10)

    def log_in(self, name: str, password: str = "") -> Member:
        return self.accounts.log_in(name, password, Outbox(1024, lambda: None), "test")

    def outcome(self, name: str, password: str = "") -> Member | Reason:
        try:
            return self.log_in(name, password)
        except Refused as refused:
            return refused.reason

    def together(self, *logins: tuple[str, str]) -> list[Member | Reason]:
        greenlets = [gevent.spawn(self.outcome, *login) for login in logins]
        gevent.joinall(greenlets, timeout=30, raise_error=True)
        return [greenlet.get() for greenlet in greenlets]


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with FailingStorage(tmp_path / "data", 128, 255) as storage:
        door = Door(storage)
        yield door
        door.accounts.close()


def test_of_two_sign_ups_that_look_alike_at_once_one_is_taken(door: Door) -> None:
    outcomes = door.together(("Bob", ""), ("bob", ""))
    assert outcomes[1] is Reason.USERNAME_TAKEN
    assert isinstance(outcomes[0], Member)
    assert [user.name for user in door.storage.users()] == ["Bob"]


def test_of_two_passwords_given_at_once_for_one_name_the_granted_one_counts(door: Door) -> None:
    outcomes = door.together(("alice", "first"), ("alice", "second"))
    assert [outcome for outcome in outcomes if isinstance(outcome, Reason)] == [Reason.USER_ALREADY_ONLINE]
    granted = ("first", "second")[isinstance(outcomes[1], Member)]
    member = next(outcome for outcome in outcomes if isinstance(outcome, Member))
    door.accounts.log_out("alice", member)
    assert door.outcome("alice", {"first": "second", "second": "first"}[granted]) is Reason.WRONG_PASSWORD
    assert isinstance(door.outcome("alice", granted), Member)


def test_of_two_right_passwords_at_once_one_comes_in(door: Door) -> None:
    door.accounts.log_out("alice", door.log_in("alice", "secret"))
    outcomes = door.together(("alice", "secret"), ("alice", "secret"))
    assert sorted(map(type, outcomes), key=str) == sorted([Member, Reason], key=str)
    assert Reason.USER_ALREADY_ONLINE in outcomes


def test_guessing_does_not_keep_the_owner_out(door: Door) -> None:
    door.accounts.log_out("alice", door.log_in("alice", "secret"))
    outcomes = door.together(*(("alice", f"guess {number}") for number in range(4)), ("alice", "secret"))
    assert outcomes[:4] == 4 * [Reason.WRONG_PASSWORD]
    assert isinstance(outcomes[4], Member)


def test_a_login_whose_status_cannot_be_written_is_refused_and_claims_nothing(door: Door) -> None:
    door.storage.fails = True
    assert door.outcome("alice") is Reason.STORAGE_UNAVAILABLE
    assert door.relay.everyone() == []
    door.storage.fails = False
    assert isinstance(door.outcome("alice"), Member)


def test_a_user_leaves_even_if_that_cannot_be_written(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    member = door.log_in("alice")
    door.storage.fails = True
    door.accounts.log_out("alice", member)
    assert not door.relay.is_online(1)
    assert "status.csv still says that alice is online" in caplog.text
    door.storage.fails = False
    assert isinstance(door.outcome("alice"), Member)


def test_the_stored_status_follows_the_truth(door: Door) -> None:
    member = door.log_in("alice")
    assert door.storage.is_online(1)
    door.accounts.log_out("alice", member)
    assert not door.storage.is_online(1)


@pytest.mark.parametrize("stored", ["as typed", "$argon2id$v=19$m=8,t=1,p=1$", "$argon2i$xx"])
def test_a_stored_password_that_is_no_hash_lets_nobody_in(
    door: Door, caplog: pytest.LogCaptureFixture, stored: str
) -> None:
    user = door.storage.sign_up("alice", stored)
    with caplog.at_level(logging.ERROR):
        assert door.outcome("alice", stored) is Reason.WRONG_PASSWORD
    assert f"user {user.id}" in caplog.text
    assert stored not in caplog.text


def test_whoever_is_still_online_at_the_end_is_stored_as_offline(door: Door) -> None:
    door.log_in("alice")
    door.accounts.close()
    assert not door.storage.is_online(1)


@pytest.mark.parametrize("operation", [lambda door: door.log_in("a b"), lambda door: door.log_in("alice", "p" * 65)])
def test_a_refused_login_leaves_no_trace(door: Door, operation: Callable[[Door], object]) -> None:
    with pytest.raises(Refused):
        operation(door)
    assert door.storage.users() == []


class StuckStorage(CsvStorage):
    """A database whose disk takes its time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 128, 255)
        self.go_on = RealEvent()

    def set_status(self, user_id: int, online: bool) -> None:
        assert self.go_on.wait(30)
        super().set_status(user_id, online)


def test_a_slow_disk_stalls_nobody_else(tmp_path: Path) -> None:
    with StuckStorage(tmp_path / "data") as storage:
        accounts = Accounts(storage, Relay(), Counters(), 1, password_required=False, login_attempts=10)
        login = gevent.spawn(accounts.log_in, "alice", "", Outbox(1024, lambda: None), "test")
        for _ in range(100):  # turns of the loop: everyone else's
            gevent.sleep(0.001)
        assert not login.dead
        storage.go_on.set()
        assert login.get(timeout=30).user_id == 1
        accounts.close()


def test_hashing_stalls_nobody_else_and_only_so_many_run_at_once() -> None:
    passwords = Passwords()
    running, most, lock = 0, 0, RealLock()

    def slow_hash(_: str) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        real_sleep(0.05)
        with lock:
            running -= 1
        return "hash"

    passwords._hasher = SimpleNamespace(hash=slow_hash)  # type: ignore[assignment]
    hashing = [gevent.spawn(passwords.hash, "secret") for _ in range(6)]
    turns = 0
    while not all(greenlet.dead for greenlet in hashing):
        gevent.sleep(0)
        turns += 1
    assert turns > 10
    assert most == HASHES_AT_ONCE
