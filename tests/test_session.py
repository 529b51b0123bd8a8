"""One client's conversation without a socket: every packet type in every state, and the effect of their order."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chatserver.counters import Counters
from chatserver.messages.delivery import Delivery, LocalDelivery
from chatserver.people.accounts import Accounts
from chatserver.people.presence import LocalPresence
from chatserver.session import PARSERS, Session, State
from chatserver.transport.address import ClientAddress
from chatserver.transport.outbox import Outbox
from chatserver.transport.states import OutputEvent
from chatserver.workers import Workers
from protocol import (
    EXTRA_FROM_CLIENT,
    FROM_CLIENT,
    HISTORY_END,
    Envelope,
    Feature,
    PacketType,
    Reason,
    encode,
    encode_chat_init,
    encode_error,
    encode_history_request,
    encode_login,
    encode_message,
    encode_user,
)
from storage import CsvStorage

PING, PONG = encode(PacketType.PING, b"?"), encode(PacketType.PONG, b"?")


class Client:
    """A session with its outbox, read by hand."""

    def __init__(self, accounts: Accounts, presence: LocalPresence, delivery: Delivery, counters: Counters) -> None:
        self.outbox = Outbox(64 * 1024, lambda: None)
        peer = ClientAddress("test", "test")
        self.session = Session(accounts, presence, delivery, counters, self.outbox, self._close, peer)

    def _close(self, reason: Reason) -> None:
        self.outbox.close(encode_error(reason))

    def send(self, *packets: bytes) -> bytes:
        """Feed packets and return all bytes that the client would read now."""
        self.session.receive(b"".join(packets))
        return self.read()

    def read(self) -> bytes:
        taken = self.outbox.take()
        self.outbox.sent(len(taken))
        return taken


class Sessions:
    """What the sessions of a server share, and clients that start one each."""

    def __init__(self, storage: CsvStorage) -> None:
        self.presence = LocalPresence()
        self.counters = Counters()
        self.accounts = Accounts(
            storage, self.presence, self.counters, Workers(1), id_width=1, password_required=False, login_attempts=10
        )
        self.delivery = LocalDelivery(self.presence, None, self.counters, storage.is_user, 1)

    def client(self, *packets: bytes) -> Client:
        client = Client(self.accounts, self.presence, self.delivery, self.counters)
        client.send(*packets)
        return client


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Sessions]:
    with CsvStorage(tmp_path / "data", 128, 255) as storage:
        sessions = Sessions(storage)
        yield sessions


ALICE, BOB = encode_login("alice"), encode_login("bob")
CURIOUS = encode_login("alice", features=Feature.HISTORY)
PAST, PAST_WITH_NOBODY = encode_history_request(5, 1), encode_history_request(5, 9)
TO_SELF = encode_chat_init(1)
HOW_TO_REACH = {State.CONNECTED: (), State.ONLINE: (ALICE,), State.CHATTING: (ALICE, TO_SELF)}
LIST = encode_user("alice", 1, 1)


def error(reason: Reason) -> bytes:
    return encode_error(reason)


def test_a_login_whose_mailbox_cannot_be_read_ends_with_an_error(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise later Messages would overtake the mail."""
    monkeypatch.setattr(sessions.delivery, "catch_up", lambda _: False)
    client = sessions.client()
    assert client.send(ALICE) == LIST + error(Reason.STORAGE_UNAVAILABLE)
    assert client.outbox.closed


@pytest.mark.parametrize(
    ("state", "packet", "answer", "next_state"),
    [
        (State.CONNECTED, ALICE, LIST, State.ONLINE),
        (State.CONNECTED, TO_SELF, error(Reason.NOT_LOGGED_IN), State.CONNECTED),
        (State.CONNECTED, encode_message(b"x"), error(Reason.NOT_LOGGED_IN), State.CONNECTED),
        (State.CONNECTED, PING, PONG, State.CONNECTED),
        (State.CONNECTED, PONG, b"", State.CONNECTED),
        (State.CONNECTED, PAST, error(Reason.UNKNOWN_PACKET_TYPE), State.CONNECTED),
        (State.ONLINE, ALICE, LIST, State.ONLINE),
        (State.ONLINE, BOB, error(Reason.ALREADY_LOGGED_IN), State.ONLINE),
        (State.ONLINE, TO_SELF, b"", State.CHATTING),
        (State.ONLINE, encode_chat_init(9), error(Reason.USER_NOT_ONLINE), State.ONLINE),
        (State.ONLINE, encode_message(b"x"), error(Reason.NO_CHAT_STARTED), State.ONLINE),
        (State.ONLINE, PING, PONG, State.ONLINE),
        (State.ONLINE, PONG, b"", State.ONLINE),
        (State.ONLINE, PAST, error(Reason.UNKNOWN_PACKET_TYPE), State.ONLINE),
        (State.ONLINE, CURIOUS + PAST, LIST + HISTORY_END, State.ONLINE),
        (State.ONLINE, CURIOUS + PAST_WITH_NOBODY, LIST + error(Reason.USER_NOT_ONLINE), State.ONLINE),
        (State.CHATTING, ALICE, LIST, State.CHATTING),
        (State.CHATTING, BOB, error(Reason.ALREADY_LOGGED_IN), State.CHATTING),
        (State.CHATTING, TO_SELF, b"", State.CHATTING),
        (State.CHATTING, encode_chat_init(9), error(Reason.USER_NOT_ONLINE), State.CHATTING),
        (State.CHATTING, encode_message(b"x"), Envelope("alice").wrap(b"x"), State.CHATTING),
        (State.CHATTING, PING, PONG, State.CHATTING),
        (State.CHATTING, PONG, b"", State.CHATTING),
        (State.CHATTING, PAST, error(Reason.UNKNOWN_PACKET_TYPE), State.CHATTING),
        (State.CHATTING, CURIOUS + PAST, LIST + HISTORY_END, State.CHATTING),
    ],
)
def test_every_packet_in_every_state(
    sessions: Sessions, state: State, packet: bytes, answer: bytes, next_state: State
) -> None:
    client = sessions.client(*HOW_TO_REACH[state])
    assert client.session.state is state
    assert client.send(packet) == answer
    assert client.session.state is next_state


def test_the_tables_cover_every_state_and_every_packet_that_a_client_may_send() -> None:
    assert set(PARSERS) == FROM_CLIENT | EXTRA_FROM_CLIENT.keys()
    assert set(Session.HANDLERS) == set(State)
    for state, handlers in Session.HANDLERS.items():  # no feature is on before the login
        assert set(handlers) == (FROM_CLIENT if state is State.CONNECTED else set(PARSERS))


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (bytes.fromhex("03 ff"), Reason.PACKET_TOO_LONG),
        (bytes.fromhex("77 00"), Reason.UNKNOWN_PACKET_TYPE),
        (encode_error(Reason.TOO_SLOW), Reason.UNKNOWN_PACKET_TYPE),
        (bytes.fromhex("01 00"), Reason.MALFORMED_PACKET),
        (bytes.fromhex("02 01 00"), Reason.MALFORMED_PACKET),
        (bytes.fromhex("03 03 0002 61"), Reason.MALFORMED_PACKET),
    ],
)
def test_a_protocol_error_closes_in_every_state_and_nothing_after_it_is_handled(
    sessions: Sessions, state: State, packet: bytes, reason: Reason
) -> None:
    client = sessions.client(*HOW_TO_REACH[state])
    assert client.send(PING, packet, PING, packet) == PONG + error(reason)
    assert client.outbox.closed


def test_a_run_of_messages_is_handed_over_before_a_protocol_error_closes(sessions: Sessions) -> None:
    bob = sessions.client(BOB)
    alice = sessions.client(ALICE, encode_chat_init(1))
    bob.read()
    alice.send(encode_message(b"one"), encode_message(b"two"), b"\xff\x00")
    assert bob.read() == Envelope("alice").wrap(b"one") + Envelope("alice").wrap(b"two")


def test_each_message_to_a_partner_that_has_left_gets_an_error_before_the_pong(sessions: Sessions) -> None:
    bob = sessions.client(BOB)
    alice = sessions.client(ALICE, encode_chat_init(1))
    bob.session.end()
    answer = alice.send(encode_message(b"one"), encode_message(b"x" * 136), PING)
    assert answer == 2 * error(Reason.USER_NOT_ONLINE) + PONG


def test_a_partner_that_logs_in_again_is_reached_again(sessions: Sessions) -> None:
    bob = sessions.client(BOB)
    alice = sessions.client(ALICE, encode_chat_init(1))
    bob.session.end()
    bob = sessions.client(BOB)
    bob.read()
    assert alice.send(encode_message(b"again")) == b""
    assert bob.read() == Envelope("alice").wrap(b"again")


def test_ending_a_session_twice_equals_ending_it_once(sessions: Sessions) -> None:
    alice = sessions.client(ALICE)
    alice.session.end()
    again = sessions.client(ALICE)
    alice.session.end()
    assert again.send(PING) == PONG
    assert sessions.presence.is_online(1)


@pytest.mark.parametrize("before", [(), (encode_login("alice"),)], ids=["before the login", "before the first chat"])
def test_messages_without_a_partner_are_not_handled_once_the_outbox_is_closed(
    sessions: Sessions, before: tuple[bytes, ...]
) -> None:
    client = sessions.client(*before)
    put = client.outbox.put

    def put_and_close(packets: bytes) -> bool:
        client.outbox.put = put  # type: ignore[method-assign]
        went_in = put(packets)
        client.outbox.close(encode_error(Reason.LOGIN_TIMEOUT))
        return went_in

    client.outbox.put = put_and_close  # type: ignore[method-assign]  # closed by others while this waits
    client.send(*[encode_message(b"hello")] * 100)
    assert sessions.counters.messages_accepted == 1


def test_nothing_is_handled_once_the_outbox_was_closed_from_outside(sessions: Sessions) -> None:
    alice = sessions.client()
    alice.outbox.close(error(Reason.LOGIN_TIMEOUT))
    assert alice.send(ALICE, PING) == error(Reason.LOGIN_TIMEOUT)
    assert alice.session.member is None


def test_an_unreachable_client_costs_neither_lists_nor_replays_but_its_messages_arrive(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = sessions.client(CURIOUS), sessions.client(BOB)
    alice.send(encode_chat_init(2))
    made: list[str] = []
    monkeypatch.setattr(sessions.presence, "everyone", lambda: made.append("list"))
    monkeypatch.setattr(sessions.delivery, "replay", lambda *_: made.append("replay"))
    alice.outbox.advance(OutputEvent.SEND_FAILED)
    alice.send(PAST * 3, ALICE * 3, encode_message(b"goodbye"))
    assert made == []
    assert bob.read().endswith(Envelope("alice").wrap(b"goodbye"))


# What needs no waiting


@pytest.fixture
def chatting(sessions: Sessions) -> tuple[Client, Client]:
    """alice writes to bob; she has written to him before."""
    bob = sessions.client(BOB)
    alice = sessions.client(ALICE, encode_chat_init(1), encode_message(b"first"))
    bob.read()
    return alice, bob


@pytest.mark.parametrize("text", ["", "hello", "größer", "x" * (136 - len("alice:"))])
def test_a_plain_message_is_relayed_at_once(text: str, chatting: tuple[Client, Client], sessions: Sessions) -> None:
    alice, bob = chatting
    assert alice.session.offer(encode_message(text.encode()))
    assert bob.read() == encode_message(f"alice:{text}".encode())
    assert sessions.counters.messages_accepted == sessions.counters.messages_delivered == 2


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="the end"),
        pytest.param(encode_message(b"hello")[:-1], id="an incomplete Message"),
        pytest.param(encode_message(b"hello")[:3], id="half a header"),
        pytest.param(encode_message(b"hello") * 2, id="two Messages"),
        pytest.param(encode_message(b"hello") + b"\x03", id="a Message and more"),
        pytest.param(encode_message(b"x" * 136), id="a Message that will be two packets"),
        pytest.param(encode_message(b"\xff"), id="no UTF-8"),
        pytest.param(bytes.fromhex("03 03 0002 61"), id="a text shorter than it says"),
        pytest.param(PING, id="a Ping"),
        pytest.param(TO_SELF, id="a Chat Init"),
    ],
)
def test_any_other_chunk_is_left_to_the_session_and_nothing_has_happened(
    data: bytes, chatting: tuple[Client, Client], sessions: Sessions
) -> None:
    alice, bob = chatting
    assert not alice.session.offer(data)
    assert bob.read() == alice.read() == b""
    assert sessions.counters.messages_accepted == 1
    assert alice.send(PING) == PONG, "the decoder has not seen it"


def test_a_message_behind_an_incomplete_packet_is_part_of_it(chatting: tuple[Client, Client]) -> None:
    alice, bob = chatting
    outer = encode_message(encode_message(b"inner"))
    alice.send(outer[:4])
    assert not alice.session.offer(outer[4:])
    alice.send(outer[4:])
    assert bob.read() == encode_message(b"alice:" + encode_message(b"inner"))


def test_before_a_chat_nothing_is_relayed_at_once(sessions: Sessions) -> None:
    assert not sessions.client().session.offer(encode_message(b"x"))
    assert not sessions.client(ALICE).session.offer(encode_message(b"x"))


def test_the_way_to_a_partner_who_has_come_back_is_found_again(
    chatting: tuple[Client, Client], sessions: Sessions
) -> None:
    alice, bob = chatting
    bob.session.end()
    assert not alice.session.offer(encode_message(b"x"))
    assert alice.send(encode_message(b"x")) == error(Reason.USER_NOT_ONLINE)
    bob = sessions.client(BOB)
    bob.read()
    assert not alice.session.offer(encode_message(b"first"))
    alice.send(encode_message(b"first"))
    assert alice.session.offer(encode_message(b"second"))
    assert bob.read() == encode_message(b"alice:first") + encode_message(b"alice:second")


def test_another_partner_and_other_features_change_the_way(chatting: tuple[Client, Client]) -> None:
    alice, bob = chatting
    alice.send(encode_chat_init(2))
    assert not alice.session.offer(encode_message(b"x"))
    assert alice.send(encode_message(b"to herself")) == encode_message(b"alice:to herself")
    assert bob.read() == b""
    alice.send(encode_login("alice", features=Feature.RECEIPTS))
    assert not alice.session.offer(encode_message(b"x"))
