"""Past chats (section 7.3), with the real server."""

import time

import pytest

from protocol import (
    HISTORY_END,
    Envelope,
    Feature,
    PacketType,
    Reason,
    encode,
    encode_error,
    encode_history_request,
    encode_message,
    parse_dated,
)
from testkit.processes import DEADLINE
from testkit.server import ServerProcess, StartServer
from testkit.wire import Wire

Past = tuple[int, bytes]  # the sender's id, and the Message packets


def ask(client: Wire, user_id: int, count: int) -> list[Past]:
    """Ask for a replay and return it; every message must be dated within the last minute."""
    client.send(encode_history_request(count, user_id))
    past: list[Past] = []
    while True:
        packet = client.read()
        assert packet is not None
        if packet[0] == PacketType.MESSAGE:
            sender, packets = past.pop()
            past.append((sender, packets + bytes((packet[0], len(packet[1]))) + packet[1]))
            continue
        assert packet[0] == PacketType.HISTORY, packet
        if (dated := parse_dated(packet[1])) is None:
            return past
        assert abs(time.time() - dated[0]) < 60 + DEADLINE
        past.append((dated[1], b""))


def talk(server: ServerProcess, count: int) -> tuple[Wire, Wire]:
    """alice (1) and bob (2) send `count` messages in turn, and have read them."""
    alice, bob = (server.log_in(name, features=Feature.HISTORY) for name in ("alice", "bob"))
    alice.chat_with(2)
    bob.chat_with(1)
    for number in range(count):
        (alice, bob)[number % 2].say(f"{number}")
        (bob, alice)[number % 2].expect_message(f"{('alice', 'bob')[number % 2]}:{number}")
    return alice, bob


def said(numbers: range) -> list[Past]:
    return [(1 + number % 2, Envelope(("alice", "bob")[number % 2]).wrap(b"%d" % number)) for number in numbers]


@pytest.mark.parametrize("count", [1, 2, 7, 10, 11, 255])
def test_the_last_messages_of_both_are_replayed_dated_and_in_order(server: ServerProcess, count: int) -> None:
    alice, bob = talk(server, 10)
    expected = said(range(10)[-count:])
    assert ask(alice, 2, count) == expected
    assert ask(bob, 1, count) == expected
    alice.expect_pong()


def test_a_pair_without_messages_gets_an_empty_replay(server: ServerProcess) -> None:
    alice, _ = talk(server, 3)
    assert ask(alice, 2, 0) == []
    assert ask(alice, 1, 5) == []
    server.log_in("carol")
    assert ask(alice, 3, 5) == []


def test_an_unknown_id_is_refused(server: ServerProcess) -> None:
    alice, _ = talk(server, 1)
    for user_id in (3, 200):
        alice.send(encode_history_request(5, user_id))
        alice.expect_error(Reason.USER_NOT_ONLINE)


def test_the_partner_may_be_offline_and_history_survives_a_restart(start_server: StartServer) -> None:
    first = start_server()
    talk(first, 4)
    first.stop()
    second = start_server()
    alice = second.log_in("alice", features=Feature.HISTORY)
    assert ask(alice, 2, 255) == said(range(4))


def test_a_message_of_several_packets_is_one_message(server: ServerProcess) -> None:
    alice, bob = talk(server, 1)
    alice.send(encode_message(b"x" * 136), encode_message(b"short"))
    alice.expect_pong()
    long = Envelope("alice").wrap(b"x" * 136)
    assert ask(bob_after(bob, 3), 1, 2) == [(1, long), (1, Envelope("alice").wrap(b"short"))]
    assert ask(alice, 2, 1) == [(1, Envelope("alice").wrap(b"short"))]


def bob_after(bob: Wire, packets: int) -> Wire:
    for _ in range(packets):
        assert bob.read() is not None
    return bob


def test_only_the_requested_messages_of_a_run_are_replayed(server: ServerProcess) -> None:
    alice, _ = talk(server, 1)
    alice.send(*(encode_message(b"run %d" % number) for number in range(300)))
    alice.expect_pong()
    past = ask(alice, 2, 255)
    assert past == [(1, Envelope("alice").wrap(b"run %d" % number)) for number in range(45, 300)]


def test_refused_messages_are_not_replayed(server: ServerProcess) -> None:
    alice, bob = talk(server, 2)
    bob.close()
    server.wait_for_log("bob disconnected")
    alice.say("lost")
    alice.expect_error(Reason.USER_NOT_ONLINE)
    assert ask(alice, 2, 255) == said(range(2))


def test_no_other_packet_comes_within_a_replay(start_server: StartServer) -> None:
    server = start_server("--outbox-bytes", 1024, "--pool-size", 30)
    alice, bob = server.log_in("alice"), server.log_in("bob")
    alice.chat_with(2)
    bob.chat_with(1)
    for number in range(200):
        alice.say(f"{number}")
        bob.expect_message(f"alice:{number}")
    alice.close()
    server.wait_for_log("alice disconnected")
    alice = server.log_in("alice", features=~Feature.MAILBOX)
    bob.say("hello again")
    alice.expect_message("bob:hello again")
    alice.send(encode_history_request(200, 2))
    for number in range(10):
        bob.say(f"between {number}")
        server.log_in(f"other{number}")
    kinds = []
    while (packet := alice.read()) != (PacketType.HISTORY, HISTORY_END[2:]):
        assert packet is not None
        kinds.append(packet[0])
    begin = kinds.index(PacketType.HISTORY)
    assert set(kinds[begin:]) == {PacketType.HISTORY, PacketType.MESSAGE}
    assert kinds[begin:].count(PacketType.HISTORY) == kinds[begin:].count(PacketType.MESSAGE)
    for number in range(10):
        while (packet := alice.read()) is not None and packet[0] == PacketType.PRESENCE:
            pass
        assert packet == (PacketType.MESSAGE, Envelope("bob").wrap(b"between %d" % number)[2:])


def test_without_a_history_every_replay_is_empty(start_server: StartServer) -> None:
    alice, _ = talk(start_server("--history", "off"), 3)
    assert ask(alice, 2, 255) == []
    alice.send(encode_history_request(5, 77))
    alice.expect_error(Reason.USER_NOT_ONLINE)


def test_the_oldest_messages_of_each_pair_are_removed_first(start_server: StartServer) -> None:
    alice, _ = talk(start_server("--history-messages", 16, "--sync", "always"), 60)
    past = ask(alice, 2, 255)
    assert past == said(range(60))[-len(past) :]
    assert 16 <= len(past) <= 16 + 16 // 8 + 1


def test_a_request_without_the_feature_is_an_unknown_packet_type(server: ServerProcess) -> None:
    client = server.log_in("client", features=Feature.PRESENCE)
    client.send(encode(PacketType.HISTORY, b""))
    assert client.read() == (PacketType.ERROR, encode_error(Reason.UNKNOWN_PACKET_TYPE)[2:])
    client.expect_end()


def test_a_request_that_does_not_parse_closes(server: ServerProcess) -> None:
    client = server.log_in("client", features=Feature.HISTORY)
    client.send(encode(PacketType.HISTORY, b"\x05"))
    client.expect_error(Reason.MALFORMED_PACKET)
    client.expect_end()
