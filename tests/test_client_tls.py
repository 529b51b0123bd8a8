"""ChatClient and the terminal program over TLS: to the real server, and to one that follows a script.

The same tests run twice: as greenlets, and in a process without gevent, as threads.
"""

import os
import select
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from client import (
    ChatClient,
    ConnectionClosed,
    ConnectionFailed,
    ErrorReceived,
    Event,
    MessageReceived,
    format_address,
    parse_address,
    tls_context,
)
from protocol import PacketType, Reason, encode, encode_error, encode_user, parse_text
from testkit.ports import free_port
from testkit.processes import DEADLINE, UNPATCHED, run_unpatched
from testkit.programs import Program, ScreenProgram
from testkit.scripted_server import QUIET_SECONDS, Peer, ScriptedServer, message
from testkit.server import ServerProcess, run_server
from testkit.wire import reset_on_close

pytestmark = pytest.mark.slow

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def trust(ca_file: Path) -> ssl.SSLContext:
    return tls_context(ca_file)


@pytest.fixture
def certificate(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "certificate.pem"
    authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


@pytest.fixture
def chat_server(certificate: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    """The real server."""
    with run_server(tmp_path / "data", "--tls-cert", certificate) as server:
        yield server


@pytest.fixture
def port(chat_server: ServerProcess) -> int:
    return chat_server.port


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as executor:
        yield executor


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def chatting(
    request: pytest.FixtureRequest, authority: trustme.CA, trust: ssl.SSLContext, pool: ThreadPoolExecutor
) -> Iterator[tuple[ChatClient, Peer]]:
    """alice (2) chats with bob (1), and the server's end of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = request.param
    authority.issue_cert(HOST).configure_cert(context)
    with ScriptedServer() as server:
        connecting = pool.submit(ChatClient, server.host, server.port, DEADLINE, trust)
        connection = server.accept().connection
        connection.settimeout(DEADLINE)
        peer = Peer(context.wrap_socket(connection, server_side=True, suppress_ragged_eofs=False))
        with connecting.result(DEADLINE) as client, peer:
            login = pool.submit(client.login, "alice")
            peer.log_in("alice", "bob")
            assert login.result(DEADLINE) == 2
            chat = pool.submit(client.chat, 1)
            peer.expect(PacketType.CHAT_INIT)
            peer.pong()
            assert chat.result(DEADLINE) == 1
            yield client, peer


def wait_for_data(client: ChatClient) -> None:
    """Until something has come that nobody has read."""
    poll = select.poll()
    poll.register(client._connection._socket, select.POLLIN)
    assert poll.poll(DEADLINE * 1000)


def fill(client: ChatClient) -> str:
    """Send numbers until there is no room, as the server reads nothing; what went out whole."""
    texts: list[str] = []
    while True:
        text = "".join(f"{len(texts)}-{number} " for number in range(20_000))
        try:
            client.send(text, timeout=QUIET_SECONDS)
        except TimeoutError:
            return "".join(texts)
        texts.append(text)


def read_up_to(peer: Peer, last: str) -> str:
    """All texts before the last one."""
    texts = []
    while (text := parse_text(peer.expect(PacketType.MESSAGE)).decode()) != last:
        texts.append(text)
    return "".join(texts)


def is_reading(client: ChatClient) -> None:
    deadline = time.monotonic() + DEADLINE
    while not client._connection._reading:
        assert time.monotonic() < deadline
        time.sleep(0.001)


# With the real server


def test_two_people_chat(port: int, trust: ssl.SSLContext) -> None:
    with ChatClient(HOST, port, tls=trust) as alice, ChatClient(HOST, port, tls=trust) as bob:
        assert alice.login("alice") == 1
        assert bob.login("bob") == 2
        assert alice.chat("bob") == 2
        assert bob.chat("alice") == 1
        alice.send("hello")
        assert bob.receive() == MessageReceived("alice", "hello")
        bob.send("grüße")
        assert alice.receive() == MessageReceived("bob", "grüße")
        assert 0 < alice.ping() < DEADLINE


def test_the_address_of_a_client_can_be_read_again(port: int, trust: ssl.SSLContext) -> None:
    with ChatClient(HOST, port, tls=trust) as client:
        assert parse_address(client.address) == (HOST, port, True)


def test_two_clients_that_flood_each_other_lose_nothing(
    port: int, trust: ssl.SSLContext, pool: ThreadPoolExecutor
) -> None:
    with ChatClient(HOST, port, DEADLINE, trust) as alice, ChatClient(HOST, port, DEADLINE, trust) as bob:
        alice.login("alice")
        bob.login("bob")
        alice.chat("bob")
        bob.chat("alice")
        text = "".join(f"{number} " for number in range(120_000))
        receiving = [pool.submit(read_all, client, len(text)) for client in (alice, bob)]
        sending = [pool.submit(client.send, text, timeout=None) for client in (alice, bob)]
        for sent in sending:
            assert len(sent.result(2 * DEADLINE)) > 5000
        for received in receiving:
            assert received.result(2 * DEADLINE) == text
        assert alice.ping() > 0


def test_a_client_that_sends_without_reading_gets_everything_afterwards(
    port: int, trust: ssl.SSLContext, pool: ThreadPoolExecutor
) -> None:
    with ChatClient(HOST, port, DEADLINE, trust) as alice, ChatClient(HOST, port, DEADLINE, trust) as bob:
        alice.login("alice")
        bob.login("bob")
        alice.chat("bob")
        bob.chat("alice")
        texts = ["".join(f"{number} " for number in range(start, start + 10)) for start in range(0, 30_000, 10)]
        for sent in [pool.submit(send_all, client, texts) for client in (alice, bob)]:
            sent.result(2 * DEADLINE)
        for client in (alice, bob):
            assert read_all(client, sum(map(len, texts))) == "".join(texts)


def send_all(client: ChatClient, texts: list[str]) -> None:
    for text in texts:
        client.send(text)


def read_all(client: ChatClient, length: int) -> str:
    received = ""
    while len(received) < length:
        event = client.receive()
        assert isinstance(event, MessageReceived), event
        received += event.text
    return received


def test_server_that_shuts_down_says_so(chat_server: ServerProcess, port: int, trust: ssl.SSLContext) -> None:
    with ChatClient(HOST, port, DEADLINE, trust) as client:
        client.login("alice")
        assert chat_server.stop() == 0
        assert client.receive() == ErrorReceived(Reason.SERVER_SHUTTING_DOWN)
        with pytest.raises(ConnectionClosed):
            client.receive()


# With a script


def test_list_that_fills_many_records(chatting: tuple[ChatClient, Peer], pool: ThreadPoolExecutor) -> None:
    client, peer = chatting
    refresh = pool.submit(client.refresh)
    peer.expect(PacketType.CONFIG)
    names = [f"{number:0>32}" for number in range(1, 10_000)]
    peer.send(*(encode_user(name, int(name), 4) for name in names), encode_user("alice", 2, 4))
    users = refresh.result(DEADLINE)
    assert len(users) == 10_000
    assert users[names[-1]] == 9_999


@pytest.mark.skipif(not hasattr(socket, "TCP_CORK"), reason="nothing else makes one segment of several records")
def test_a_limit_of_zero_takes_all_records_of_a_segment(chatting: tuple[ChatClient, Peer]) -> None:
    client, peer = chatting
    peer.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    for byte in message("bob", "one") + message("bob", "two"):
        peer.send(bytes([byte]))
    peer.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    wait_for_data(client)
    assert client.receive(timeout=0) == MessageReceived("bob", "one")
    assert client.receive(timeout=0) == MessageReceived("bob", "two")
    with pytest.raises(TimeoutError):
        client.receive(timeout=0)


def test_a_limit_of_zero_takes_all_of_a_big_record(chatting: tuple[ChatClient, Peer]) -> None:
    client, peer = chatting
    texts = [f"{number:100}" for number in range(150)]
    data = b"".join(message("bob", text) for text in texts)
    assert len(data) < 2**14
    peer.send(data)
    wait_for_data(client)
    expected: list[Event] = [MessageReceived("bob", text) for text in texts]
    assert client.receive() == expected[0]  # the segments of one record may come one by one
    assert [client.receive(timeout=0) for _ in texts[1:]] == expected[1:]


def test_more_than_one_read_takes_is_not_left_inside(chatting: tuple[ChatClient, Peer]) -> None:
    client, peer = chatting
    texts = [f"{number:100}" for number in range(3000)]
    peer.send(*(message("bob", text) for text in texts))
    assert [client.receive() for _ in texts] == [MessageReceived("bob", text) for text in texts]


def test_send_that_times_out_does_not_corrupt_the_stream(
    chatting: tuple[ChatClient, Peer], pool: ThreadPoolExecutor
) -> None:
    client, peer = chatting
    whole = fill(client)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            client.send("not begun", timeout=0)
    last = pool.submit(client.send, "the end")
    received = read_up_to(peer, "the end")
    last.result(DEADLINE)
    assert received.startswith(whole)
    assert "not begun" not in received


def test_timeouts_in_the_middle_of_everything(chatting: tuple[ChatClient, Peer], pool: ThreadPoolExecutor) -> None:
    client, peer = chatting
    texts = [f"<{number}>" * 60 for number in range(2000)]

    def send() -> list[str]:
        refused = []
        for text in texts:
            try:
                client.send(text, timeout=0)
            except TimeoutError:
                refused.append(text)
        client.send("the end")
        return refused

    sending = pool.submit(send)
    received = read_up_to(peer, "the end")
    refused = set(sending.result(DEADLINE))
    at = 0
    for text in texts:
        if text not in refused:
            at = received.index(text, at) + len(text)


def test_server_ping_is_answered_after_a_blocked_send(
    chatting: tuple[ChatClient, Peer], pool: ThreadPoolExecutor
) -> None:
    client, peer = chatting
    fill(client)
    sending = pool.submit(client.send, "and on")
    peer.send(encode(PacketType.PING, b"late"), message("bob", "hi"))
    assert client.receive() == MessageReceived("bob", "hi")
    while (received := peer.read())[0] != PacketType.PONG:
        assert received[0] == PacketType.MESSAGE
    assert received[1] == b"late"
    sending.result(DEADLINE)


def test_server_closes_without_an_error(chatting: tuple[ChatClient, Peer], pool: ThreadPoolExecutor) -> None:
    client, peer = chatting
    waiting: list[Future[Any]] = [pool.submit(client.ping), pool.submit(client.receive)]
    peer.expect(PacketType.PING)
    peer.close()
    for call in waiting:
        with pytest.raises(ConnectionClosed, match=r"^the server closed the connection$"):
            call.result(DEADLINE)


def test_server_says_goodbye_after_its_last_message(chatting: tuple[ChatClient, Peer]) -> None:
    client, peer = chatting
    assert isinstance(peer.connection, ssl.SSLSocket)
    peer.send(message("bob", "bye"))
    peer.connection.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):  # it waits for our goodbye, and does not close before
        peer.connection.unwrap()
    assert client.receive() == MessageReceived("bob", "bye")
    with pytest.raises(ConnectionClosed, match=r"^the server closed the connection$"):
        client.receive()


def test_send_to_a_broken_connection_finds_the_error_that_came(chatting: tuple[ChatClient, Peer]) -> None:
    client, peer = chatting
    fill(client)
    peer.send(encode_error(Reason.TOO_SLOW))
    reset_on_close(peer.connection)
    peer.close()
    with pytest.raises(ConnectionClosed) as caught:
        fill(client)
    assert caught.value.reason == Reason.TOO_SLOW


def test_data_that_is_not_encrypted_ends_the_connection(chatting: tuple[ChatClient, Peer]) -> None:
    client, peer = chatting
    os.write(peer.connection.fileno(), message("bob", "in the clear"))
    with pytest.raises(ConnectionClosed, match=r"^the connection broke \(wrong version number\)$"):
        client.receive()


def test_close_says_goodbye(chatting: tuple[ChatClient, Peer]) -> None:
    client, peer = chatting
    client.close()
    with pytest.raises(EOFError):  # and no SSLEOFError
        peer.read()


def test_close_wakes_all_waiting_calls(chatting: tuple[ChatClient, Peer], pool: ThreadPoolExecutor) -> None:
    client, _ = chatting
    receive = pool.submit(client.receive, timeout=None)
    is_reading(client)
    fill(client)
    waiting: list[Future[Any]] = [receive, pool.submit(client.send, "x", None), pool.submit(client.ping, None)]
    client.close()
    client.close()
    for call in waiting:
        with pytest.raises(ConnectionClosed):
            call.result(DEADLINE)


# No connection


def test_certificate_of_an_unknown_authority_is_refused(port: int) -> None:
    trust = tls_context()
    with pytest.raises(ConnectionFailed) as caught:
        ChatClient(HOST, port, tls=trust)
    where = format_address(HOST, port)
    assert str(caught.value).startswith(f"the certificate of {where} is not trusted (")
    assert "--tls-ca FILE" in str(caught.value)


def test_certificate_for_another_name_is_refused(authority: trustme.CA, trust: ssl.SSLContext, tmp_path: Path) -> None:
    path = tmp_path / "other.pem"
    authority.issue_cert("chat.example").private_key_and_cert_chain_pem.write_to_path(str(path))
    with run_server(tmp_path / "data", "--tls-cert", path) as server:
        for host in (HOST, "localhost"):
            where = f"{host}:{server.port}"
            with pytest.raises(ConnectionFailed, match=rf"^the certificate of {where} is for another name \("):
                ChatClient(host, server.port, tls=trust)


def test_certificate_that_has_expired_is_refused(authority: trustme.CA, trust: ssl.SSLContext, tmp_path: Path) -> None:
    path = tmp_path / "old.pem"
    old = authority.issue_cert(HOST, not_after=datetime(2020, 1, 1, tzinfo=UTC))
    old.private_key_and_cert_chain_pem.write_to_path(str(path))
    with (
        run_server(tmp_path / "data", "--tls-cert", path) as server,
        pytest.raises(ConnectionFailed, match=r"^the certificate of .* is not valid \(certificate has expired\)$"),
    ):
        ChatClient(HOST, server.port, tls=trust)


def test_server_that_does_not_speak_tls(trust: ssl.SSLContext, tmp_path: Path) -> None:
    with (
        run_server(tmp_path / "data") as server,
        pytest.raises(ConnectionFailed, match=rf"^{server.address} does not speak TLS \("),
    ):
        ChatClient(HOST, server.port, tls=trust)


def test_server_that_closes_instead_of_a_handshake(trust: ssl.SSLContext, pool: ThreadPoolExecutor) -> None:
    with ScriptedServer() as server:
        connecting = pool.submit(ChatClient, server.host, server.port, DEADLINE, trust)
        with server.accept() as peer:
            peer.connection.recv(1, socket.MSG_PEEK)
        with pytest.raises(ConnectionFailed, match=rf"^the TLS handshake with {server.address} failed \("):
            connecting.result(DEADLINE)


@pytest.mark.parametrize("beginning", [b"", b"\x16\x03\x03"])
def test_server_that_does_not_go_on_with_the_handshake(
    beginning: bytes, trust: ssl.SSLContext, pool: ThreadPoolExecutor
) -> None:
    with ScriptedServer() as server:
        connecting = pool.submit(ChatClient, server.host, server.port, 0.3, trust)
        with server.accept() as peer:
            peer.send(beginning)
            with pytest.raises(ConnectionFailed, match=rf"^{server.address} did not finish the TLS handshake in time$"):
                connecting.result(DEADLINE)


def test_nobody_answers(trust: ssl.SSLContext) -> None:
    with ScriptedServer() as server:
        pass
    with pytest.raises(ConnectionFailed, match=rf"^nobody answers at {server.address} \(Connection refused\)$"):
        ChatClient(server.host, server.port, tls=trust)


def test_context_verifies_names_and_refuses_old_versions(ca_file: Path) -> None:
    for context in (tls_context(), tls_context(ca_file), tls_context(str(ca_file))):
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert len(tls_context(ca_file).get_ca_certs()) == 1


@pytest.mark.parametrize("name", ["missing.pem", "no-certificate.pem", "."])
def test_authority_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "no-certificate.pem").write_text("hello\n")
    with pytest.raises(ValueError, match=rf"^no certificates in {tmp_path / name} \(.+\)$"):
        tls_context(tmp_path / name)


# The terminal program


def test_lines_of_a_script(port: int, ca_file: Path, trust: ssl.SSLContext) -> None:
    with (
        ChatClient(HOST, port, DEADLINE, trust) as bob,
        Program("terminal.py", "--tls-ca", ca_file, "alice", f"tls://{HOST}:{port}", environment={}) as alice,
    ):
        bob.login("bob")
        alice.wait_for(rf"^\* logged in at tls://{HOST}:{port} as alice")
        bob.chat("alice")
        bob.send("hello")
        alice.wait_for("^bob: hello$")
        alice.type("/chat bob\nand back\n")
        alice.end_input()
        assert alice.wait() == 0, alice.text
        assert bob.receive() == MessageReceived("alice", "and back")


def test_untrusted_certificate_ends_the_program(port: int, ca_file: Path) -> None:
    address = f"tls://{HOST}:{port}"
    with Program("terminal.py", "alice", address, environment={}) as alice:
        assert alice.wait() == 1
        assert alice.text.startswith(f"! the certificate of {HOST}:{port} is not trusted (")
        assert alice.text.endswith("--tls-ca FILE names an authority to trust\n")
        assert alice.text.count("\n") == 1
    with Program("terminal.py", "alice", address, environment={"CHAT_TLS_CA": str(ca_file)}) as alice:
        alice.end_input()
        assert alice.wait() == 0, alice.text


def test_reconnects(certificate: Path, ca_file: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        options = ("--tls-cert", certificate, "--port", free_port())
        server = stack.enter_context(run_server(tmp_path / "data", *options))
        alice = stack.enter_context(
            ScreenProgram(
                "terminal.py",
                "--tls-ca",
                ca_file,
                "alice",
                f"tls://{server.address}",
                environment={"HOME": str(tmp_path)},
            )
        )
        alice.wait_for("^alice>$")
        alice.type("/chat alice\r")
        alice.wait_for("^alice -> alice>$")
        assert server.stop() == 0
        alice.wait_for("reconnecting\nalice -> alice>$")
        stack.enter_context(run_server(tmp_path / "data", *options))
        alice.wait_for(r"^\* connected again\n\* online: alice \(you\)\nalice -> alice>$")
        alice.type("and back\r")
        alice.wait_for("^alice: and back$")


# Without gevent


def test_threads_are_as_the_environment_says() -> None:
    assert ("gevent" in sys.modules) != (UNPATCHED in os.environ)


@pytest.mark.skipif(UNPATCHED in os.environ, reason="this is that process")
def test_the_same_with_threads() -> None:
    run_unpatched(__file__)
