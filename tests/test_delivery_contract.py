"""What every delivery does: that of a lone server, and that of a node over Redis."""

from typing import Any

import pytest

from chatserver.backend import Backend
from chatserver.people.presence import Member
from chatserver.transport.receipts import Receipts
from chatstorage.interface import StorageUnavailable
from protocol import FROM_SERVER, HISTORY_END, Decoder, Feature, Level, PacketType, Reason, encode_receipt
from tests.conftest import OpenBackend
from tests.users import come, go, read, texts


def test_a_message_to_an_online_user_is_in_its_outbox(backend: Backend) -> None:
    alice, bob = come(backend, "alice"), come(backend, "bob")
    run = texts("alice:one", "alice:two")
    assert backend.delivery.why_not(alice, 2) is None
    taken, _ = backend.delivery.hand_over(alice, 2, run, 1)
    assert taken == 2
    assert read(bob) == run.packets


def test_a_message_to_an_unknown_user_is_refused(backend: Backend) -> None:
    alice = come(backend, "alice", mails=True)
    assert backend.delivery.why_not(alice, 9) is Reason.USER_NOT_ONLINE
    assert backend.delivery.hand_over(alice, 9, texts("alice:one"), 1) == (0, Reason.USER_NOT_ONLINE)


def test_without_mailboxes_a_message_to_an_offline_user_is_refused(backend: Backend) -> None:
    alice = come(backend, "alice")
    go(backend, come(backend, "bob"))
    assert backend.delivery.why_not(alice, 2) is Reason.USER_NOT_ONLINE
    assert backend.delivery.hand_over(alice, 2, texts("alice:one"), 1) == (0, Reason.USER_NOT_ONLINE)


def test_mail_arrives_at_the_next_login_oldest_first_and_once(backend: Backend) -> None:
    alice = come(backend, "alice", mails=True)
    go(backend, come(backend, "bob"))
    assert backend.delivery.why_not(alice, 2) is None
    for number, text in enumerate(("alice:one", "alice:two"), 1):
        assert backend.delivery.hand_over(alice, 2, texts(text), number)[0] == 1
    bob = come(backend, "bob")
    backend.delivery.catch_up(bob)
    assert read(bob) == texts("alice:one", "alice:two").packets
    backend.delivery.catch_up(bob)
    assert read(bob) == b""


def test_a_mailbox_that_cannot_be_read_for_a_while_is_read_in_order_once_it_can(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatserver.messages.archive.MAIL_RETRY_SECONDS", 0.01)
    alice, bob = mailed_to_bob(backend)
    fail_to_read(backend, monkeypatch, times=3)
    assert backend.delivery.catch_up(bob)
    backend.delivery.hand_over(alice, 2, texts("alice:three"), 3)
    assert read(bob) == texts("alice:one", "alice:two", "alice:three").packets


def test_nothing_may_follow_a_mailbox_that_cannot_be_read_at_all(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatserver.messages.archive.monotonic", Jumps())
    _, bob = mailed_to_bob(backend)
    with monkeypatch.context() as failing:
        fail_to_read(backend, failing, times=1_000_000)
        assert not backend.delivery.catch_up(bob)
    go(backend, bob)
    bob = come(backend, "bob")
    assert backend.delivery.catch_up(bob)
    assert read(bob) == texts("alice:one", "alice:two").packets


class Jumps:
    """A clock that is six seconds later each time."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        self._now += 6
        return self._now


def mailed_to_bob(backend: Backend) -> tuple[Member, Member]:
    """alice has written two messages to bob, who has come back since."""
    alice = come(backend, "alice", mails=True)
    go(backend, come(backend, "bob"))
    assert backend.delivery.hand_over(alice, 2, texts("alice:one", "alice:two"), 1)[0] == 2
    return alice, come(backend, "bob")


def fail_to_read(backend: Backend, patch: pytest.MonkeyPatch, times: int) -> None:
    """The next `times` attempts to read a mailbox fail."""
    chats: Any = backend.archive._chats  # type: ignore[union-attr]
    read, left = chats.mailbox, [times]

    def mailbox(*arguments: object) -> object:
        left[0] -= 1
        if left[0] >= 0:
            raise StorageUnavailable("on purpose")
        return read(*arguments)

    patch.setattr(chats, "mailbox", mailbox)


def test_a_full_mailbox_takes_the_first_messages_of_a_run(open_backend: OpenBackend) -> None:
    backend = open_backend("--mailbox-messages", "2")
    alice = come(backend, "alice", mails=True)
    go(backend, come(backend, "bob"))
    run = texts("alice:one", "alice:two", "alice:three")
    assert backend.delivery.hand_over(alice, 2, run, 1) == (2, Reason.MAILBOX_FULL)
    bob = come(backend, "bob")
    backend.delivery.catch_up(bob)
    assert read(bob) == texts("alice:one", "alice:two").packets


def test_messages_queued_for_a_user_who_leaves_are_in_its_mailbox(backend: Backend) -> None:
    alice, bob = come(backend, "alice", mails=True), come(backend, "bob")
    assert backend.delivery.hand_over(alice, 2, texts("alice:one"), 1)[0] == 1
    go(backend, bob)
    bob = come(backend, "bob")
    backend.delivery.catch_up(bob)
    assert read(bob) == texts("alice:one").packets


def test_a_sender_gets_receipts_for_what_is_stored_and_delivered(backend: Backend) -> None:
    alice, bob = come(backend, "alice", mails=True), come(backend, "bob")
    alice.receipts = Receipts(lambda: None)
    assert backend.delivery.hand_over(alice, 2, texts("alice:one", "alice:two"), 1)[0] == 2
    read(bob)
    assert backend.archive is not None
    assert [row.count for row in backend.archive.last(1, 2, 10)] == [2]  # so it is committed
    assert alice.receipts.take() == encode_receipt(Level.STORED, 1, 2) + encode_receipt(Level.DELIVERED, 1, 2)


def test_a_replay_has_the_last_messages_of_both_oldest_first(backend: Backend) -> None:
    alice, bob = come(backend, "alice"), come(backend, "bob")
    backend.delivery.hand_over(alice, 2, texts("alice:one"), 1)
    backend.delivery.hand_over(bob, 1, texts("bob:two"), 1)
    backend.delivery.hand_over(alice, 2, texts("alice:three"), 2)
    read(alice)
    assert backend.delivery.replay(alice, 2, 2) is None
    stream = read(alice)
    assert stream.endswith(HISTORY_END)
    decoder = Decoder(FROM_SERVER)
    decoder.accept_extra({PacketType.HISTORY: Feature.HISTORY}, Feature.HISTORY)
    said = [body[2:] for packet_type, body in decoder.packets(stream) if packet_type == PacketType.MESSAGE]
    assert said == [b"bob:two", b"alice:three"]


def test_a_replay_with_an_unknown_user_is_refused(backend: Backend) -> None:
    alice = come(backend, "alice")
    assert backend.delivery.replay(alice, 9, 10) is Reason.USER_NOT_ONLINE


def test_without_history_nothing_is_kept(open_backend: OpenBackend) -> None:
    backend = open_backend("--history", "off")
    alice, bob = come(backend, "alice", mails=True), come(backend, "bob")
    assert backend.delivery.hand_over(alice, 2, texts("alice:one"), 1)[0] == 1
    assert read(bob) == texts("alice:one").packets
    assert backend.delivery.replay(alice, 2, 10) is None
    assert read(alice) == HISTORY_END
    go(backend, bob)
    assert backend.delivery.hand_over(alice, 2, texts("alice:two"), 2) == (0, Reason.USER_NOT_ONLINE)


def test_a_message_offered_on_a_route_is_delivered_kept_and_confirmed(backend: Backend) -> None:
    alice, bob = come(backend, "alice"), come(backend, "bob")
    alice.receipts = Receipts(lambda: None)
    route = backend.delivery.route(alice, 2)
    assert route is not None
    assert route.is_open
    for number, text in enumerate(("alice:one", "alice:two"), 1):
        assert route.offer(texts(text).packets, number)
    assert read(bob) == texts("alice:one", "alice:two").packets
    assert backend.archive is not None
    assert len(backend.archive.last(1, 2, 10)) == 2
    assert alice.receipts.take() == encode_receipt(Level.STORED, 1, 2) + encode_receipt(Level.DELIVERED, 1, 2)


def test_a_message_on_a_route_to_a_user_who_leaves_is_in_its_mailbox(backend: Backend) -> None:
    alice, bob = come(backend, "alice", mails=True), come(backend, "bob")
    route = backend.delivery.route(alice, 2)
    assert route is not None
    assert route.offer(texts("alice:one").packets, 1)
    go(backend, bob)
    assert not route.is_open
    assert not route.offer(texts("alice:two").packets, 2)
    bob = come(backend, "bob")
    backend.delivery.catch_up(bob)
    assert read(bob) == texts("alice:one").packets


def test_there_is_no_route_to_a_user_who_is_not_online(backend: Backend) -> None:
    alice = come(backend, "alice", mails=True)
    go(backend, come(backend, "bob"))
    assert backend.delivery.route(alice, 2) is None
    assert backend.delivery.route(alice, 9) is None


def test_a_route_takes_nothing_that_would_have_to_wait(backend: Backend) -> None:
    alice, bob = come(backend, "alice"), come(backend, "bob")
    route = backend.delivery.route(alice, 2)
    assert route is not None
    with bob.outbox.reserved():
        assert not route.offer(texts("alice:one").packets, 1)
    while bob.outbox.has_room_for(texts("x" * 136)):
        bob.outbox.put(texts("x" * 136).packets)
    assert not route.offer(texts("alice:" + "y" * 130).packets, 1)
    read(bob)
    assert backend.archive is not None
    assert backend.archive.last(1, 2, 10) == []
    assert route.offer(texts("alice:one").packets, 1)
    assert read(bob) == texts("alice:one").packets
