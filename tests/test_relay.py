"""Who is online, and who is told of it."""

import pytest

from chatserver.outbox import PUT_BYTES, Outbox
from chatserver.relay import Member, Relay
from protocol import encode_presence, encode_user


def member(user_id: int) -> Member:
    return Member(user_id, encode_user(f"user{user_id}", user_id, 1), Outbox(1000 + 10 * PUT_BYTES, lambda: None))


def test_everyone_is_listed_in_ascending_id_order() -> None:
    relay = Relay()
    for user_id in (3, 1, 2):
        relay.join(member(user_id))
    assert [one.user_id for one in relay.everyone()] == [1, 2, 3]


def test_a_member_whose_outbox_is_closed_is_no_longer_online() -> None:
    relay = Relay()
    one = member(1)
    relay.join(one)
    one.outbox.close()
    assert not relay.is_online(1)
    assert relay.everyone() == []
    assert relay.find(1) is None


def test_a_member_who_cannot_be_reached_is_no_longer_online() -> None:
    relay = Relay()
    one = member(1)
    relay.join(one)
    one.outbox.lead_nowhere()
    assert not relay.is_online(1)
    assert relay.find(1) is None


def test_leaving_late_does_not_take_the_successor_offline() -> None:
    relay = Relay()
    old, new = member(1), member(1)
    relay.join(old)
    old.outbox.close()
    relay.join(new)
    relay.leave(old)
    assert relay.is_online(1)
    relay.leave(new)
    assert not relay.is_online(1)


@pytest.mark.parametrize("user_id", [0, 5])
def test_nobody_is_online_under_an_id_that_never_joined(user_id: int) -> None:
    relay = Relay()
    assert not relay.is_online(user_id)
    assert relay.find(user_id) is None


# Presence


def watching(relay: Relay, user_id: int) -> Member:
    one = member(user_id)
    relay.join(one)
    relay.watch(one, wanted=True)
    return one


def test_who_asks_for_it_is_told_who_comes_and_goes_but_not_of_itself() -> None:
    relay, other = Relay(), member(2)
    watcher = watching(relay, 1)
    relay.join(other)
    assert watcher.outbox.take() == encode_presence(True, "user2", 2, 1)
    relay.leave(other)
    assert watcher.outbox.take() == encode_presence(False, "user2", 2, 1)
    relay.leave(watcher)
    relay.join(watcher)
    assert watcher.outbox.take() == b""


def test_who_does_not_ask_or_no_longer_does_is_told_nothing() -> None:
    relay, silent = Relay(), member(1)
    relay.join(silent)
    watcher = watching(relay, 2)
    relay.watch(watcher, wanted=False)
    relay.join(member(3))
    assert silent.outbox.take() == watcher.outbox.take() == b""


def test_asking_twice_is_as_good_as_once() -> None:
    relay = Relay()
    watcher = watching(relay, 1)
    relay.watch(watcher, wanted=True)
    relay.join(member(2))
    assert watcher.outbox.take() == encode_presence(True, "user2", 2, 1)


def test_who_does_not_read_is_told_only_what_happened_last_to_each_user() -> None:
    relay, two, three = Relay(), member(2), member(3)
    watcher = watching(relay, 1)
    for _ in range(1000):
        relay.join(two)
        relay.join(three)
        relay.leave(two)
    assert watcher.outbox.take() == encode_presence(True, "user3", 3, 1) + encode_presence(False, "user2", 2, 1)


def test_leaving_late_is_not_told_where_the_successor_is_online() -> None:
    relay, old, new = Relay(), member(2), member(2)
    relay.join(old)
    relay.join(new)
    watcher = watching(relay, 1)
    relay.leave(old)
    assert watcher.outbox.take() == b""
