"""ChatClient and the protocol's extensions, against a server that follows a script, over real sockets.

The same tests run twice: as greenlets, and in a process without gevent, as threads.
"""

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from client import (
    ChatClient,
    ChatRefused,
    ConnectionClosed,
    ErrorReceived,
    Event,
    LoginRefused,
    MessageReceived,
    PastMessage,
    PresenceChanged,
    ReceiptReceived,
)
from protocol import (
    ALL_FEATURES,
    HISTORY_END,
    MAX_HISTORY,
    NO_FEATURES,
    Feature,
    Level,
    LocalProtocolError,
    PacketType,
    Reason,
    encode_error,
    encode_presence,
    encode_receipt,
    encode_user,
    parse_history_request,
    parse_login,
)
from testkit.processes import UNPATCHED, run_unpatched
from testkit.scripted_server import SECONDS, Peer, ScriptedServer, ServerStart, message, past
from testkit.server import ServerProcess

Pair = tuple[ChatClient, Peer]
BOB_LEFT = encode_presence(False, "bob", 1, 1)


@pytest.fixture
def start() -> Iterator[ServerStart]:
    with ThreadPoolExecutor() as pool:
        yield ServerStart(pool)


@pytest.fixture
def pair(start: ServerStart) -> Iterator[Pair]:  # noqa: ARG001 - it waits for our calls
    """A client that is connected but not logged in, and the server's end."""
    with ScriptedServer() as server, ChatClient(server.host, server.port, SECONDS) as client, server.accept() as peer:
        yield client, peer


@pytest.fixture
def alice(pair: Pair, start: ServerStart) -> Pair:
    """alice (2) is online with bob (1), and has asked for all features."""
    log_in(pair, start, ALL_FEATURES)
    return pair


def log_in(pair: Pair, start: ServerStart, features: Feature) -> None:
    """As alice (2), with bob (1), to a server that knows no brief logins."""
    client, peer = pair
    login = start(client.login, "alice", features=features)
    peer.log_in("alice", "bob")
    assert login.result(SECONDS) == 2


def choose_bob(pair: Pair, start: ServerStart) -> None:
    client, peer = pair
    chat = start(client.chat, 1)
    peer.expect(PacketType.CHAT_INIT)
    peer.pong()
    assert chat.result(SECONDS) == 1


def in_receive(client: ChatClient) -> None:
    """Wait until somebody has become the client's reader."""
    deadline = time.monotonic() + SECONDS
    while not client._connection._reading:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def no_event_waits(client: ChatClient) -> bool:
    try:
        client.receive(timeout=0)
    except TimeoutError:
        return True
    return False


# Logging in


def test_login_asks_for_features_and_refresh_leaves_them(pair: Pair, start: ServerStart) -> None:
    client, peer = pair
    assert client.features == NO_FEATURES
    login = start(client.login, "alice", "secret", features=Feature.PRESENCE | Feature.MAILBOX)
    assert parse_login(peer.expect(PacketType.CONFIG)) == ("alice", "secret", Feature.PRESENCE | Feature.MAILBOX)
    peer.send(encode_user("alice", 2, 1))
    login.result(SECONDS)
    refresh = start(client.refresh)
    assert parse_login(peer.expect(PacketType.CONFIG)) == ("alice", "", None)
    peer.send(encode_user("alice", 2, 1))
    refresh.result(SECONDS)
    assert client.features == Feature.PRESENCE | Feature.MAILBOX


def test_features_are_those_of_a_login_that_was_granted(pair: Pair, start: ServerStart) -> None:
    client, peer = pair
    login = start(client.login, "alice", features=Feature.PRESENCE)
    peer.refuse(PacketType.CONFIG, Reason.PASSWORD_REQUIRED)
    with pytest.raises(LoginRefused):
        login.result(SECONDS)
    assert client.features == NO_FEATURES
    log_in(pair, start, Feature.RECEIPTS)
    assert client.features == Feature.RECEIPTS
    log_in(pair, start, NO_FEATURES)
    assert client.features == Feature.RECEIPTS
    peer.send(encode_receipt(Level.STORED, 1, 1) + BOB_LEFT)
    assert client.receive() == ReceiptReceived(Level.STORED, 1, 1)
    with pytest.raises(ConnectionClosed, match="broke the protocol"):
        client.receive()


def test_a_brief_login_knows_only_itself_until_it_asks(pair: Pair, start: ServerStart) -> None:
    client, peer = pair
    login = start(client.login, "alice", features=Feature.BRIEF)
    peer.expect(PacketType.CONFIG)
    peer.send(encode_user("alice", 2, 1))
    assert login.result(SECONDS) == 2
    assert client.online == {"alice": 2}
    refresh = start(client.refresh)
    peer.log_in("alice", "bob")
    assert refresh.result(SECONDS) == client.online == {"bob": 1, "alice": 2}


def test_packets_right_after_the_list_are_not_lost(pair: Pair, start: ServerStart) -> None:
    client, peer = pair
    login = start(client.login, "alice", features=ALL_FEATURES)
    peer.expect(PacketType.CONFIG)
    peer.send(
        encode_user("bob", 1, 1),
        encode_user("alice", 2, 1),
        message("carol", "while you were away"),
        encode_presence(True, "carol", 3, 1),
        BOB_LEFT,
    )
    login.result(SECONDS)
    assert client.receive() == MessageReceived("carol", "while you were away")
    assert client.receive() == PresenceChanged("carol", 3, is_online=True)
    assert client.receive() == PresenceChanged("bob", 1, is_online=False)
    assert list(client.online.items()) == [("alice", 2), ("carol", 3)]


# Presence


def test_an_arrival_counts_as_soon_as_any_call_has_read_it(alice: Pair, start: ServerStart) -> None:
    client, peer = alice
    ping = start(client.ping)
    peer.send(encode_presence(True, "carol", 3, 1))
    peer.pong()
    ping.result(SECONDS)
    assert list(client.online.items()) == [("bob", 1), ("alice", 2), ("carol", 3)]
    assert client.receive(timeout=0) == PresenceChanged("carol", 3, is_online=True)


def test_a_list_in_use_is_not_changed_by_presence(alice: Pair, start: ServerStart) -> None:
    client, peer = alice
    received = start(receive, client, 1000)
    names = iter(client.online)
    peer.send(*(encode_presence(True, f"user-{number}", number, 2) for number in range(1000, 2000)))
    assert received.result(SECONDS)[-1] == PresenceChanged("user-1999", 1999, is_online=True)
    assert list(names) == ["bob", "alice"]
    assert list(client.online.values()) == [1, 2, *range(1000, 2000)]


def receive(client: ChatClient, count: int) -> list[Event]:
    return [client.receive() for _ in range(count)]


# Partners who are away


def test_a_user_who_left_can_be_written_to_with_a_mailbox(alice: Pair, start: ServerStart) -> None:
    client, peer = alice
    peer.send(BOB_LEFT)
    client.receive()
    chat = start(client.chat, "bob")
    peer.log_in("alice")  # bob may have come back
    assert peer.expect(PacketType.CHAT_INIT) == bytes([1])
    peer.pong()
    assert chat.result(SECONDS) == client.partner_id == 1


def test_a_user_who_left_is_refused_without_a_mailbox(pair: Pair, start: ServerStart) -> None:
    client, peer = pair
    log_in(pair, start, ALL_FEATURES & ~Feature.MAILBOX)
    peer.send(BOB_LEFT)
    client.receive()
    chat = start(client.chat, "bob")
    peer.log_in("alice")
    with pytest.raises(ChatRefused) as caught:
        chat.result(SECONDS)
    assert caught.value.reason == Reason.USER_NOT_ONLINE


def test_a_full_mailbox_is_an_event(alice: Pair, start: ServerStart) -> None:
    client, peer = alice
    choose_bob(alice, start)
    client.send("lost")
    peer.refuse(PacketType.MESSAGE, Reason.MAILBOX_FULL)
    assert client.receive() == ErrorReceived(Reason.MAILBOX_FULL)


# History


@pytest.mark.parametrize("partner", [1, "bob"])
def test_history_is_dated_whole_and_in_order(alice: Pair, start: ServerStart, partner: int | str) -> None:
    client, peer = alice
    history = start(client.history, partner)
    assert parse_history_request(peer.expect(PacketType.HISTORY)) == (20, 1)
    replay = past(1_700_000_000, 1, message("bob", "one: "), message("bob", "two"))
    for byte in replay + past(1_700_000_001, 2, message("alice", "three")) + HISTORY_END:
        peer.send(bytes([byte]))
    assert history.result(SECONDS) == [
        PastMessage(1_700_000_000, 1, "bob", "one: two"),
        PastMessage(1_700_000_001, 2, "alice", "three"),
    ]
    assert no_event_waits(client)


def test_history_of_nothing(alice: Pair, start: ServerStart) -> None:
    client, peer = alice
    for count in (0, MAX_HISTORY):
        history = start(client.history, 1, count)
        assert parse_history_request(peer.expect(PacketType.HISTORY)) == (count, 1)
        peer.send(HISTORY_END)
        assert history.result(SECONDS) == []


def test_history_with_a_user_who_left(alice: Pair, start: ServerStart) -> None:
    client, peer = alice
    peer.send(BOB_LEFT)
    client.receive()
    history = start(client.history, "bob")
    peer.log_in("alice")
    assert parse_history_request(peer.expect(PacketType.HISTORY)) == (20, 1)
    peer.send(HISTORY_END)
    assert history.result(SECONDS) == []


def test_history_with_nobody_is_refused(alice: Pair, start: ServerStart) -> None:
    client, peer = alice
    history = start(client.history, "nobody")
    peer.log_in("alice", "bob")
    with pytest.raises(ChatRefused) as unknown_name:
        history.result(SECONDS)
    history = start(client.history, 99)
    peer.refuse(PacketType.HISTORY, Reason.USER_NOT_ONLINE)
    with pytest.raises(ChatRefused) as unknown_id:
        history.result(SECONDS)
    assert unknown_name.value.reason == unknown_id.value.reason == Reason.USER_NOT_ONLINE


def test_history_that_the_protocol_cannot_ask_for(pair: Pair, start: ServerStart) -> None:
    client, _ = pair
    with pytest.raises(LocalProtocolError):
        client.history(1)
    log_in(pair, start, ALL_FEATURES & ~Feature.HISTORY)
    with pytest.raises(LocalProtocolError):
        client.history(1)
    log_in(pair, start, Feature.HISTORY)
    for partner, count in ((1, -1), (1, MAX_HISTORY + 1), (0, 20), (2**32, 20), ("bob", 256)):
        with pytest.raises(LocalProtocolError):
            client.history(partner, count)


def test_history_that_times_out_is_no_event_and_does_not_answer_the_next_one(alice: Pair, start: ServerStart) -> None:
    client, peer = alice
    with pytest.raises(TimeoutError):
        client.history(1, timeout=0.05)
    peer.expect(PacketType.HISTORY)
    peer.send(past(1, 1, message("bob", "late")))
    history = start(client.history, 1, 1)
    peer.send(past(2, 1, message("bob", "later")), HISTORY_END)
    peer.pong()
    assert parse_history_request(peer.expect(PacketType.HISTORY)) == (1, 1)
    peer.send(past(2, 1, message("bob", "later")), HISTORY_END, message("bob", "live"))
    assert history.result(SECONDS) == [PastMessage(2, 1, "bob", "later")]
    assert client.receive() == MessageReceived("bob", "live")


def test_history_while_another_thread_receives(alice: Pair, start: ServerStart) -> None:
    client, peer = alice
    received = start(receive, client, 2)
    history = start(client.history, 1)
    peer.expect(PacketType.HISTORY)
    peer.send(message("bob", "before"), past(1, 1, message("bob", "past")), HISTORY_END, message("bob", "after"))
    assert history.result(SECONDS) == [PastMessage(1, 1, "bob", "past")]
    assert received.result(SECONDS) == [MessageReceived("bob", "before"), MessageReceived("bob", "after")]


# Events one by one


def test_iteration_yields_the_events_and_ends_with_the_connection(alice: Pair) -> None:
    client, peer = alice
    peer.send(
        message("bob", "hi"),
        encode_receipt(Level.DELIVERED, 1, 3),
        BOB_LEFT,
        encode_error(Reason.SERVER_SHUTTING_DOWN),
    )
    events = iter(client)
    assert next(events) == MessageReceived("bob", "hi")
    assert list(events) == [
        ReceiptReceived(Level.DELIVERED, 1, 3),
        PresenceChanged("bob", 1, is_online=False),
        ErrorReceived(Reason.SERVER_SHUTTING_DOWN),
    ]
    assert list(client) == []
    assert client.ending
    assert client.ending.reason == Reason.SERVER_SHUTTING_DOWN


def test_iteration_waits_for_ever_and_ends_at_close(start: ServerStart) -> None:
    with (
        ScriptedServer() as server,
        ChatClient(server.host, server.port, timeout=0.3) as client,
        server.accept() as peer,
    ):
        first = start(next, iter(client))
        in_receive(client)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                client.ping()
        assert client.ending is None
        assert not first.done()
        peer.send(message("bob", "at last"))
        assert first.result(SECONDS) == MessageReceived("bob", "at last")
        rest = start(list, client)
        client.close()
        assert rest.result(SECONDS) == []
        assert client.ending == ("this side closed the connection", None)


# With the real server


@pytest.mark.skipif(UNPATCHED in os.environ, reason="its fixture comes with gevent")
def test_an_offline_user_misses_nothing(server: ServerProcess) -> None:
    with ChatClient(server.host, server.port, SECONDS) as alice:
        alice.login("alice", features=ALL_FEATURES)
        with ChatClient(server.host, server.port, SECONDS) as bob:
            bob.login("bob")
            assert alice.receive() == PresenceChanged("bob", 2, is_online=True)
        assert alice.receive() == PresenceChanged("bob", 2, is_online=False)
        assert alice.chat("bob") == 2
        assert alice.send("where are you?") == range(1, 2)
        assert alice.receive() == ReceiptReceived(Level.STORED, 1, 1)
        with ChatClient(server.host, server.port, SECONDS) as bob:
            bob.login("bob", features=Feature.HISTORY)
            assert bob.receive() == MessageReceived("alice", "where are you?")
            assert [(one.sender_id, one.text) for one in bob.history("alice")] == [(1, "where are you?")]


# Without gevent


def test_threads_are_as_the_environment_says() -> None:
    assert ("gevent" in sys.modules) != (UNPATCHED in os.environ)


@pytest.mark.skipif(UNPATCHED in os.environ, reason="this is that process")
def test_the_same_with_threads() -> None:
    run_unpatched(__file__)
