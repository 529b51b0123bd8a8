"""The presence registry of a lone server: members and watchers."""

import pytest

from chatserver.people.presence import LocalPresence, Member
from chatserver.transport.outbox import PUT_BYTES, Outbox
from chatserver.transport.states import OutputEvent
from chatstorage.interface import StorageUnavailable
from protocol import encode_presence, encode_user


def member(user_id: int) -> Member:
    return Member(user_id, encode_user(f"user{user_id}", user_id, 1), Outbox(1000 + 10 * PUT_BYTES, lambda: None))


def test_everyone_is_listed_in_ascending_id_order() -> None:
    presence = LocalPresence()
    for user_id in (3, 1, 2):
        presence.join(member(user_id))
    assert [one.user_id for one in presence.everyone()] == [1, 2, 3]


def test_a_member_whose_outbox_is_closed_is_no_longer_online() -> None:
    presence = LocalPresence()
    one = member(1)
    presence.join(one)
    one.outbox.close()
    assert not presence.is_online(1)
    assert presence.everyone() == []
    assert presence.find(1) is None


def test_a_member_who_cannot_be_reached_is_no_longer_online() -> None:
    presence = LocalPresence()
    one = member(1)
    presence.join(one)
    one.outbox.advance(OutputEvent.SEND_FAILED)
    assert not presence.is_online(1)
    assert presence.find(1) is None


def test_nobody_is_told_of_a_member_who_cannot_be_secured() -> None:
    presence, watcher = LocalPresence(), member(1)
    presence.join(watcher)
    presence.watch(watcher, wanted=True)
    watcher.outbox.free()

    def fail() -> None:
        raise StorageUnavailable("on purpose")

    with pytest.raises(StorageUnavailable):
        presence.join(member(2), fail)
    assert watcher.outbox.take() == b""


def test_leaving_late_does_not_take_the_successor_offline() -> None:
    presence = LocalPresence()
    old, new = member(1), member(1)
    presence.join(old)
    old.outbox.close()
    presence.join(new)
    presence.leave(old)
    assert presence.is_online(1)
    presence.leave(new)
    assert not presence.is_online(1)


@pytest.mark.parametrize("user_id", [0, 5])
def test_nobody_is_online_under_an_id_that_never_joined(user_id: int) -> None:
    presence = LocalPresence()
    assert not presence.is_online(user_id)
    assert presence.find(user_id) is None


# Presence


def watching(presence: LocalPresence, user_id: int) -> Member:
    one = member(user_id)
    presence.join(one)
    one.outbox.free()  # as its session does after the list
    presence.watch(one, wanted=True)
    return one


def test_a_watcher_is_notified_of_arrivals_and_departures_but_not_its_own() -> None:
    presence, other = LocalPresence(), member(2)
    watcher = watching(presence, 1)
    presence.join(other)
    assert watcher.outbox.take() == encode_presence(True, "user2", 2, 1)
    presence.leave(other)
    assert watcher.outbox.take() == encode_presence(False, "user2", 2, 1)
    presence.leave(watcher)
    presence.join(watcher)
    assert watcher.outbox.take() == b""


def test_a_member_that_does_not_watch_is_not_notified() -> None:
    presence, silent = LocalPresence(), member(1)
    presence.join(silent)
    watcher = watching(presence, 2)
    presence.watch(watcher, wanted=False)
    presence.join(member(3))
    assert silent.outbox.take() == watcher.outbox.take() == b""


def test_watching_twice_is_the_same_as_once() -> None:
    presence = LocalPresence()
    watcher = watching(presence, 1)
    presence.watch(watcher, wanted=True)
    presence.join(member(2))
    assert watcher.outbox.take() == encode_presence(True, "user2", 2, 1)


def test_a_watcher_that_does_not_read_gets_the_latest_event_of_each_user() -> None:
    presence, two, three = LocalPresence(), member(2), member(3)
    watcher = watching(presence, 1)
    for _ in range(1000):
        presence.join(two)
        presence.join(three)
        presence.leave(two)
    assert watcher.outbox.take() == encode_presence(True, "user3", 3, 1) + encode_presence(False, "user2", 2, 1)


def test_a_late_departure_is_not_reported_while_the_successor_is_online() -> None:
    presence, old, new = LocalPresence(), member(2), member(2)
    presence.join(old)
    presence.join(new)
    watcher = watching(presence, 1)
    presence.leave(old)
    assert watcher.outbox.take() == b""
