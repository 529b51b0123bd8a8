"""ChatClient against a server that follows a script, over real sockets.

The same tests run twice: as greenlets, and in a process without gevent, as threads.
"""

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from client import (
    Address,
    ChatClient,
    ChatRefused,
    ConnectionClosed,
    ConnectionFailed,
    ErrorReceived,
    LoginRefused,
    MessageReceived,
    ServerError,
    format_address,
    parse_address,
)
from protocol import (
    DEFAULT_PORT,
    MAX_TEXT_BYTES,
    LocalProtocolError,
    PacketType,
    Reason,
    encode,
    encode_error,
    encode_user,
    parse_login,
    parse_text,
    text_room,
)
from testkit.processes import UNPATCHED, run_unpatched
from testkit.scripted_server import QUIET_SECONDS, SECONDS, Peer, ScriptedServer, ServerStart, message
from testkit.server import ServerProcess
from testkit.wire import reset_on_close


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


@pytest.fixture
def pair(executor: ThreadPoolExecutor) -> Iterator[tuple[ChatClient, Peer]]:  # noqa: ARG001 - it waits for our calls
    """A client that is connected but not logged in, and the server's end."""
    with ScriptedServer() as server, ChatClient(server.host, server.port, SECONDS) as client, server.accept() as peer:
        yield client, peer


@pytest.fixture
def alice(pair: tuple[ChatClient, Peer], start: ServerStart) -> tuple[ChatClient, Peer]:
    """alice (2) is online with bob (1)."""
    client, peer = pair
    login = start(client.login, "alice")
    peer.log_in("alice", "bob")
    assert login.result(SECONDS) == 2
    return pair


@pytest.fixture
def chatting(alice: tuple[ChatClient, Peer], start: ServerStart) -> tuple[ChatClient, Peer]:
    """alice chats with bob."""
    client, peer = alice
    chat = start(client.chat, "bob")
    assert peer.expect(PacketType.CHAT_INIT) == bytes([1])
    peer.pong()
    assert chat.result(SECONDS) == 1
    return alice


@pytest.fixture
def start(executor: ThreadPoolExecutor) -> ServerStart:
    return ServerStart(executor)


def in_receive(client: ChatClient) -> None:
    """Wait until somebody has become the client's reader."""
    deadline = time.monotonic() + SECONDS
    while not client._connection._reading:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def fill(client: ChatClient) -> int:
    """Send until there is no room, as the server reads nothing; how many times the text went out whole."""
    sent = 0
    while True:
        try:
            client.send("x" * 10_000, timeout=QUIET_SECONDS)
        except TimeoutError:
            return sent
        sent += 1


# Logging in


def test_login_keeps_the_list_in_ascending_id_order(alice: tuple[ChatClient, Peer]) -> None:
    client, _ = alice
    assert (client.username, client.user_id) == ("alice", 2)
    assert list(client.online.items()) == [("bob", 1), ("alice", 2)]


def test_own_entry_comes_last_and_is_sorted_in(pair: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = pair
    login = start(client.login, "alice", "secret")
    assert parse_login(peer.expect(PacketType.CONFIG)) == ("alice", "secret", None)
    peer.send(encode_user("bob", 2, 1), encode_user("carol", 300, 2), encode_user("alice", 1, 4))
    assert login.result(SECONDS) == 1
    assert list(client.online.items()) == [("alice", 1), ("bob", 2), ("carol", 300)]


def test_list_split_into_bytes_and_mixed_with_messages(pair: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = pair
    login = start(client.login, "alice")
    peer.expect(PacketType.CONFIG)
    for byte in encode_user("bob", 1, 1) + message("bob", "hi: you") + encode_user("alice", 2, 1):
        peer.send(bytes([byte]))
    assert login.result(SECONDS) == 2
    assert client.receive() == MessageReceived("bob", "hi: you")


def test_refused_login_may_be_tried_again(pair: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = pair
    login = start(client.login, "alice")
    peer.refuse(PacketType.CONFIG, Reason.PASSWORD_REQUIRED)
    with pytest.raises(LoginRefused) as caught:
        login.result(SECONDS)
    assert caught.value.reason == Reason.PASSWORD_REQUIRED
    assert client.username == ""
    login = start(client.login, "alice", "secret")
    peer.log_in("alice")
    assert login.result(SECONDS) == 1


def test_last_refusal_before_the_server_closes_is_a_refusal(pair: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = pair
    login = start(client.login, "alice", "wrong")
    peer.refuse(PacketType.CONFIG, Reason.WRONG_PASSWORD)
    peer.close()
    with pytest.raises(LoginRefused):
        login.result(SECONDS)
    with pytest.raises(ConnectionClosed):
        client.login("alice", "wrong")


def test_refresh_replaces_the_list(alice: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = alice
    refresh = start(client.refresh)
    assert parse_login(peer.expect(PacketType.CONFIG)) == ("alice", "", None)
    peer.send(encode_user("carol", 3, 1), encode_user("alice", 2, 1))
    assert refresh.result(SECONDS) == client.online == {"alice": 2, "carol": 3}


def test_refused_refresh(alice: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = alice
    refresh = start(client.refresh)
    peer.refuse(PacketType.CONFIG, Reason.STORAGE_UNAVAILABLE)
    with pytest.raises(ServerError):
        refresh.result(SECONDS)


def test_login_that_times_out_does_not_answer_the_next_one(pair: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = pair
    with pytest.raises(TimeoutError):
        client.login("alice", "wrong", timeout=0.05)
    login = start(client.login, "alice", "right")
    peer.refuse(PacketType.CONFIG, Reason.WRONG_PASSWORD)
    peer.pong()
    peer.log_in("alice")
    assert login.result(SECONDS) == 1
    with pytest.raises(TimeoutError):
        client.receive(timeout=0)


def test_a_late_refusal_of_a_chat_is_not_taken_for_that_of_a_message(
    chatting: tuple[ChatClient, Peer], start: ServerStart
) -> None:
    client, peer = chatting
    client.send("to bob, who has left")
    with pytest.raises(TimeoutError):
        client.chat(7, timeout=0.05)
    ping = start(client.ping)
    peer.refuse(PacketType.MESSAGE, Reason.USER_NOT_ONLINE)
    peer.pong()
    peer.refuse(PacketType.CHAT_INIT, Reason.STORAGE_UNAVAILABLE)
    peer.pong()
    peer.pong()
    ping.result(SECONDS)
    assert client.receive() == ErrorReceived(Reason.USER_NOT_ONLINE)
    with pytest.raises(TimeoutError):
        client.receive(timeout=0)


# Choosing a partner


@pytest.mark.parametrize("partner", [1, "bob"])
def test_chat_returns_at_the_pong(alice: tuple[ChatClient, Peer], start: ServerStart, partner: int | str) -> None:
    client, peer = alice
    chat = start(client.chat, partner)
    assert peer.expect(PacketType.CHAT_INIT) == bytes([1])
    assert not chat.done()
    peer.pong()
    assert chat.result(SECONDS) == client.partner_id == 1


def test_refused_chat_keeps_the_old_partner(chatting: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = chatting
    chat = start(client.chat, 99)
    peer.refuse(PacketType.CHAT_INIT, Reason.USER_NOT_ONLINE)
    peer.pong()
    with pytest.raises(ChatRefused) as caught:
        chat.result(SECONDS)
    assert caught.value.reason == Reason.USER_NOT_ONLINE
    assert client.partner_id == 1


def test_error_of_an_earlier_message_is_no_answer_to_chat(
    chatting: tuple[ChatClient, Peer], start: ServerStart
) -> None:
    client, peer = chatting
    client.send("lost")
    chat = start(client.chat, 1)
    peer.refuse(PacketType.MESSAGE, Reason.USER_NOT_ONLINE)
    peer.pong()
    peer.expect(PacketType.CHAT_INIT)
    peer.pong()
    assert chat.result(SECONDS) == 1
    assert client.receive() == ErrorReceived(Reason.USER_NOT_ONLINE)


def test_error_of_a_later_message_is_an_event(chatting: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = chatting
    chat = start(client.chat, 2)
    peer.expect(PacketType.CHAT_INIT)
    client.send("lost")
    peer.pong()
    peer.refuse(PacketType.MESSAGE, Reason.USER_NOT_ONLINE)
    assert chat.result(SECONDS) == 2
    assert client.receive() == ErrorReceived(Reason.USER_NOT_ONLINE)


def test_there_is_no_partner_after_a_choice_that_was_not_answered_in_time(chatting: tuple[ChatClient, Peer]) -> None:
    client, peer = chatting
    with pytest.raises(TimeoutError):
        client.chat(2, timeout=0.05)
    peer.expect(PacketType.CHAT_INIT)  # handled later, when the client no longer waits for it
    with pytest.raises(LocalProtocolError):
        client.send("for whom?")


def test_an_invalid_id_keeps_the_old_partner(chatting: tuple[ChatClient, Peer]) -> None:
    client, _ = chatting
    before = client.partner_id
    with pytest.raises(LocalProtocolError):
        client.chat(2**32)
    assert client.partner_id == before > 0


def test_an_unknown_name_is_looked_up_once_more(alice: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = alice
    chat = start(client.chat, "carol")
    peer.log_in("alice", "bob")
    with pytest.raises(ChatRefused) as caught:
        chat.result(SECONDS)
    assert caught.value.reason == Reason.USER_NOT_ONLINE
    chat = start(client.chat, "carol")
    peer.log_in("alice", "bob", "carol")
    assert peer.expect(PacketType.CHAT_INIT) == bytes([2])
    peer.pong()
    assert chat.result(SECONDS) == 2


def test_ping_makes_earlier_errors_events(chatting: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = chatting
    client.send("lost")
    ping = start(client.ping)
    peer.refuse(PacketType.MESSAGE, Reason.USER_NOT_ONLINE)
    peer.pong()
    assert 0 < ping.result(SECONDS) < SECONDS
    assert client.receive(timeout=0) == ErrorReceived(Reason.USER_NOT_ONLINE)


# Sending and receiving


def test_text_goes_out_in_packets_that_arrive_whole(chatting: tuple[ChatClient, Peer]) -> None:
    client, peer = chatting
    text = "grüße " * 60
    pieces = [parse_text(peer.expect(PacketType.MESSAGE)) for _ in client.send(text)]
    assert b"".join(pieces).decode() == text
    assert max(map(len, pieces)) <= text_room("alice") == MAX_TEXT_BYTES - len("alice:")
    assert all(piece.decode() for piece in pieces)


def test_empty_text_is_a_message(chatting: tuple[ChatClient, Peer]) -> None:
    client, peer = chatting
    assert client.send("") == range(1, 2)
    assert parse_text(peer.expect(PacketType.MESSAGE)) == b""


def test_send_that_times_out_does_not_corrupt_the_stream(chatting: tuple[ChatClient, Peer]) -> None:
    client, peer = chatting
    sent = fill(client)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            client.send("not begun", timeout=0)
    pieces = []
    with ThreadPoolExecutor() as pool:
        last = pool.submit(client.send, "the end")
        while (piece := parse_text(peer.expect(PacketType.MESSAGE))) != b"the end":
            pieces.append(piece)
        last.result(SECONDS)
    assert b"not begun" not in pieces
    assert sent * 10_000 <= sum(map(len, pieces)) < (sent + 1) * 10_000


def test_send_goes_on_reading_while_it_waits_for_room(chatting: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = chatting
    fill(client)
    flood = message("bob", "y" * 100) * 20_000
    start(client.send, "and on")
    peer.send(flood)  # ends only if the client reads while its own send is blocked
    assert client.receive() == MessageReceived("bob", "y" * 100)
    while parse_text(peer.expect(PacketType.MESSAGE)) != b"and on":
        pass


def test_blocked_send_takes_over_from_a_reader_who_leaves(
    chatting: tuple[ChatClient, Peer], start: ServerStart
) -> None:
    client, peer = chatting
    fill(client)
    receive = start(client.receive, timeout=1)
    in_receive(client)
    start(client.send, "and on")
    with pytest.raises(TimeoutError):
        receive.result(SECONDS)
    peer.send(message("bob", "y" * 100) * 20_000)
    while parse_text(peer.expect(PacketType.MESSAGE)) != b"and on":
        pass


def test_calls_while_another_thread_receives(chatting: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = chatting
    receive = start(client.receive, timeout=None)
    in_receive(client)
    refresh = start(client.refresh)
    peer.log_in("alice", "bob", "carol")
    assert "carol" in refresh.result(SECONDS)
    chat = start(client.chat, "carol")
    peer.expect(PacketType.CHAT_INIT)
    peer.pong()
    assert chat.result(SECONDS) == 2
    assert not receive.done()
    peer.send(message("carol", "hello"))
    assert receive.result(SECONDS) == MessageReceived("carol", "hello")


def test_a_caller_continues_when_the_reading_caller_times_out(
    alice: tuple[ChatClient, Peer], start: ServerStart
) -> None:
    client, peer = alice
    receive = start(client.receive, timeout=1)
    in_receive(client)
    chat = start(client.chat, 1)
    peer.expect(PacketType.CHAT_INIT)
    with pytest.raises(TimeoutError):
        receive.result(SECONDS)
    peer.pong()
    assert chat.result(SECONDS) == 1


def test_events_keep_their_order(alice: tuple[ChatClient, Peer]) -> None:
    client, peer = alice
    peer.send(*(message("bob", str(number)) for number in range(1000)))
    assert [client.receive() for _ in range(1000)] == [MessageReceived("bob", str(number)) for number in range(1000)]
    with pytest.raises(TimeoutError):
        client.receive(timeout=0)


def test_receive_with_a_limit_of_zero_takes_what_is_there(alice: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = alice
    ping = start(client.ping)
    peer.pong()
    ping.result(SECONDS)
    peer.send(message("bob", "hi"))
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            assert client.receive(timeout=0) == MessageReceived("bob", "hi")
        except TimeoutError:
            continue
        return
    pytest.fail("nothing received")


def test_server_ping_is_answered(alice: tuple[ChatClient, Peer]) -> None:
    client, peer = alice
    peer.send(encode(PacketType.PING, b"one"), encode(PacketType.PING, b""), message("bob", "hi"))
    assert client.receive() == MessageReceived("bob", "hi")
    assert peer.expect(PacketType.PONG) == b"one"
    assert peer.expect(PacketType.PONG) == b""


def test_server_ping_is_answered_after_a_blocked_send(chatting: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = chatting
    fill(client)
    start(client.send, "and on")
    peer.send(encode(PacketType.PING, b"late"), message("bob", "hi"))
    assert client.receive() == MessageReceived("bob", "hi")
    while (received := peer.read())[0] != PacketType.PONG:
        assert received[0] == PacketType.MESSAGE
    assert received[1] == b"late"


# Ending


def test_error_that_closes_is_an_event_first(alice: tuple[ChatClient, Peer]) -> None:
    client, peer = alice
    peer.send(message("bob", "hi"), encode_error(Reason.TOO_SLOW))
    peer.close()
    assert client.receive() == MessageReceived("bob", "hi")
    assert client.receive() == ErrorReceived(Reason.TOO_SLOW)
    for _ in range(2):
        with pytest.raises(ConnectionClosed) as caught:
            client.receive()
        assert caught.value.reason == Reason.TOO_SLOW


def test_error_that_closes_ends_a_call(alice: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = alice
    chat = start(client.chat, 1)
    peer.refuse(PacketType.CHAT_INIT, Reason.SERVER_SHUTTING_DOWN)
    with pytest.raises(ConnectionClosed) as caught:
        chat.result(SECONDS)
    assert caught.value.reason == Reason.SERVER_SHUTTING_DOWN
    assert client.receive() == ErrorReceived(Reason.SERVER_SHUTTING_DOWN)


def test_send_to_a_broken_connection_finds_the_error_that_came(chatting: tuple[ChatClient, Peer]) -> None:
    client, peer = chatting
    fill(client)
    peer.send(encode_error(Reason.TOO_SLOW))
    reset_on_close(peer.connection)
    peer.close()
    with pytest.raises(ConnectionClosed) as caught:
        fill(client)
    assert caught.value.reason == Reason.TOO_SLOW


def test_server_closes_without_an_error(alice: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = alice
    waiting: list[Future[Any]] = [start(client.chat, 1), start(client.receive)]
    peer.expect(PacketType.CHAT_INIT)
    peer.close()
    for call in waiting:
        with pytest.raises(ConnectionClosed) as caught:
            call.result(SECONDS)
        assert caught.value.reason is None


def test_server_that_breaks_the_protocol(alice: tuple[ChatClient, Peer]) -> None:
    client, peer = alice
    peer.send(message("bob", "hi") + b"\x55\x00" + message("bob", "never read"))
    assert client.receive() == MessageReceived("bob", "hi")
    with pytest.raises(ConnectionClosed, match="broke the protocol"):
        client.receive()


def test_close_wakes_all_waiting_calls(chatting: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = chatting
    receive = start(client.receive, timeout=None)
    in_receive(client)
    fill(client)
    waiting: list[Future[Any]] = [receive, start(client.send, "x", timeout=None), start(client.ping, timeout=None)]
    client.close()
    client.close()
    for call in waiting:
        with pytest.raises(ConnectionClosed):
            call.result(SECONDS)
    with pytest.raises((EOFError, ConnectionResetError)):
        peer.read_to_the_end()


def test_stalling_server_times_out(alice: tuple[ChatClient, Peer]) -> None:
    client, _ = alice
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        client.chat(1, timeout=0.1)
    with pytest.raises(TimeoutError):
        client.receive(timeout=0.1)
    assert 0.2 <= time.monotonic() - begin < SECONDS


# With the real server


@pytest.mark.skipif(UNPATCHED in os.environ, reason="its fixture comes with gevent")
def test_two_clients_flood_each_other(server: ServerProcess, start: ServerStart) -> None:
    with ChatClient(server.host, server.port) as alice, ChatClient(server.host, server.port) as bob:
        alice.login("alice")
        bob.login("bob")
        alice.chat("bob")
        bob.chat("alice")
        text = "x" * 100_000
        sending = [start(client.send, text, timeout=None) for client in (alice, bob)]
        count = -(-len(text) // text_room("alice"))
        assert "".join(event.text for event in messages(bob, count)) == text
        assert sending[0].result(SECONDS) == range(1, count + 1)
        count = len(sending[1].result(SECONDS))
        assert "".join(event.text for event in messages(alice, count)) == text
        assert bob.refresh() == {"alice": 1, "bob": 2}


def messages(client: ChatClient, count: int) -> list[MessageReceived]:
    events = [client.receive() for _ in range(count)]
    return [event for event in events if isinstance(event, MessageReceived)]


# The caller's mistakes, addresses


def test_callers_mistakes(pair: tuple[ChatClient, Peer], start: ServerStart) -> None:
    client, peer = pair
    with pytest.raises(LocalProtocolError):
        client.chat(1)
    with pytest.raises(LocalProtocolError):
        client.refresh()
    for name in ("", "a b", "a:b", "x" * 33, "\udc80"):
        with pytest.raises(LocalProtocolError):
            client.login(name)
    for password in ("x" * 140, "\udc80"):
        with pytest.raises(LocalProtocolError):
            client.login("alice", password)
    login = start(client.login, "alice")
    peer.log_in("alice")
    login.result(SECONDS)
    with pytest.raises(LocalProtocolError):
        client.send("to nobody")
    for number in (0, 2**32):
        with pytest.raises(LocalProtocolError):
            client.chat(number)


def test_text_that_is_not_utf8(chatting: tuple[ChatClient, Peer]) -> None:
    client, peer = chatting
    with pytest.raises(LocalProtocolError):
        client.send("\udc80")
    client.send("fine")
    assert parse_text(peer.expect(PacketType.MESSAGE)) == b"fine"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients ask for a sign of life after a moment."""
    monkeypatch.setattr("chatclient.connection.QUIET_SECONDS", QUIET_SECONDS)


@pytest.mark.usefixtures("impatient")
def test_a_quiet_server_is_asked_for_a_sign_of_life(start: ServerStart) -> None:
    with ScriptedServer() as server, ChatClient(server.host, server.port, SECONDS) as client, server.accept() as peer:
        login = start(client.login, "alice")
        peer.log_in("alice", "bob")
        login.result(SECONDS)
        event = start(client.receive)
        for _ in range(3):
            peer.send(encode(PacketType.PONG, peer.expect(PacketType.PING)))
        peer.send(message("bob", "hi"))
        assert event.result(SECONDS) == MessageReceived("bob", "hi")


@pytest.mark.usefixtures("impatient")
def test_a_server_that_gives_no_sign_of_life_is_gone_also_where_tcp_does_not_tell(
    start: ServerStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("socket.TCP_USER_TIMEOUT", raising=False)
    with ScriptedServer() as server, ChatClient(server.host, server.port, SECONDS) as client, server.accept() as peer:
        login = start(client.login, "alice")
        peer.log_in("alice", "bob")
        login.result(SECONDS)
        with pytest.raises(ConnectionClosed, match="the server has not answered for"):
            client.receive()


@pytest.mark.usefixtures("impatient")
def test_a_server_without_a_free_place_is_not_asked_for_a_sign_of_life(start: ServerStart) -> None:
    """It reads nothing from who waits for a place, for as long as that takes."""
    with ScriptedServer() as server, ChatClient(server.host, server.port, SECONDS) as client, server.accept() as peer:
        waiting = start(client.ping)
        time.sleep(4 * QUIET_SECONDS)
        peer.pong()
        waiting.result(SECONDS)
        login = start(client.login, "alice")
        peer.log_in("alice", "bob")
        assert login.result(SECONDS) == 2


def test_nobody_answers() -> None:
    with ScriptedServer() as server:
        pass
    with pytest.raises(ConnectionFailed, match=rf"^nobody answers at {server.address} \(Connection refused\)$"):
        ChatClient(server.host, server.port)
    with pytest.raises(ConnectionFailed):
        ChatClient("a..b")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("chat.example", Address("chat.example", DEFAULT_PORT, tls=False)),
        ("chat.example:1", Address("chat.example", 1, tls=False)),
        ("tcp://chat.example:65535", Address("chat.example", 65535, tls=False)),
        ("tcp://chat.example", Address("chat.example", DEFAULT_PORT, tls=False)),
        ("tcp://chat.example:1/", Address("chat.example", 1, tls=False)),
        ("[::1]:9034", Address("::1", 9034, tls=False)),
        ("tcp://[::1]", Address("::1", DEFAULT_PORT, tls=False)),
        ("tls://chat.example", Address("chat.example", DEFAULT_PORT, tls=True)),
        ("tls://chat.example:1", Address("chat.example", 1, tls=True)),
        ("tls://[::1]:9034", Address("::1", 9034, tls=True)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(format_address(address.host, address.port)) == address._replace(tls=False)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "host is missing"),
        (":9034", "host is missing"),
        ("[]:9034", "host is missing"),
        ("host:", "not a port"),
        ("host:0", "not a port"),
        ("host:65536", "not a port"),
        ("host:٣", "not a port"),
        ("host:-1", "not a port"),
        ("::1", "brackets"),
        ("[::1", "not an address"),
        ("[::1]9034", "not an address"),
        ("tls://host:0", "not a port"),
        ("tls://", "host is missing"),
        ("http://host", "unknown"),
    ],
)
def test_bad_addresses(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_address(text)


# Without gevent


def test_threads_are_as_the_environment_says() -> None:
    assert ("gevent" in sys.modules) != (UNPATCHED in os.environ)


@pytest.mark.skipif(UNPATCHED in os.environ, reason="this is that process")
def test_the_same_with_threads() -> None:
    run_unpatched(__file__)
