"""A server with TLS keeps the same promises as without, whatever a client does with its records."""

import signal
import socket
import ssl
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import gevent
import pytest
import trustme

from chatserver.transport.tls import TlsStream, server_context
from client import ChatClient, ConnectionClosed, ConnectionFailed, tls_context
from protocol import Envelope, PacketType, Reason, encode, encode_error, encode_login, encode_message
from testkit.flood import BIG, RELAYED_BIG, Flood, stuck_pair
from testkit.ports import answers
from testkit.processes import DEADLINE, wait_for
from testkit.server import PATIENT, SERVER, ServerProcess, StartServer
from testkit.tls_wire import RECORD_BYTES, KeyUpdater, TlsWire, TracedTlsSocket, libssl
from testkit.wire import Wire

pytestmark = pytest.mark.measured

HOST = "127.0.0.1"
SLOW = ("--outbox-bytes", 100_000, "--write-timeout", 60)
PING, PONG = encode(PacketType.PING, b"!"), (PacketType.PONG, b"!")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and server.pem with a key, for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    return folder


@pytest.fixture(params=[pytest.param("TLSv1_2", marks=pytest.mark.slow), "TLSv1_3"])
def trust(request: pytest.FixtureRequest, folder: Path) -> ssl.SSLContext:
    """A client's context with this version as the newest that it knows."""
    context = tls_context(folder / "ca.pem")
    context.maximum_version = ssl.TLSVersion[request.param]
    return context


@pytest.fixture
def start_tls(start_server: StartServer, folder: Path, trust: ssl.SSLContext) -> StartServer:
    """Starts servers whose clients speak TLS."""

    def start(*options: object, program: Sequence[str] = SERVER) -> ServerProcess:
        server = start_server("--tls-cert", folder / "server.pem", *options, program=program)
        server.wire = partial(TlsWire, trust=trust)
        return server

    return start


def log_in_tls(server: ServerProcess, name: str) -> TlsWire:
    wire = server.log_in(name)
    assert isinstance(wire, TlsWire)
    return wire


def half_a_handshake(server: ServerProcess, trust: ssl.SSLContext) -> TracedTlsSocket:
    client = TracedTlsSocket(socket.create_connection((server.host, server.port), DEADLINE), trust)
    hello = client.hello()
    client.send_records(and_then=hello[: len(hello) // 2])
    return client


# Records


def test_both_use_the_newest_version_that_both_know(start_tls: StartServer, trust: ssl.SSLContext) -> None:
    wire = log_in_tls(start_tls(), "alice")
    assert wire.tls.tls.version() == trust.maximum_version.name.replace("_", ".")
    wire.expect_pong()


def test_a_handshake_and_a_login_byte_by_byte(start_tls: StartServer, trust: ssl.SSLContext) -> None:
    server = start_tls()
    with TlsWire(server.host, server.port, trust, step=1) as client:
        for byte in encode_login("alice"):  # one packet in many records
            client.send(bytes([byte]))
        client.read_list("alice")
        client.expect_pong()


def test_many_packets_may_share_a_record_and_one_may_cross_two(start_tls: StartServer) -> None:
    server = start_tls()
    bob, alice = server.log_in("bob"), log_in_tls(server, "alice")
    alice.chat_with(1)
    texts = [f"{number:06}" for number in range(5000)]
    stream = b"".join(encode_message(text.encode()) for text in texts)
    assert RECORD_BYTES % len(encode_message(b"000000")), "a packet crosses the border of two records"
    alice.send(stream)
    for text in texts:
        bob.expect_message(f"alice:{text}")


def test_many_records_in_one_segment_are_all_handled(start_tls: StartServer) -> None:
    alice = log_in_tls(start_tls(), "alice")
    for _ in range(300):
        alice.tls.tls.write(PING)
    alice.tls.send_records()
    for _ in range(300):
        assert alice.read() == PONG


# Ends


def test_a_tls_goodbye_ends_the_input_though_tcp_stays_open(start_tls: StartServer) -> None:
    server = start_tls()
    alice = log_in_tls(server, "alice")
    alice.tls.tls.write(PING)
    alice.tls.say_goodbye()
    alice.tls.send_records()  # in one segment: what precedes it is still handled
    assert alice.read() == PONG
    alice.expect_end()
    server.wait_for_log("alice disconnected: left")


def test_a_bare_fin_ends_the_input_and_the_answers_still_arrive(start_tls: StartServer) -> None:
    server = start_tls()
    alice = server.log_in("alice")
    alice.send(PING)
    alice.half_close()
    assert alice.read() == PONG
    alice.expect_end()  # with a goodbye
    server.wait_for_log("alice disconnected: left")


def test_data_before_a_broken_record_is_handled_and_the_log_gives_the_cause(start_tls: StartServer) -> None:
    server = start_tls()
    bob, alice = server.log_in("bob"), log_in_tls(server, "alice")
    alice.chat_with(1)
    alice.tls.tls.write(encode_message(b"the last"))
    alice.tls.send_records(and_then=b"\x17\x03\x03\x00\x20" + bytes(32))
    bob.expect_message("alice:the last")
    server.wait_for_log("alice disconnected: TLS failed: ")
    bob.expect_pong()


def test_a_closing_error_arrives_although_more_is_sent(start_tls: StartServer) -> None:
    client = start_tls().connect()
    client.send(b"\x00\x00", bytes(100_000))
    client.expect_error(Reason.UNKNOWN_PACKET_TYPE)
    client.expect_end()


def test_a_server_that_stops_delivers_what_is_queued_before_its_goodbye(start_tls: StartServer) -> None:
    server = start_tls(*SLOW, "--drain", 20)
    reader, sender, _ = stuck_pair(server)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for_log("shutting down")
    goodbye = encode_error(Reason.SERVER_SHUTTING_DOWN)
    delivered = 0
    while (packet := reader.read()) == (RELAYED_BIG[0], RELAYED_BIG[2:]):
        delivered += 1
    assert packet == (goodbye[0], goodbye[2:])
    reader.expect_end()
    reader.close()
    assert delivered > 0
    sender.expect_error(Reason.SERVER_SHUTTING_DOWN)
    sender.close()
    assert server.process.wait(DEADLINE) == 0
    assert "were never sent" not in server.log


# Back-pressure


def test_a_sender_whose_partner_does_not_read_is_throttled_and_nothing_is_lost(start_tls: StartServer) -> None:
    server = start_tls("--outbox-bytes", 4096, "--write-timeout", 60)
    reader, sender, flood = stuck_pair(server, timeout=1)
    ending = gevent.spawn(flood.end, encode_message(b"the end"))  # meanwhile we read: a whole record may wait for room
    delivered = 0
    while (packet := reader.read()) == (RELAYED_BIG[0], RELAYED_BIG[2:]):
        delivered += 1
    assert packet == (PacketType.MESSAGE, encode_message(b"sender:the end")[2:])
    assert delivered == ending.get()
    sender.expect_pong()


@pytest.mark.parametrize("outbox_bytes", [4096, 100_000])
def test_a_reader_that_never_reads_gets_the_record_in_flight_and_is_too_slow(
    start_tls: StartServer, outbox_bytes: int
) -> None:
    server = start_tls("--outbox-bytes", outbox_bytes, "--write-timeout", 1, program=PATIENT)
    stuck, sender = server.log_in("stuck"), server.log_in("sender")
    sender.chat_with(1)
    flood = Flood(sender, BIG)
    while "stuck disconnected: Too Slow" not in server.log:
        flood.push(0.05)
    too_slow = (PacketType.ERROR, encode_error(Reason.TOO_SLOW)[2:])
    delivered = 0
    while (packet := stuck.read()) != too_slow:  # only whole packets
        assert packet == (RELAYED_BIG[0], RELAYED_BIG[2:])
        delivered += 1
    assert delivered > 0
    stuck.expect_end()


@pytest.mark.slow
def test_a_reader_that_is_slow_but_steady_is_not_too_slow(start_tls: StartServer, trust: ssl.SSLContext) -> None:
    server = start_tls("--outbox-bytes", 4096, "--write-timeout", 2)
    reader = TlsWire(HOST, server.port, trust, receive_buffer=2304)
    reader.send(encode_login("reader"))
    reader.read_list("reader")
    sender = server.log_in("sender")
    sender.chat_with(1)
    Flood(sender, BIG).until_stuck(0.2)
    for _ in range(80):  # at 10 kB a second the kernel's buffer is not a third free within the write timeout
        assert socket.socket.recv(reader.tls, 500)  # records, unread
        time.sleep(0.05)
    assert "Too Slow" not in server.log
    reader.close()


def test_a_client_that_asks_for_key_updates_without_reading_is_disconnected(start_tls: StartServer) -> None:
    library = libssl()
    if library is None:
        pytest.skip("there is no shared OpenSSL, and Python's ssl cannot ask for new keys")
    server = start_tls("--login-timeout", 2 * DEADLINE)  # it does not log in
    bystander = server.log_in("bystander")
    updater = KeyUpdater(library, socket.create_connection((server.host, server.port), DEADLINE))
    end = time.monotonic() + DEADLINE
    while updater.ask() and "asks for TLS messages without" not in server.log:
        assert time.monotonic() < end, "the server keeps every answer"
    server.wait_for_log("disconnected: asks for TLS messages without reading them")
    updater.close()
    bystander.expect_pong()


# Before the login


def test_a_client_that_vanishes_in_mid_handshake_frees_its_place(start_tls: StartServer, trust: ssl.SSLContext) -> None:
    server = start_tls("--pool-size", 1)
    half_a_handshake(server, trust).close()
    server.wait_for_log("disconnected: left")
    server.log_in("alice").expect_pong()


def test_the_login_timeout_covers_an_unfinished_handshake(start_tls: StartServer, trust: ssl.SSLContext) -> None:
    server = start_tls("--login-timeout", 6)
    idlers = [half_a_handshake(server, trust) for _ in range(20)]  # all places
    server.log_in("alice").expect_pong()
    assert server.log.count("disconnected: Login Timeout") > 0
    wait_for("the end of them all", lambda: server.log.count("disconnected: Login Timeout") == len(idlers))


def test_a_client_that_only_shook_hands_gets_the_login_timeout_error(start_tls: StartServer) -> None:
    client = start_tls("--login-timeout", 5).connect()
    client.expect_error(Reason.LOGIN_TIMEOUT)
    client.expect_end()


def test_a_client_without_a_place_waits_in_its_handshake(start_tls: StartServer, trust: ssl.SSLContext) -> None:
    server = start_tls("--pool-size", 1)
    alice = server.log_in("alice")
    with pytest.raises(ConnectionFailed, match="did not finish the TLS handshake in time"):
        ChatClient(HOST, server.port, 2, trust)
    alice.close()
    with ChatClient(HOST, server.port, DEADLINE, trust) as bob:
        bob.login("bob")


def test_a_client_program_without_tls_gets_a_helpful_error(start_tls: StartServer) -> None:
    server = start_tls()
    with (
        ChatClient(HOST, server.port, DEADLINE) as client,
        pytest.raises(ConnectionClosed, match=r"does it speak TLS\? try tls://$"),
    ):
        client.login("alice")
    server.wait_for_log("disconnected: speaks no TLS")


@pytest.mark.parametrize("beginning", [PING[:1], b"GET / HTTP/1.1\r\n\r\n", bytes(70_000)])
def test_input_that_is_not_tls_gets_an_alert_at_once(start_tls: StartServer, beginning: bytes) -> None:
    server = start_tls("--log-level", "debug")
    with Wire(HOST, server.port) as client:
        client.send(beginning)
        assert client.socket.recv(100) == b"\x15\x03\x01\x00\x02\x02\x46"
        assert client.socket.recv(100) == b""
    assert server.stop() == 0
    assert "connection broke before its end: speaks no TLS" not in server.log, (
        "its input is discarded, or a reset would follow"
    )


def test_tls_1_1_is_refused(start_tls: StartServer) -> None:
    server = start_tls()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")  # otherwise this client refuses it itself
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="TLSV1_ALERT_PROTOCOL_VERSION"):
        TlsWire(HOST, server.port, old)
    server.wait_for_log("disconnected: TLS failed: unsupported protocol")


# Without a server


def test_the_context_is_as_strong_as_pythons_default(folder: Path) -> None:
    ours = server_context(folder / "server.pem")
    default = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    assert ours.minimum_version == ssl.TLSVersion.TLSv1_2
    assert ours.get_ciphers() == default.get_ciphers()
    assert ours.options & default.options == default.options
    assert ours.options & ssl.OP_NO_RENEGOTIATION
    assert ours.options & ssl.OP_NO_COMPRESSION


def test_nothing_is_sent_before_the_handshake_is_done(folder: Path) -> None:
    near, far = socket.socketpair()
    with near, far:
        near.settimeout(0.0)
        stream = TlsStream(near, server_context(folder / "server.pem"))
        with pytest.raises(OSError, match="no TLS handshake yet") as caught:
            stream.send(encode_error(Reason.LOGIN_TIMEOUT))
        assert not isinstance(caught.value, BlockingIOError), "a writer that waits for room would spin"
        far.setblocking(False)
        with pytest.raises(BlockingIOError):
            far.recv(1)


def test_a_record_without_room_is_counted_once_it_is_sent(folder: Path, trust: ssl.SSLContext) -> None:
    near, far = socket.socketpair()
    near.settimeout(0.0)
    stream = TlsStream(near, server_context(folder / "server.pem"))
    client = TracedTlsSocket(far, trust)
    client.settimeout(0.0)
    while not stream_is_ready(stream, client):
        pass
    data = Envelope("a").wrap(b"x" * 100) * 10_000
    sent, received, waited = 0, b"", 0
    while sent < len(data):
        try:
            sent += stream.send(data[sent:])
        except BlockingIOError:
            assert stream.encrypted == min(RECORD_BYTES, len(data) - sent)
            waited += 1
            received += read_some(client)
    while len(received) < len(data):
        received += read_some(client)
    assert received == data
    assert waited > 0
    assert stream.encrypted == 0
    stream.close()
    client.close()


def test_a_record_that_can_no_longer_be_sent_is_not_counted(folder: Path, trust: ssl.SSLContext) -> None:
    near, far = socket.socketpair()
    near.settimeout(0.0)
    stream = TlsStream(near, server_context(folder / "server.pem"))
    with TracedTlsSocket(far, trust) as client:
        client.settimeout(0.0)
        while not stream_is_ready(stream, client):
            pass
        with suppress(BlockingIOError):
            while True:
                stream.send(bytes(RECORD_BYTES))
        assert stream.encrypted == RECORD_BYTES
    with pytest.raises(BrokenPipeError):
        stream.send(bytes(RECORD_BYTES))
    assert stream.encrypted == 0
    stream.close()


def stream_is_ready(stream: TlsStream, client: TracedTlsSocket) -> bool:
    """Take one step of a handshake in one thread; whether the handshake is done."""
    for step in (client.shake_hands, partial(stream.recv, 65536)):
        try:
            step()
        except BlockingIOError:
            continue
    return stream.version() is not None


def read_some(client: TracedTlsSocket) -> bytes:
    try:
        return client.recv(65536)
    except BlockingIOError:
        return b""


def test_a_server_with_tls_says_so_in_its_log(start_tls: StartServer) -> None:
    server = start_tls()
    assert f"with TLS, listening on {server.address}\n" in server.log
    assert answers(server.port)
