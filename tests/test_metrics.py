"""What an operator's tools read over HTTP: every figure, by what real clients do, and the server that serves them."""

import socket
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from chatserver.operations.metrics import REQUEST_SECONDS
from protocol import (
    PacketType,
    Reason,
    encode,
    encode_chat_init,
    encode_error,
    encode_login,
    encode_message,
    encode_user,
)
from testkit.flood import BIG, RELAYED_BIG, stuck_pair
from testkit.processes import DEADLINE, wait_for
from testkit.server import PATIENT, ServerProcess, StartServer, run_to_end
from testkit.wire import Wire, reset_on_close

pytestmark = pytest.mark.measured

OUTCOMES = ("delivered", "undeliverable", "refused")


@pytest.fixture
def measured(start_server: StartServer) -> ServerProcess:
    """A server that serves its figures."""
    return start_server("--metrics-port", 0)


def ask(server: ServerProcess, path: str, **headers: str) -> tuple[int, str, str]:
    """Status, content type and text of what is answered."""
    request = urllib.request.Request(server.metrics_url + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def messages(server: ServerProcess) -> dict[str, int]:
    """What has become of the Messages so far."""
    figures = server.metrics()
    found = {name: figures[f"chat_messages_{name}_total"] for name in ("accepted", "delivered", "undeliverable")}
    found["refused"] = sum(value for name, value in figures.items() if name.startswith("chat_messages_refused_total"))
    found["in flight"] = figures["chat_messages_in_flight"]
    return {name: int(value) for name, value in found.items()}


def settled(server: ServerProcess) -> dict[str, int]:
    """The same, once nothing is in flight; then nothing is missing, and nothing counted twice."""
    wait_for("nothing in flight", lambda: messages(server)["in flight"] == 0)
    found = messages(server)
    assert found.pop("in flight") == 0
    assert found["accepted"] == sum(found[outcome] for outcome in OUTCOMES)
    return found


def moved(server: ServerProcess, before: dict[str, float]) -> dict[str, float]:
    """What has changed, of the server's own figures that do not depend on how fast the machine is."""
    unsteady = ("chat_storage_seconds_bucket", "chat_storage_seconds_sum", "chat_loop")
    return {
        name: value - before.get(name, 0)
        for name, value in server.metrics().items()
        if name.startswith("chat_") and not name.startswith(unsteady) and value != before.get(name, 0)
    }


# Logins and departures


def test_a_visit_is_counted_from_its_beginning_to_its_end(measured: ServerProcess) -> None:
    before = measured.metrics()
    still = [name for name in before if name.startswith("chat_") and "loop" not in name and "bound" not in name]
    assert {before[name] for name in still} == {0}
    alice = measured.log_in("alice")
    online = {
        "chat_connected": 1,
        "chat_online": 1,
        "chat_signed_up": 1,
        "chat_connections_total": 1,
        "chat_sign_ups_total": 1,
        "chat_logins_total": 1,
        "chat_received_bytes_total": len(encode_login("alice")),
        "chat_sent_bytes_total": len(encode_user("alice", 1, 1)),
        "chat_storage_seconds_count": 2,
    }
    wait_for("the status on disk", lambda: measured.metrics()["chat_storage_seconds_count"] == 2)
    assert moved(measured, before) == online
    alice.close()
    measured.wait_for_log("alice disconnected")
    wait_for("the logout on disk", lambda: measured.metrics()["chat_storage_seconds_count"] == 3)
    gone = {"chat_connected", "chat_online"}
    left = {name: value for name, value in online.items() if name not in gone}
    assert moved(measured, before) == left | {"chat_storage_seconds_count": 3, "chat_disconnects_total{left}": 1}


def test_refused_logins_are_counted_by_reason(start_server: StartServer) -> None:
    server = start_server("--metrics-port", 0, "--max-users", 1)
    server.visit("alice", "sesame")
    before = server.metrics()
    refused = {
        Reason.WRONG_PASSWORD: encode_login("alice", "wrong"),
        Reason.PASSWORD_REQUIRED: encode_login("alice"),
        Reason.INVALID_USERNAME: encode_login("a b"),
        Reason.INVALID_PASSWORD: encode_login("alice", "x" * 65),
        Reason.USERNAME_TAKEN: encode_login("ALICE"),
        Reason.USER_LIMIT_REACHED: encode_login("bob"),
    }
    with server.connect() as client:
        for reason, packet in refused.items():
            client.send(packet)
            client.expect_error(reason)
    changes = moved(server, before)
    failures = {f"chat_login_failures_total{{{reason}}}": 1 for reason in refused}
    assert {name: value for name, value in changes.items() if name in failures} == failures
    assert "chat_logins_total" not in changes


def test_disconnects_are_counted_by_the_reason_in_the_log(measured: ServerProcess) -> None:
    for packet in (b"\xff\xff", b"\x05\x00", b"\x02\x00"):
        with measured.connect() as client:
            client.send(packet)
            client.read()
            client.expect_end()
    names = [f"chat_disconnects_total{{{reason}}}" for reason in ("Packet Too Long", "Unknown Packet Type")]
    wait_for("both", lambda: all(measured.metrics().get(name) == 1 for name in names))
    for name in names:
        assert name.removeprefix("chat_disconnects_total{").removesuffix("}") in measured.log


def test_connections_that_wait_for_a_place_are_counted(start_server: StartServer) -> None:
    server = start_server("--metrics-port", 0, "--pool-size", 1)
    if "chat_waiting" not in server.metrics():
        pytest.skip("this system does not tell how many wait (only Linux does)")
    served = server.log_in("served")
    queue = [server.connect() for _ in range(3)]
    wait_for("three who wait", lambda: server.metrics()["chat_waiting"] == 3)
    assert server.metrics()["chat_connected"] == 1
    served.close()
    wait_for("two who wait", lambda: server.metrics()["chat_waiting"] == 2)
    del queue


def test_delays_by_the_rate_are_counted(start_server: StartServer) -> None:
    server = start_server("--metrics-port", 0, "--rate", 5, "--burst", 1)
    alice = server.log_in("alice")
    ping = encode(PacketType.PING, b"x" * 138)
    alice.send(ping * 4)  # before the next token: a read takes one of them
    for _ in range(4):
        alice.expect(encode(PacketType.PONG, ping[2:]))
    assert server.metrics()["chat_delays_total"] >= 2


# What becomes of messages


def test_messages_count_as_delivered_once_they_are_sent(measured: ServerProcess) -> None:
    alice, bob = measured.log_in("alice"), measured.log_in("bob")
    alice.chat_with(2)
    for number in range(50):
        alice.say(str(number))
        bob.expect_message(f"alice:{number}")
    assert settled(measured) == {"accepted": 50, "delivered": 50, "undeliverable": 0, "refused": 0}


def test_refused_messages_are_counted_by_reason(measured: ServerProcess) -> None:
    alice, bob = measured.connect(), measured.log_in("bob")
    hello = encode_message(b"hello")
    alice.send(hello)
    alice.expect_error(Reason.NOT_LOGGED_IN)
    alice.send(encode_login("alice"))
    alice.read_list("alice")
    alice.send(hello * 2)
    for _ in range(2):
        alice.expect_error(Reason.NO_CHAT_STARTED)
    alice.chat_with(1)
    bob.close()
    measured.wait_for_log("bob disconnected")
    alice.send(hello * 3)
    for _ in range(3):
        alice.expect_error(Reason.USER_NOT_ONLINE)
    assert settled(measured) == {"accepted": 6, "delivered": 0, "undeliverable": 0, "refused": 6}
    reasons = {Reason.NOT_LOGGED_IN: 1, Reason.NO_CHAT_STARTED: 2, Reason.USER_NOT_ONLINE: 3}
    figures = measured.metrics()
    for reason, count in reasons.items():
        assert figures[f"chat_messages_refused_total{{{reason}}}"] == count


def test_a_message_that_takes_two_packets_is_one(measured: ServerProcess) -> None:
    alice = measured.log_in("alice")
    alice.chat_with(1)
    alice.send(encode_message(b"x" * 136) * 10)
    for _ in range(10):
        alice.expect_message("alice:" + "x" * 130)
        alice.expect_message("alice:" + "x" * 6)
    assert settled(measured) == {"accepted": 10, "delivered": 10, "undeliverable": 0, "refused": 0}


def refusals(sender: Wire) -> int:
    """How many of the sender's Messages are answered with an Error; there is nothing else to come."""
    sender.send(b"\x08\x00")
    count = 0
    while (packet := sender.read()) == (4, encode_error(Reason.USER_NOT_ONLINE)[2:]):
        count += 1
    assert packet == (9, b"")
    return count


def test_exactly_the_rest_for_a_reader_dropped_as_too_slow_is_undeliverable(
    start_server: StartServer,
) -> None:
    server = start_server("--metrics-port", 0, "--write-timeout", 5, program=PATIENT)
    reader, sender, flood = stuck_pair(server)
    figures = server.metrics()
    assert 0 < figures["chat_outbox_bytes_max"] <= figures["chat_outbox_bytes"]
    assert messages(server)["in flight"] > 0
    server.wait_for_log("reader disconnected: Too Slow")
    read = 0
    while (packet := reader.read()) == (RELAYED_BIG[0], RELAYED_BIG[2:]):
        read += 1
    assert packet == (4, encode_error(Reason.TOO_SLOW)[2:])
    sent, refused = flood.end(), refusals(sender)
    found = settled(server)
    assert found == {"accepted": sent, "delivered": read, "undeliverable": sent - read - refused, "refused": refused}
    assert found["undeliverable"] > 0


def test_messages_for_a_reader_whose_connection_is_reset_are_all_settled(measured: ServerProcess) -> None:
    reader, sender, flood = stuck_pair(measured)
    reader.close()  # with much unread: a reset
    sent, refused = flood.end(), refusals(sender)
    found = settled(measured)
    assert (found["accepted"], found["refused"]) == (sent, refused)
    assert found["undeliverable"] > 0
    assert found["delivered"] > 0


@pytest.mark.parametrize("behind", range(1, 4))
def test_a_connection_that_breaks_anywhere_in_a_packet_is_counted(measured: ServerProcess, behind: int) -> None:
    """Where the kernel's buffer ends inside a header as well."""
    reader = measured.log_in("reader")
    sender = measured.log_in("x" * behind)
    sender.chat_with(1)
    for length in range(8):
        sender.send(encode_message(b"y" * length) * 3)
    reset_on_close(reader.socket)
    reader.close()
    sent = 24
    while "reader disconnected" not in measured.log:
        sender.send(BIG)
        sent += 1
    refusals(sender)
    assert settled(measured)["accepted"] == sent


def test_messages_are_counted_to_the_end_of_a_drain(start_server: StartServer) -> None:
    server = start_server("--metrics-port", 0, "--drain", 200, "--write-timeout", 200, program=PATIENT)
    reader, sender, _ = stuck_pair(server)
    server.process.terminate()
    wait_for("not ready", lambda: ask(server, "/readyz")[0] == 503)
    assert ask(server, "/healthz")[0] == 200
    assert "chat_waiting" not in server.metrics()
    read = 0
    while (packet := reader.read()) == (RELAYED_BIG[0], RELAYED_BIG[2:]):
        read += 1
    assert packet == (4, encode_error(Reason.SERVER_SHUTTING_DOWN)[2:])
    found = settled(server)  # its connection is finishing, since the sender has not closed yet
    assert found == {"accepted": read, "delivered": read, "undeliverable": 0, "refused": 0}
    sender.close()
    reader.close()
    assert server.process.wait(DEADLINE) == 0
    with pytest.raises(urllib.error.URLError):
        server.metrics()


# The HTTP server


def test_health_and_readiness_are_served_and_other_paths_are_not_found(measured: ServerProcess) -> None:
    assert ask(measured, "/healthz") == (200, "text/plain; charset=utf-8", "ok\n")
    assert ask(measured, "/readyz") == (200, "text/plain; charset=utf-8", "ready\n")
    for path in ("/", "/metrics/", "/metrics2"):
        assert ask(measured, path)[0] == 404


def test_a_health_check_does_not_wait_behind_silent_connections(measured: ServerProcess) -> None:
    port = int(measured.metrics_url.rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        began = time.monotonic()
        for path in ("/healthz", "/readyz", "/metrics"):
            assert ask(measured, path)[0] == 200
        assert time.monotonic() - began < REQUEST_SECONDS


def test_the_figures_are_valid_openmetrics_on_request(measured: ServerProcess) -> None:
    measured.log_in("alice").close()
    status, kind, text = ask(measured, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text")
    families = {family.name for family in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
    assert {"chat_messages_accepted", "chat_storage_seconds", "chat_online"} <= families


def test_no_name_and_no_text_is_in_the_figures(measured: ServerProcess) -> None:
    alice = measured.log_in("zaphod", "sesame")
    alice.send(encode_login("beeblebrox"), encode_chat_init(1), encode_message(b"forty-two"))
    alice.expect_error(Reason.ALREADY_LOGGED_IN)
    alice.expect_message("zaphod:forty-two")
    alice.close()
    measured.wait_for_log("zaphod disconnected")
    with measured.connect() as client:
        client.send(encode_login("zaphod", "simsalabim"))
        client.expect_error(Reason.WRONG_PASSWORD)
    _, _, text = ask(measured, "/metrics")
    assert not [word for word in ("zaphod", "beeblebrox", "sesame", "simsalabim", "forty-two") if word in text]


def test_a_metrics_port_that_is_taken_is_one_line_and_status_1(measured: ServerProcess) -> None:
    port = measured.metrics_url.rpartition(":")[2]
    done = run_to_end("--port", 0, "--data-dir", measured.data_dir.parent / "other", "--metrics-port", port)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1
    assert f"cannot start: metrics on 127.0.0.1:{port}: Address already in use" in line


def test_without_the_option_there_is_no_http(server: ServerProcess) -> None:
    assert "metrics on" not in server.log


def test_figures_are_served_on_an_ipv6_address(start_server: StartServer) -> None:
    server = start_server("--metrics-port", 0, "--metrics-host", "::1")
    assert server.metrics_url.startswith("http://[::1]:")
    assert server.metrics()["chat_online"] == 0


def http(server: ServerProcess) -> socket.socket:
    """A connection to the HTTP server that says nothing yet."""
    return socket.create_connection(("127.0.0.1", int(server.metrics_url.rpartition(":")[2])), DEADLINE)


@pytest.mark.parametrize("bad", [b"\x00\xff\r\n\r\n", b"GET / HTTP/9.0\r\n\r\n", b"GET\r\n\r\n"])
def test_input_that_is_not_http_is_refused_and_harms_nobody(measured: ServerProcess, bad: bytes) -> None:
    with http(measured) as client:
        client.sendall(bad)
        assert client.recv(65536).startswith(b"HTTP/1.1 400")
    assert ask(measured, "/healthz")[0] == 200


def test_a_connection_is_closed_after_its_answer(measured: ServerProcess) -> None:
    with http(measured) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while part := client.recv(65536):
            answer += part
    assert b"\r\nConnection: close\r\n" in answer


def test_http_clients_that_send_nothing_delay_neither_the_chat_nor_the_shutdown(measured: ServerProcess) -> None:
    stuck = [http(measured) for _ in range(6)]
    time.sleep(0.2)
    measured.log_in("alice").expect_pong()
    assert measured.stop() == 0
    for client in stuck:
        client.close()


def takes_more(client: socket.socket) -> bool:
    try:
        client.sendall(b"x")
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_clients_that_send_byte_by_byte_are_cut_off_and_others_are_served(measured: ServerProcess) -> None:
    clients = [http(measured) for _ in range(4)]
    for client in clients:
        client.sendall(b"GET /")
    while sum(map(takes_more, clients)):  # the test's own time limit ends it
        time.sleep(0.5)
    assert ask(measured, "/healthz")[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/openmetrics-text"])
def test_an_invalid_version_is_ignored(measured: ServerProcess, kind: str) -> None:
    status, answered, _ = ask(measured, "/metrics", Accept=f"{kind}; version=abc")
    assert (status, answered.partition(";")[0]) == (200, kind)


def test_oversized_headers_are_not_kept(measured: ServerProcess) -> None:
    """A hundred lines of 64 KiB are what Python's http.client takes, and it keeps them until the last has come."""
    before = measured.metrics()["process_resident_memory_bytes"]
    clients = [http(measured) for _ in range(3)]  # one place is left for us
    for client in clients:
        with suppress(OSError):  # the server has had enough
            client.sendall(b"GET /metrics HTTP/1.1\r\n" + (b"X: " + b"x" * 65000 + b"\r\n") * 99)
    assert measured.metrics()["process_resident_memory_bytes"] < before + 8 * 2**20
    for client in clients:
        client.close()
