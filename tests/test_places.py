"""Places: who is served, waits or is refused; many users; a slow reader delays nobody else."""

import socket
import time
from contextlib import suppress

import gevent
import pytest

from protocol import (
    PacketType,
    Reason,
    encode,
    encode_chat_init,
    encode_error,
    encode_login,
    encode_message,
)
from testkit.flood import BIG, RELAYED_BIG, Flood, stuck_pair
from testkit.processes import DEADLINE, wait_for
from testkit.server import PATIENT, ServerProcess, StartServer
from testkit.wire import Wire

pytestmark = pytest.mark.measured

SMALL_BUFFERS = ("--outbox-bytes", 4096, "--write-timeout", 1)


def has_input(client: Wire, within: float = 0.3) -> bool:
    client.socket.settimeout(within)
    try:
        client.socket.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return False
    finally:
        client.socket.settimeout(DEADLINE)
    return True


def test_twenty_clients_are_served_at_once_and_later_ones_in_order_as_places_become_free(
    server: ServerProcess,
) -> None:
    served = [server.log_in(f"u{number}") for number in range(20)]
    waiting = []
    for number in (20, 21):
        client = server.connect()
        client.send(encode_login(f"u{number}"))
        waiting.append(client)
    assert not has_input(waiting[0])
    served[0].close()
    waiting[0].read_list("u20")
    assert not has_input(waiting[1])
    served[1].close()
    waiting[1].read_list("u21")
    for client in served[2:]:
        client.expect_pong()


def test_an_error_that_closes_does_not_hold_a_place_while_it_lingers(start_server: StartServer) -> None:
    server = start_server("--pool-size", 1, "--log-level", "debug")
    rude = server.connect()
    rude.send(b"\x00\x00")
    server.wait_for_log("disconnected: Unknown Packet Type")
    server.log_in("polite").expect_pong()
    rude.expect_error(Reason.UNKNOWN_PACKET_TYPE)
    rude.expect_end()
    assert "were never sent" not in server.log


def test_a_client_that_ignores_a_closing_error_is_disconnected(start_server: StartServer) -> None:
    server = start_server("--pool-size", 1)
    rude = server.connect()
    rude.send(b"\x00\x00")
    rude.expect_error(Reason.UNKNOWN_PACKET_TYPE)
    rude.expect_end()  # half-closed: the server still discards what we send, for 2 s

    def is_reset() -> bool:
        try:
            rude.send(b"x")
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    wait_for("the end of the linger time", is_reset)


def test_refused_clients_that_do_not_close_do_not_delay_an_honest_one(start_server: StartServer) -> None:
    server = start_server("--pool-size", 2, "--max-per-address", 1)
    rude = [server.connect("127.0.0.2") for _ in range(60)]  # each lingers: two at once for 2 s would take a minute
    server.log_in("honest").expect_pong()
    for client in rude:
        client.close()


@pytest.mark.slow
def test_clients_that_neither_log_in_nor_read_hold_a_place_only_for_seconds(start_server: StartServer) -> None:
    server = start_server("--pool-size", 2, "--login-timeout", 1, "--outbox-bytes", 4096, "--write-timeout", 20)
    rude = []
    for _ in range(6):  # with the time that a slow reader gets, they would take a minute
        rude.append(Wire(server.host, server.port, receive_buffer=4096))
        with suppress(ConnectionError):  # its time may be over before it is stuck
            Flood(rude[-1], encode(PacketType.PING, b"x" * 138)).until_stuck(0.1)
    server.log_in("honest").expect_pong()
    for client in rude:
        client.close()


def test_128_users_sign_up_and_the_129th_is_refused(server: ServerProcess) -> None:
    for number in range(128):
        with server.log_in(f"user{number}") as client:
            assert client.users[f"user{number}"] == number + 1
    with server.connect() as client:
        client.send(encode_login("one-too-many"))
        client.expect_error(Reason.USER_LIMIT_REACHED)


def test_a_list_larger_than_the_outbox_arrives_whole_as_the_client_reads(start_server: StartServer) -> None:
    server = start_server("--outbox-bytes", 1024, "--pool-size", 100)
    names = [f"{number:03}-{'n' * 28}" for number in range(60)]
    clients = [server.log_in(name) for name in names]
    clients[7].send(100 * encode_login(names[7]))
    for _ in range(100):
        clients[7].read_list(names[7])
        assert sorted(clients[7].users) == names


def test_a_sender_whose_partner_does_not_read_is_throttled_and_nothing_is_lost(start_server: StartServer) -> None:
    server = start_server("--outbox-bytes", 4096, "--write-timeout", 60)
    reader, sender, flood = stuck_pair(server, timeout=1)
    reader.expect(RELAYED_BIG)  # there is room again: the server resumes reading the sender
    for _ in range(flood.end() - 1):
        reader.expect(RELAYED_BIG)
    sender.expect_pong()


def test_a_reader_that_never_reads_is_dropped_as_too_slow_and_all_others_chat_on(start_server: StartServer) -> None:
    server = start_server(*SMALL_BUFFERS, program=PATIENT)
    stuck, sender, bob, carol = (server.log_in(name) for name in ("stuck", "sender", "bob", "carol"))
    sender.chat_with(1)
    bob.chat_with(4)
    flood = Flood(sender, BIG)
    while "stuck disconnected: Too Slow" not in server.log:
        flood.push()
        bob.say("meanwhile")
        carol.expect_message("bob:meanwhile")
    delivered = count_until(
        stuck, (PacketType.ERROR, encode_error(Reason.TOO_SLOW)[2:]), (PacketType.MESSAGE, RELAYED_BIG[2:])
    )
    stuck.expect_end()
    ending = gevent.spawn(flood.end, encode(PacketType.PING, b"!"))  # meanwhile we must read our Errors, as any client
    refused = count_until(sender, (PacketType.PONG, b"!"), (PacketType.ERROR, encode_error(Reason.USER_NOT_ONLINE)[2:]))
    sent = ending.get()
    assert 0 < refused < sent
    queued = 4096 // len(RELAYED_BIG)
    assert sent - queued <= delivered + refused <= sent, "only what was queued for the slow reader is lost"


@pytest.mark.slow
def test_a_reader_that_is_slow_but_steady_is_not_too_slow(start_server: StartServer) -> None:
    server = start_server("--outbox-bytes", 4096, "--write-timeout", 2)
    reader = Wire(server.host, server.port, receive_buffer=2304)
    reader.send(encode_login("reader"))
    reader.read_list("reader")
    sender = server.log_in("sender")
    sender.chat_with(1)
    flood = Flood(sender, BIG)
    flood.until_stuck(0.2)
    for _ in range(40):  # at 10 kB a second the kernel's buffer is not a third free within the write timeout
        take_a_little(reader)
        take_a_little(reader)
    assert "Too Slow" not in server.log
    reader.close()


@pytest.mark.slow
def test_a_sender_that_waits_for_its_partner_is_not_idle(start_server: StartServer) -> None:
    server = start_server("--idle-timeout", 6, "--outbox-bytes", 4096, "--write-timeout", 60)
    reader, sender = server.log_in("reader"), server.log_in("sender")
    sender.chat_with(1)
    flood = Flood(sender, BIG)
    while flood.push(timeout=0.3):
        reader.send(encode(PacketType.PONG, b""))
    for _ in range(80):
        reader.send(encode(PacketType.PONG, b""))  # it is alive, but it does not read
        time.sleep(0.1)
    reader.expect(RELAYED_BIG)
    for number in range(flood.end() - 1):
        reader.expect(RELAYED_BIG)
        if number % 100 == 0:  # from here on they would be idle, and reading everything may take long
            reader.send(encode(PacketType.PONG, b""))
            sender.send(encode(PacketType.PONG, b""))
    sender.expect_pong()


def test_the_too_slow_error_arrives_while_the_session_still_hands_over_what_it_read(
    start_server: StartServer,
) -> None:
    server = start_server("--outbox-bytes", 4096, "--write-timeout", 2, program=PATIENT)
    slow = Wire(server.host, server.port, receive_buffer=2304)
    slow.send(encode_login("slow"))
    slow.read_list("slow")
    name = "s" * 32  # tiny texts with a long name: one chunk from this client is a lot for the slow reader
    stuck, sender, bystander = server.log_in(name), server.log_in("sender"), server.log_in("bystander")
    stuck.chat_with(1)
    sender.chat_with(2)
    for flood in (Flood(stuck, encode_message(b"x")), Flood(sender, BIG)):
        flood.until_stuck(0.2)

    def is_dropped() -> bool:
        take_a_little(slow)
        bystander.send(encode_chat_init(2), encode(PacketType.PING, b"!"))
        refused = bystander.read() == (PacketType.ERROR, encode_error(Reason.USER_NOT_ONLINE)[2:])
        if refused:
            bystander.expect(encode(PacketType.PONG, b"!"))
        return refused

    wait_for("the end of the client that does not read", is_dropped)
    received = b""
    while not received.endswith(encode_error(Reason.TOO_SLOW)):
        take_a_little(slow)
        chunk = stuck.socket.recv(65536)
        assert chunk, "the connection ended without the Error"
        received = (received + chunk)[-200:]
    assert f"{name} disconnected" not in server.log
    slow.close()


def take_a_little(client: Wire) -> None:
    """Read about 10 kB a second."""
    assert client.socket.recv(500)
    time.sleep(0.05)


def count_until(client: Wire, last: tuple[int, bytes], each: tuple[int, bytes]) -> int:
    """Count the packets before `last`; all of them must be `each`."""
    count = 0
    while (packet := client.read()) != last:
        assert packet == each
        count += 1
    return count


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (encode(PacketType.PING, b"p" * 138), (PacketType.PONG, b"p" * 138)),
        (encode_chat_init(77), (PacketType.ERROR, encode_error(Reason.USER_NOT_ONLINE)[2:])),
        (encode_login("client"), (PacketType.CONFIG, None)),
    ],
    ids=["Pongs", "Errors", "lists"],
)
def test_a_client_that_does_not_read_its_answers_is_throttled_and_then_too_slow(
    start_server: StartServer, asked: bytes, answer: tuple[int, bytes | None]
) -> None:
    server = start_server(*SMALL_BUFFERS, program=PATIENT)
    bystander, client = server.log_in("bystander"), server.log_in("client")
    flood = Flood(client, asked)
    while flood.push(timeout=0.2):
        bystander.expect_pong()
    server.wait_for_log("client disconnected: Too Slow")
    answers = 0
    while (packet := client.read()) != (PacketType.ERROR, encode_error(Reason.TOO_SLOW)[2:]):
        assert packet is not None
        assert packet[0] == answer[0]
        assert answer[1] in (None, packet[1])
        answers += 1
    assert answers > 0
    client.expect_end()
    bystander.expect_pong()


def test_a_message_between_two_clients_arrives_while_a_third_floods(server: ServerProcess) -> None:
    flooder, alice, bob = (server.log_in(name) for name in ("flooder", "alice", "bob"))
    flooder.chat_with(1)
    alice.chat_with(3)
    flood = Flood(flooder, BIG)
    for number in range(200):
        flood.push()
        alice.say(f"{number}")
        bob.expect_message(f"alice:{number}")
        flooder.socket.recv(1 << 20)


def test_the_log_says_once_when_all_places_are_taken_and_when_one_is_free_again(start_server: StartServer) -> None:
    server = start_server("--pool-size", 2)
    full = "all 2 places are taken: further clients wait until one is free"
    with server.log_in("alice"), server.log_in("bob"), server.connect():
        server.wait_for_log(full)
    server.wait_for_log("a place is free again")
    with server.log_in("alice"):
        pass
    assert server.log.count("places are taken") == server.log.count("free again") == 1
