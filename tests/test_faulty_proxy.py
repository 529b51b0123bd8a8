"""The faulty proxy in front of the real server: what each fault damages, and what it leaves alone."""

import time
from collections.abc import Iterator

import pytest

from protocol import Reason, encode_login, encode_message
from testkit.faulty_proxy import (
    Fault,
    FaultyProxy,
    delay,
    duplicate,
    flip,
    lose_every,
    misdeliver,
    stall,
    swallow_after,
    swap,
)
from testkit.processes import DEADLINE, wait_for
from testkit.server import ServerProcess
from testkit.wire import Wire, reset_on_close

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_greenlet_dies(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """gevent only prints the exception that ends a greenlet, so look for that."""
    yield
    assert "Traceback" not in capfd.readouterr().err


def faulty(server: ServerProcess, fault: Fault | None = None) -> FaultyProxy:
    return FaultyProxy(server.host, server.port, fault)


def log_in(proxy: FaultyProxy, name: str) -> Wire:
    wire = Wire(proxy.host, proxy.port)
    wire.send(encode_login(name))
    wire.read_list(name)
    return wire


def pair(proxy: FaultyProxy) -> tuple[Wire, Wire]:
    """alice, who chats with bob, and bob, who chats with alice."""
    alice, bob = log_in(proxy, "alice"), log_in(proxy, "bob")
    alice.chat_with(bob.users["bob"])
    bob.chat_with(bob.users["alice"])
    return alice, bob


def say(sender: Wire, *texts: str) -> None:
    """Send these texts at once; the server has delivered them when this returns."""
    sender.send(*(encode_message(text.encode()) for text in texts))
    sender.expect_pong()


def expect(receiver: Wire, sender: str, *texts: str) -> None:
    """Expect these Messages and nothing after them."""
    for text in texts:
        receiver.expect_message(f"{sender}:{text}")
    receiver.expect_pong()


def test_a_proxy_without_a_fault_changes_nothing(server: ServerProcess) -> None:
    texts = [str(number) for number in range(1000)]
    with faulty(server) as proxy:
        alice, bob = pair(proxy)
        assert bob.users == {"alice": 1, "bob": 2}
        say(alice, *texts, "größer", "")
        expect(bob, "alice", *texts, "größer", "")
        bob.send(encode_login("alice"))
        bob.expect_error(Reason.ALREADY_LOGGED_IN)
        assert proxy.address == f"127.0.0.1:{proxy.port}"
        assert proxy.damaged == []


def test_every_nth_message_is_lost(server: ServerProcess) -> None:
    with faulty(server, lose_every(3)) as proxy:
        alice, bob = pair(proxy)
        say(alice, "1", "2", "3", "4", "5", "6", "7")
        expect(bob, "alice", "1", "2", "4", "5", "7")
        assert proxy.damaged == [b"alice:3", b"alice:6"]


def test_messages_are_counted_over_all_clients(server: ServerProcess) -> None:
    with faulty(server, lose_every(3)) as proxy:
        alice, bob = pair(proxy)
        say(alice, "1", "2")
        expect(bob, "alice", "1", "2")
        say(bob, "3", "4")
        expect(alice, "bob", "4")
        assert proxy.damaged == [b"bob:3"]


def test_the_nth_message_arrives_twice(server: ServerProcess) -> None:
    with faulty(server, duplicate(2)) as proxy:
        alice, bob = pair(proxy)
        say(alice, "1", "2", "3", "4")
        expect(bob, "alice", "1", "2", "2", "3", "4")
        assert proxy.damaged == [b"alice:2"]


def test_the_nth_message_and_the_next_one_swap_places(server: ServerProcess) -> None:
    with faulty(server, swap(2, DEADLINE)) as proxy:
        alice, bob = pair(proxy)
        say(alice, "1", "2", "3", "4", "5")
        expect(bob, "alice", "1", "3", "2", "4", "5")
        assert proxy.damaged == [b"alice:2", b"alice:3"]


def test_only_messages_of_one_sender_to_one_receiver_swap_places(server: ServerProcess) -> None:
    with faulty(server, swap(1, DEADLINE)) as proxy:
        alice, bob = pair(proxy)
        carol = log_in(proxy, "carol")
        carol.chat_with(bob.users["bob"])
        say(alice, "1")
        say(carol, "between")
        alice.chat_with(alice.users["alice"])
        alice.say("to myself")
        alice.expect_message("alice:to myself")
        alice.chat_with(bob.users["bob"])
        say(alice, "2")
        for text in ("alice:2", "carol:between", "alice:1"):
            bob.expect_message(text)
        bob.expect_pong()
        assert proxy.damaged == [b"alice:1", b"alice:2"]


def test_a_message_without_a_successor_in_time_keeps_its_place(server: ServerProcess) -> None:
    with faulty(server, swap(1, 0.1)) as proxy:
        alice, bob = pair(proxy)
        say(alice, "1")
        expect(bob, "alice", "1")
        say(alice, "2")
        expect(bob, "alice", "2")
        assert proxy.damaged == []


def test_one_bit_of_the_nth_message_is_flipped(server: ServerProcess) -> None:
    with faulty(server, flip(2)) as proxy:
        alice, bob = pair(proxy)
        say(alice, "say a", "say a", "say a")
        expect(bob, "alice", "say a", "say `", "say a")
        assert proxy.damaged == [b"alice:say a"]


def test_a_delay_does_not_reduce_the_rate(server: ServerProcess) -> None:
    texts = [str(number) for number in range(200)]
    with faulty(server, delay(0.3)) as proxy:
        alice, bob = pair(proxy)
        start = time.monotonic()
        alice.send(*(encode_message(text.encode()) for text in texts))
        bob.expect_message("alice:0")
        assert time.monotonic() - start >= 0.3
        expect(bob, "alice", *texts[1:])
        assert time.monotonic() - start < DEADLINE  # delayed one after the other, it would take twice as long
        assert proxy.damaged == []


def test_a_stall_holds_everything_back_for_a_time(server: ServerProcess) -> None:
    with faulty(server, stall(2, 0.5)) as proxy:
        alice, bob = pair(proxy)
        start = time.monotonic()
        alice.send(*(encode_message(text) for text in (b"1", b"2", b"3", b"4")))
        bob.expect_message("alice:1")
        bob.expect_message("alice:2")
        alice.expect_pong()
        assert time.monotonic() - start >= 0.5
        expect(bob, "alice", "3", "4")
        assert proxy.damaged == []


def test_the_nth_message_goes_to_another_client(server: ServerProcess) -> None:
    with faulty(server, misdeliver(2)) as proxy:
        carol = log_in(proxy, "carol")
        alice, bob = pair(proxy)
        say(alice, "1", "2", "3")
        expect(bob, "alice", "1", "3")
        expect(carol, "alice", "2")
        assert proxy.damaged == [b"alice:2"]


def test_a_client_whose_stream_has_ended_gets_no_misdelivered_message(server: ServerProcess) -> None:
    with faulty(server, misdeliver(1)) as proxy:
        carol = log_in(proxy, "carol")
        alice, bob = pair(proxy)
        carol.send(b"\x7f\x00")
        carol.expect_error(Reason.UNKNOWN_PACKET_TYPE)
        carol.expect_end()
        alice.say("1")
        alice.expect_message("alice:1")
        bob.expect_pong()


def test_without_another_client_no_message_is_misdelivered(server: ServerProcess) -> None:
    with faulty(server, misdeliver(1)) as proxy:
        alice = log_in(proxy, "alice")
        alice.chat_with(alice.users["alice"])
        alice.say("1")
        expect(alice, "alice", "1")
        assert proxy.damaged == []


def test_from_the_nth_message_on_no_message_arrives(server: ServerProcess) -> None:
    with faulty(server, swallow_after(3)) as proxy:
        alice, bob = pair(proxy)
        say(alice, "1", "2", "3")
        say(alice, "4")
        expect(bob, "alice", "1", "2")
        assert proxy.damaged == [b"alice:3", b"alice:4"]


def test_a_half_closed_client_gets_everything_in_flight_and_then_the_end(server: ServerProcess) -> None:
    with faulty(server, delay(0.3)) as proxy:
        alice, bob = pair(proxy)
        say(alice, "1", "2")
        bob.half_close()
        bob.expect_message("alice:1")
        bob.expect_message("alice:2")
        bob.expect_end()
        bob.close()
        with log_in(proxy, "bob") as again:
            assert again.users == {"alice": 1, "bob": 2}


def test_a_reset_by_a_client_reaches_the_server(server: ServerProcess) -> None:
    with faulty(server) as proxy:
        _, bob = pair(proxy)
        reset_on_close(bob.socket)
        bob.close()
        wait_for("only alice's connection", lambda: len(proxy.links) == 1)
        log_in(proxy, "bob").expect_pong()


def test_the_end_of_the_server_reaches_the_clients(server: ServerProcess) -> None:
    with faulty(server) as proxy:
        alice, bob = pair(proxy)
        server.process.terminate()
        for client in (alice, bob):
            client.expect_error(Reason.SERVER_SHUTTING_DOWN)
            client.expect_end()
            client.close()
        wait_for("no connection", lambda: not proxy.links)
        server.process.wait(DEADLINE)
        with Wire(proxy.host, proxy.port) as late:
            late.expect_end()


def test_a_proxy_that_ends_closes_its_connections(server: ServerProcess) -> None:
    with faulty(server) as proxy:
        clients = pair(proxy)
    assert proxy.links == []
    for client in clients:
        client.expect_end()
    with pytest.raises(ConnectionRefusedError):
        Wire(proxy.host, proxy.port)


def test_a_proxy_ends_without_delivering_what_is_in_flight(server: ServerProcess) -> None:
    with faulty(server, stall(1, 10 * DEADLINE)) as proxy:
        alice, bob = pair(proxy)
        alice.send(*(encode_message(b"text") for _ in range(100)))
        bob.expect_message("alice:text")
        start = time.monotonic()
    assert time.monotonic() - start < DEADLINE
