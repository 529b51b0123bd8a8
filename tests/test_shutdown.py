"""SIGTERM and Ctrl-C: every client gets an Error after what is queued, and the exit status is 0."""

import resource
import signal
import socket
import time

import pytest

from protocol import Reason, encode_error, encode_login
from testkit.flood import RELAYED_BIG, stuck_pair
from testkit.processes import DEADLINE, wait_for
from testkit.server import ServerProcess, StartServer

pytestmark = pytest.mark.measured


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_every_client_gets_the_error_and_the_status_is_0(server: ServerProcess, signum: int) -> None:
    alice, nameless = server.log_in("alice"), server.connect()
    nameless.expect_pong()
    assert server.stop(signum) == 0
    for client in (alice, nameless):
        client.expect_error(Reason.SERVER_SHUTTING_DOWN)
        client.expect_end()


def test_everyone_is_offline_in_the_database_afterwards(server: ServerProcess) -> None:
    clients = [server.log_in(name) for name in ("alice", "bob")]
    wait_for("both are online", lambda: (server.data_dir / "status.csv").read_text() == "1,1\n2,1\n")
    assert server.stop() == 0
    assert (server.data_dir / "status.csv").read_text() == "1,0\n2,0\n"
    del clients


def test_queued_messages_are_delivered_before_the_error(start_server: StartServer) -> None:
    server = start_server("--outbox-bytes", 100_000, "--write-timeout", 60, "--drain", 20)
    reader, sender, _ = stuck_pair(server)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for_log("shutting down")
    goodbye = encode_error(Reason.SERVER_SHUTTING_DOWN)
    delivered = 0
    while (packet := reader.read()) == (RELAYED_BIG[0], RELAYED_BIG[2:]):
        delivered += 1
    assert packet == (goodbye[0], goodbye[2:])
    reader.close()
    refused = 0
    while (packet := sender.read()) == (4, encode_error(Reason.USER_NOT_ONLINE)[2:]):
        refused += 1
    assert packet == (goodbye[0], goodbye[2:])
    assert delivered > 0
    assert refused == 0, "what had been read from the sender fitted, since the reader kept reading"
    assert server.process.wait(DEADLINE) == 0
    assert "were never sent" not in server.log


def test_a_client_that_does_not_read_delays_the_end_by_the_drain_time_at_most(start_server: StartServer) -> None:
    server = start_server("--drain", 1, "--write-timeout", 600)
    reader, sender, _ = stuck_pair(server)
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < DEADLINE / 2
    assert "were never sent" in server.log
    reader.close()
    sender.close()


def test_a_client_that_does_not_read_does_not_keep_the_error_from_others(start_server: StartServer) -> None:
    server = start_server("--drain", 200, "--write-timeout", 600)
    reader, sender, _ = stuck_pair(server)
    idle = server.log_in("idle")
    server.process.send_signal(signal.SIGTERM)
    idle.expect_error(Reason.SERVER_SHUTTING_DOWN)
    assert server.stop(signal.SIGTERM) == 128 + signal.SIGTERM
    reader.close()
    sender.close()


def test_connections_that_wait_for_a_place_are_closed(start_server: StartServer) -> None:
    server = start_server("--pool-size", 1)
    served, waiting = server.log_in("served"), server.connect()
    waiting.send(encode_login("waiting"))
    assert server.stop() == 0
    served.expect_error(Reason.SERVER_SHUTTING_DOWN)
    with pytest.raises(ConnectionResetError):
        waiting.read()


def test_no_client_is_accepted_while_the_server_drains(start_server: StartServer) -> None:
    server = start_server("--drain", 20)
    stubborn = server.log_in("stubborn")  # does not close, so that the server lingers for 2 s
    server.process.send_signal(signal.SIGTERM)
    stubborn.expect_error(Reason.SERVER_SHUTTING_DOWN)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), DEADLINE)
    assert server.process.wait(DEADLINE) == 0


def test_a_second_signal_ends_the_server_at_once(start_server: StartServer) -> None:
    server = start_server("--drain", 600, "--write-timeout", 600)
    reader, sender, _ = stuck_pair(server)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for_log("shutting down")
    assert server.stop(signal.SIGTERM) == 128 + signal.SIGTERM
    reader.close()
    sender.close()


def test_an_unwritable_database_does_not_change_the_status(server: ServerProcess) -> None:
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux can fill the disk of another process (prlimit)")
    alice = server.log_in("alice")
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    assert server.stop() == 0
    alice.expect_error(Reason.SERVER_SHUTTING_DOWN)
