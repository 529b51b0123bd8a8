"""Logins when other things happen meanwhile: races, and a database that fails."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import monkey
from gevent.event import Event

from chatserver.counters import Counters
from chatserver.people.accounts import Accounts, CannotDo, Refused
from chatserver.people.passwords import HASHES_AT_ONCE, Passwords
from chatserver.people.presence import LocalPresence, Member
from chatserver.people.status import StatusFile
from chatserver.transport.outbox import Outbox
from chatserver.workers import Workers
from protocol import Reason
from storage import CsvStorage, StorageUnavailable, User
from testkit.processes import wait_for

RealEvent = monkey.get_original("threading", "Event")
RealLock = monkey.get_original("threading", "Lock")
real_sleep = monkey.get_original("time", "sleep")


class FailingStorage(CsvStorage):
    """A database whose disk can be made to fail."""

    fails = False

    def sign_up(self, name: str, password_hash: str | None) -> User:
        self._check()
        return super().sign_up(name, password_hash)

    def set_status(self, user_id: int, online: bool) -> None:
        self._check()
        super().set_status(user_id, online)

    def _check(self) -> None:
        if self.fails:
            raise StorageUnavailable("the disk is on fire")


class Door:
    """Accounts over a database in a folder of its own."""

    def __init__(self, storage: Any) -> None:
        self.storage = storage
        self.presence = LocalPresence()
        counters, disk = Counters(), Workers(1)
        self.status = StatusFile(storage, self.presence, counters, disk)
        self.accounts = Accounts(
            storage,
            self.presence,
            counters,
            disk,
            id_width=1,
            password_required=False,
            login_attempts=10,
            on_change=self.status.has_changed,
        )

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
        door.status.close()


def test_only_one_of_two_simultaneous_sign_ups_that_look_alike_succeeds(door: Door) -> None:
    outcomes = door.together(("Bob", ""), ("bob", ""))
    assert outcomes[1] is Reason.USERNAME_TAKEN
    assert isinstance(outcomes[0], Member)
    assert [user.name for user in door.storage.users()] == ["Bob"]


def test_of_two_simultaneous_first_passwords_the_granted_one_counts(door: Door) -> None:
    outcomes = door.together(("alice", "first"), ("alice", "second"))
    assert [outcome for outcome in outcomes if isinstance(outcome, Reason)] == [Reason.USER_ALREADY_ONLINE]
    granted = ("first", "second")[isinstance(outcomes[1], Member)]
    member = next(outcome for outcome in outcomes if isinstance(outcome, Member))
    door.accounts.log_out("alice", member)
    assert door.outcome("alice", {"first": "second", "second": "first"}[granted]) is Reason.WRONG_PASSWORD
    assert isinstance(door.outcome("alice", granted), Member)


def test_only_one_of_two_simultaneous_right_passwords_logs_in(door: Door) -> None:
    door.accounts.log_out("alice", door.log_in("alice", "secret"))
    outcomes = door.together(("alice", "secret"), ("alice", "secret"))
    assert sorted(map(type, outcomes), key=str) == sorted([Member, Reason], key=str)
    assert Reason.USER_ALREADY_ONLINE in outcomes


def test_guessing_does_not_lock_the_owner_out(door: Door) -> None:
    door.accounts.log_out("alice", door.log_in("alice", "secret"))
    outcomes = door.together(*(("alice", f"guess {number}") for number in range(4)), ("alice", "secret"))
    assert outcomes[:4] == 4 * [Reason.WRONG_PASSWORD]
    assert isinstance(outcomes[4], Member)


def test_a_sign_up_that_cannot_be_written_is_refused_and_claims_nothing(door: Door) -> None:
    door.storage.fails = True
    assert door.outcome("alice") is Reason.STORAGE_UNAVAILABLE
    assert door.presence.everyone() == []
    door.storage.fails = False
    assert isinstance(door.outcome("alice"), Member)


def test_a_known_user_can_log_in_and_out_while_the_status_cannot_be_written(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door.accounts.log_out("alice", door.log_in("alice"))
    door.storage.fails = True
    member = door.log_in("alice")
    wait_for("the log", lambda: "status.csv is wrong about alice" in caplog.text)
    door.accounts.log_out("alice", member)
    assert not door.presence.is_online(1)
    door.storage.fails = False
    assert isinstance(door.outcome("alice"), Member)
    wait_for("the status", lambda: door.storage.is_online(1))


def test_the_stored_status_follows_logins_and_departures(door: Door) -> None:
    members = {name: door.log_in(name) for name in ("alice", "bob")}
    wait_for("both", lambda: door.storage.is_online(1) and door.storage.is_online(2))
    door.accounts.log_out("alice", members["alice"])
    wait_for("her going", lambda: not door.storage.is_online(1))
    assert door.storage.is_online(2)


@pytest.mark.parametrize("stored", ["as typed", "$argon2id$v=19$m=8,t=1,p=1$", "$argon2i$xx", "$argon2id$é"])
def test_a_stored_password_that_is_not_a_hash_admits_nobody(
    door: Door, caplog: pytest.LogCaptureFixture, stored: str
) -> None:
    user = door.storage.sign_up("alice", stored)
    with caplog.at_level(logging.ERROR):
        assert door.outcome("alice", stored) is Reason.WRONG_PASSWORD
    assert f"user {user.id}" in caplog.text
    assert stored not in caplog.text


def test_a_user_still_online_at_the_end_is_stored_as_offline(door: Door) -> None:
    door.log_in("alice")
    door.status.close()
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

    def sign_up(self, name: str, password_hash: str | None) -> User:
        assert self.go_on.wait(30)
        return super().sign_up(name, password_hash)


def test_a_slow_disk_stalls_nobody_else(tmp_path: Path) -> None:
    with StuckStorage(tmp_path / "data") as storage:
        door = Door(storage)
        login = gevent.spawn(door.log_in, "alice")
        for _ in range(100):  # turns of the loop: everyone else's
            gevent.sleep(0.001)
        assert not login.dead
        storage.go_on.set()
        assert login.get(timeout=30).user_id == 1
        door.status.close()


def test_hashing_stalls_nobody_else_and_runs_at_most_two_at_once() -> None:
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


# What an operator does meanwhile


class SlowPasswords(Passwords):
    """Hashes are compared at a moment that the test chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = Event(), Event()

    def matches(self, stored: str, password: str) -> bool:
        matches = super().matches(stored, password)
        self.asked.set()
        assert self.go_on.wait(30)
        return matches


def nobody(_: int) -> bool:
    return False


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (lambda accounts: accounts.change_password("alice", "new"), Reason.WRONG_PASSWORD),
        (lambda accounts: accounts.change_password("alice", None), 1),
        (lambda accounts: accounts.remove("alice", nobody), 2),
    ],
)
def test_a_change_by_an_operator_counts_for_a_login_whose_password_is_being_checked(
    door: Door, change: Callable[[Accounts], None], outcome: object
) -> None:
    door.accounts.log_out("alice", door.log_in("alice", "old"))
    slow = SlowPasswords()
    door.accounts._passwords = slow
    login = gevent.spawn(door.outcome, "alice", "old")
    assert slow.asked.wait(30)
    change(door.accounts)
    slow.go_on.set()
    result = login.get(timeout=30)
    assert (result.user_id if isinstance(result, Member) else result) == outcome


class StuckDisk(FailingStorage):
    """A database that stops before a sign-up or a removal until the test goes on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 128, 255)
        self.go_on = RealEvent()

    def sign_up(self, name: str, password_hash: str | None) -> User:
        assert self.go_on.wait(30)
        return super().sign_up(name, password_hash)

    def remove(self, user_id: int) -> None:
        assert self.go_on.wait(30)
        super().remove(user_id)

    def set_password(self, user_id: int, password_hash: str | None) -> None:
        assert self.go_on.wait(30)
        super().set_password(user_id, password_hash)


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[StuckDisk]:
    with StuckDisk(tmp_path / "data") as storage:
        CsvStorage.sign_up(storage, "alice", None)
        yield storage


def some_turns() -> None:
    for _ in range(20):
        gevent.sleep(0.001)


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_a_name_that_is_logging_in_is_removed_after_the_login(stuck: StuckDisk, name: str) -> None:
    door, kicked = Door(stuck), list[int]()

    def kick(user_id: int) -> bool:
        kicked.append(user_id)
        return True

    login = gevent.spawn(door.outcome, name, "secret")
    some_turns()
    removal = gevent.spawn(door.accounts.remove, name, kick)
    some_turns()
    assert not login.dead
    stuck.go_on.set()
    member = login.get(timeout=30)
    assert isinstance(member, Member)
    removal.get(timeout=30)
    assert kicked == [member.user_id]
    assert stuck.find(name) is None
    door.accounts.log_out(name, member)
    door.status.close()


def test_nobody_logs_in_with_a_name_that_is_being_removed(stuck: StuckDisk) -> None:
    door = Door(stuck)
    removal = gevent.spawn(door.accounts.remove, "alice", nobody)
    some_turns()
    assert door.outcome("alice") is Reason.USER_ALREADY_ONLINE
    stuck.go_on.set()
    removal.get(timeout=30)
    member = door.log_in("alice")
    assert member.user_id == 2
    door.status.close()


def test_a_user_who_logs_out_during_a_password_change_is_stored_as_offline(stuck: StuckDisk) -> None:
    door = Door(stuck)
    member = door.log_in("alice")
    change = gevent.spawn(door.accounts.change_password, "alice", "new")
    some_turns()
    leaving = gevent.spawn(door.accounts.log_out, "alice", member)
    some_turns()
    stuck.go_on.set()
    change.get(timeout=30)
    leaving.get(timeout=30)
    assert not stuck.is_online(1)
    door.status.close()


def test_the_session_of_a_removed_user_ends_silently_even_if_the_name_is_back(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    member = door.log_in("alice")
    member.outbox.close()
    door.accounts.remove("alice", nobody)
    again = door.log_in("alice")
    door.accounts.log_out("alice", member)
    assert caplog.records == []
    assert again.user_id == 2
    assert door.presence.is_online(2)
    wait_for("the status", lambda: door.storage.is_online(2))


def test_of_two_operators_who_remove_a_user_at_once_one_learns_that_it_does_not_exist(stuck: StuckDisk) -> None:
    door = Door(stuck)

    def remove() -> str:
        try:
            door.accounts.remove("alice", nobody)
        except CannotDo as reason:
            return str(reason)
        return "removed"

    removals = [gevent.spawn(remove) for _ in range(2)]
    some_turns()
    stuck.go_on.set()
    assert [removal.get(timeout=30) for removal in removals] == ["removed", "there is no user 'alice'"]
    door.status.close()


# Names that were allowed once


@pytest.mark.parametrize("name", ["7", "#room", "alice\ufe0f"])
def test_whoever_has_an_odd_name_keeps_it_and_nobody_else_gets_one(door: Door, name: str) -> None:
    assert door.outcome(name) is Reason.INVALID_USERNAME
    user = door.storage.sign_up(name, None)
    assert door.log_in(name).user_id == user.id
