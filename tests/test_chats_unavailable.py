"""chats.db under a running server, while another program holds it or the disk is full: nothing lost or doubled."""

import resource
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from protocol import Feature, PacketType, Reason, encode, encode_error, encode_history_request, encode_login
from testkit.processes import wait_for
from testkit.server import ServerProcess, StartServer
from testkit.wire import Wire

pytestmark = pytest.mark.measured

TEXT = "x" * 90


@contextmanager
def locked(server: ServerProcess) -> Iterator[sqlite3.Connection]:
    """Another program writes to chats.db, and takes its time."""
    with closing(sqlite3.connect(server.data_dir / "chats.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def mail_for_bob(server: ServerProcess, count: int) -> Wire:
    """alice writes numbered messages to bob (1), who is offline; all are on disk."""
    server.visit("bob")
    alice = server.log_in("alice", features=Feature.MAILBOX)
    alice.chat_with(1)
    for number in range(count):
        alice.say(f"{number} {TEXT}")
    alice.expect_pong()
    wait_for("the mail on disk", lambda: server.metrics()["chat_messages_stored_total"] == count)
    return alice


def read_number(client: Wire) -> int:
    packet = client.read()
    assert packet is not None
    assert packet[0] == PacketType.MESSAGE, packet
    return int(packet[1][len("..alice:") :].split()[0])


def test_mail_delivered_while_the_database_failed_does_not_arrive_again(start_server: StartServer) -> None:
    count = 1500
    server = start_server("--outbox-bytes", 1024, "--mailbox-messages", 5000, "--metrics-port", 0)
    mail_for_bob(server, count)
    with locked(server) as other:
        bob = Wire(server.host, server.port, receive_buffer=2304)
        bob.send(encode_login("bob"))
        bob.read_list("bob")
        assert [read_number(bob) for _ in range(300)] == [*range(300)]
        bob.close()
        server.wait_for_log("bob disconnected", times=2)
        server.wait_for_log("the database cannot be written")
        bob = Wire(server.host, server.port, receive_buffer=2304)
        bob.send(encode_login("bob"))
        bob.read_list("bob")
        number = read_number(bob)
        assert number >= 300
        for following in range(number + 1, count):  # meanwhile the server tries to write, again and again
            assert read_number(bob) == following
        bob.expect_pong()
        other.execute("ROLLBACK")
    server.wait_for_log("the database can be written again")
    assert server.metrics()["chat_mailbox_messages"] == 0
    bob.close()
    server.wait_for_log("bob disconnected", times=3)
    server.log_in("bob").expect_pong()


def test_a_database_that_cannot_be_written_delays_no_chat(start_server: StartServer) -> None:
    server = start_server("--sync", "always", "--metrics-port", 0)
    mail_for_bob(server, 3)
    with locked(server):
        carol = server.log_in("carol", features=Feature.HISTORY)
        carol.chat_with(3)
        carol.say("to myself")
        carol.expect_message("carol:to myself")
        server.wait_for_log("the database cannot be written")
        bob = server.log_in("bob")
        assert [read_number(bob) for _ in range(3)] == [0, 1, 2]
        for _ in range(5):
            carol.send(encode_history_request(5, 1), encode(PacketType.PING, b"?"))
            carol.expect(encode(PacketType.HISTORY, b""))
            carol.expect(encode(PacketType.PONG, b"?"))


def test_mail_that_is_only_in_memory_is_delivered_at_the_next_login(start_server: StartServer) -> None:
    server = start_server("--metrics-port", 0)
    alice = mail_for_bob(server, 2)
    largest = max(path.stat().st_size for path in server.data_dir.iterdir())
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    accepted = 2
    while True:
        alice.say(f"{accepted} {TEXT}")
        alice.send(encode(PacketType.PING, b"?"))
        if (packet := alice.read()) != (PacketType.PONG, b"?"):
            break
        accepted += 1
    assert packet == (PacketType.ERROR, encode_error(Reason.STORAGE_UNAVAILABLE)[2:])
    alice.expect(encode(PacketType.PONG, b"?"))
    assert accepted > 2
    bob = server.log_in("bob")
    alice.say(f"{accepted} live")
    assert [read_number(bob) for _ in range(accepted + 1)] == [*range(accepted + 1)]
    bob.expect_pong()
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    server.wait_for_log("the database can be written again")
    bob.close()
    server.wait_for_log("bob disconnected", times=2)
    server.log_in("bob").expect_pong()
    assert server.metrics()["chat_mailbox_messages"] == 0


def test_a_stopping_server_tries_again_to_write(start_server: StartServer) -> None:
    server = start_server("--metrics-port", 0)
    alice = mail_for_bob(server, 1)
    with locked(server) as other:
        alice.say(f"1 {TEXT}")
        alice.expect_pong()
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        server.wait_for_log("shutting down")
        server.wait_for_log("the database cannot be written")
        other.execute("ROLLBACK")
        stopping.join()
    bob = start_server().log_in("bob")
    assert [read_number(bob), read_number(bob)] == [0, 1]
