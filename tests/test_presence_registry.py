"""Who is online, and who is told of it."""

import pytest

from chatserver.people.presence import Member, Presence
from chatserver.transport.outbox import PUT_BYTES, Outbox
from chatserver.transport.states import OutputEvent
from protocol import encode_presence, encode_user


def member(user_id: int) -> Member:
    return Member(user_id, encode_user(f"user{user_id}", user_id, 1), Outbox(1000 + 10 * PUT_BYTES, lambda: None))


def test_everyone_is_listed_in_ascending_id_order() -> None:
    presence = Presence()
    for user_id in (3, 1, 2):
        presence.join(member(user_id))
    assert [one.user_id for one in presence.everyone()] == [1, 2, 3]


def test_a_member_whose_outbox_is_closed_is_no_longer_online() -> None:
    presence = Presence()
    one = member(1)
    presence.join(one)
    one.outbox.close()
    assert not presence.is_online(1)
    assert presence.everyone() == []
    assert presence.find(1) is None


def test_a_member_who_cannot_be_reached_is_no_longer_online() -> None:
    presence = Presence()
    one = member(1)
    presence.join(one)
    one.outbox.advance(OutputEvent.SEND_FAILED)
    assert not presence.is_online(1)
    assert presence.find(1) is None


def test_leaving_late_does_not_take_the_successor_offline() -> None:
    presence = Presence()
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
    presence = Presence()
    assert not presence.is_online(user_id)
    assert presence.find(user_id) is None


# Presence


def watching(presence: Presence, user_id: int) -> Member:
    one = member(user_id)
    presence.join(one)
    presence.watch(one, wanted=True)
    return one


def test_who_asks_for_it_is_told_who_comes_and_goes_but_not_of_itself() -> None:
    presence, other = Presence(), member(2)
    watcher = watching(presence, 1)
    presence.join(other)
    assert watcher.outbox.take() == encode_presence(True, "user2", 2, 1)
    presence.leave(other)
    assert watcher.outbox.take() == encode_presence(False, "user2", 2, 1)
    presence.leave(watcher)
    presence.join(watcher)
    assert watcher.outbox.take() == b""


def test_who_does_not_ask_or_no_longer_does_is_told_nothing() -> None:
    presence, silent = Presence(), member(1)
    presence.join(silent)
    watcher = watching(presence, 2)
    presence.watch(watcher, wanted=False)
    presence.join(member(3))
    assert silent.outbox.take() == watcher.outbox.take() == b""


def test_asking_twice_is_as_good_as_once() -> None:
    presence = Presence()
    watcher = watching(presence, 1)
    presence.watch(watcher, wanted=True)
    presence.join(member(2))
    assert watcher.outbox.take() == encode_presence(True, "user2", 2, 1)


def test_who_does_not_read_is_told_only_what_happened_last_to_each_user() -> None:
    presence, two, three = Presence(), member(2), member(3)
    watcher = watching(presence, 1)
    for _ in range(1000):
        presence.join(two)
        presence.join(three)
        presence.leave(two)
    assert watcher.outbox.take() == encode_presence(True, "user3", 3, 1) + encode_presence(False, "user2", 2, 1)


def test_leaving_late_is_not_told_where_the_successor_is_online() -> None:
    presence, old, new = Presence(), member(2), member(2)
    presence.join(old)
    presence.join(new)
    watcher = watching(presence, 1)
    presence.leave(old)
    assert watcher.outbox.take() == b""
