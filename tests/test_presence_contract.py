"""What every presence registry does: that of a lone server, and that of a node over Redis."""

import pytest

from chatserver.backend import Backend
from chatstorage.interface import StorageUnavailable
from protocol import encode_presence
from tests.users import come, go, new_member, read


def test_a_member_is_online_from_its_arrival_until_it_leaves(backend: Backend) -> None:
    alice = come(backend, "alice")
    assert backend.presence.is_online(1)
    assert backend.presence.find(1) is alice
    assert backend.presence.look_up(1) is alice
    go(backend, alice)
    assert not backend.presence.is_online(1)
    assert backend.presence.find(1) is None
    assert backend.presence.look_up(1) is None


def test_an_unknown_id_is_not_online(backend: Backend) -> None:
    assert not backend.presence.is_online(7)
    assert backend.presence.find(7) is None


def test_the_outbox_of_a_new_member_is_reserved_for_its_list(backend: Backend) -> None:
    backend.storage.sign_up("alice", None)
    alice = new_member(1, "alice")
    assert backend.presence.join(alice)
    assert alice.outbox.is_reserved


def test_a_member_who_cannot_be_secured_is_not_online(backend: Backend) -> None:
    backend.storage.sign_up("alice", None)
    alice = new_member(1, "alice")

    def fail() -> None:
        raise StorageUnavailable("on purpose")

    with pytest.raises(StorageUnavailable):
        backend.presence.join(alice, fail)
    assert not backend.presence.is_online(1)
    assert not alice.outbox.is_reserved
    assert backend.presence.join(new_member(1, "alice"))


def test_everyone_is_listed_in_ascending_id_order(backend: Backend) -> None:
    members = [come(backend, name) for name in ("alice", "bob", "carol")]
    go(backend, members[1])
    members[1] = come(backend, "bob")
    assert [user.entry for user in backend.presence.everyone()] == [member.entry for member in members]
    assert len(backend.presence) == 3


def test_a_member_whose_outbox_is_closed_is_neither_found_nor_listed(backend: Backend) -> None:
    alice = come(backend, "alice")
    alice.outbox.close()
    assert backend.presence.find(1) is None
    assert not backend.presence.is_online(1)
    assert list(backend.presence.everyone()) == []
    assert backend.presence.look_up(1) is alice


def test_a_watcher_is_notified_of_others_and_not_of_itself(backend: Backend) -> None:
    alice = come(backend, "alice")
    backend.presence.watch(alice, wanted=True)
    bob = come(backend, "bob")
    assert read(alice) == encode_presence(True, "bob", 2, 1)
    go(backend, bob)
    assert read(alice) == encode_presence(False, "bob", 2, 1)


def test_a_watcher_that_stops_watching_is_notified_no_more(backend: Backend) -> None:
    alice = come(backend, "alice")
    backend.presence.watch(alice, wanted=True)
    backend.presence.watch(alice, wanted=False)
    come(backend, "bob")
    assert read(alice) == b""


def test_a_watcher_that_does_not_read_gets_only_the_latest_event_of_each_user(backend: Backend) -> None:
    alice = come(backend, "alice")
    backend.presence.watch(alice, wanted=True)
    for _ in range(3):
        go(backend, come(backend, "bob"))
    assert read(alice) == encode_presence(False, "bob", 2, 1)


def test_a_registry_that_reaches_everything_has_caught_up(backend: Backend) -> None:
    come(backend, "alice")
    assert backend.presence.catch_up()
