"""Receipts (section 7.2): sent as ranges to clients that ask for them, and never early."""

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver.transport.outbox import Outbox
from chatserver.transport.receipts import MAX_RANGES, Receipts
from protocol import (
    EXTRA_FROM_SERVER,
    FROM_SERVER,
    Decoder,
    Feature,
    Level,
    PacketType,
    Reason,
    encode_chat_init,
    encode_login,
    encode_message,
    encode_receipt,
    parse_receipt,
)
from testkit.flood import Flood
from testkit.server import ServerProcess, StartServer
from testkit.wire import Wire

pytestmark = pytest.mark.measured

Numbers = dict[Level, list[int]]


def numbers_in(packets: bytes) -> Numbers:
    """The numbers in these Receipts, by level, in order of arrival."""
    decoder = Decoder(FROM_SERVER)
    decoder.accept_extra(EXTRA_FROM_SERVER, Feature.RECEIPTS)
    numbers: Numbers = {level: [] for level in Level}
    for _, body in decoder.packets(packets):
        level, first, last = parse_receipt(body)
        numbers[level] += range(first, last + 1)
    return numbers


def read_receipts(client: Wire, stored: int, delivered: int) -> Numbers:
    """Read until so many Messages are confirmed as stored and as delivered."""
    packets, numbers = b"", numbers_in(b"")
    while (len(numbers[Level.STORED]), len(numbers[Level.DELIVERED])) != (stored, delivered):
        packet = client.read()
        assert packet is not None
        packets += bytes((packet[0], len(packet[1]))) + packet[1]
        numbers = numbers_in(packets)
    return numbers


# The ranges


@given(st.permutations(range(1, 30)), st.lists(st.integers(1, 28), max_size=6))
def test_numbers_in_any_order_are_confirmed_once_in_the_fewest_ranges(order: list[int], cuts: list[int]) -> None:
    calls: list[bool] = []
    receipts = Receipts(lambda: calls.append(True))
    wanted = [number for number in order if number not in cuts]
    for number in wanted:
        receipts.reach(Level.STORED, number, number)
    packets = receipts.take()
    assert numbers_in(packets)[Level.STORED] == sorted(wanted)
    ranges = sum(number - 1 not in wanted for number in wanted)
    assert len(packets) == ranges * len(encode_receipt(Level.STORED, 1, 1))
    assert len(calls) == len(wanted)
    assert receipts.take() == b""


def test_stored_receipts_come_before_delivered_ones() -> None:
    receipts = Receipts(lambda: None)
    receipts.reach(Level.DELIVERED, 1, 2)
    receipts.reach(Level.STORED, 1, 2)
    assert receipts.take() == encode_receipt(Level.STORED, 1, 2) + encode_receipt(Level.DELIVERED, 1, 2)


def test_many_ranges_are_taken_in_parts_and_count_as_full() -> None:
    receipts = Receipts(lambda: None)
    for number in range(1, 2 * MAX_RANGES, 2):
        receipts.reach(Level.DELIVERED, number, number)
    assert not receipts.is_full()
    receipts.reach(Level.DELIVERED, 2 * MAX_RANGES + 1, 2 * MAX_RANGES + 1)
    assert receipts.is_full()
    assert numbers_in(receipts.take())[Level.DELIVERED] == [*range(1, 2 * MAX_RANGES, 2)]
    assert not receipts.is_full()
    assert receipts.take() == encode_receipt(Level.DELIVERED, 2 * MAX_RANGES + 1, 2 * MAX_RANGES + 1)


def test_the_writer_is_called_until_all_ranges_are_taken() -> None:
    box = Outbox(10_000, lambda: None)
    receipts = Receipts(box.announce)
    box.notices.append(receipts.take)
    for number in range(1, 5 * MAX_RANGES, 2):
        receipts.reach(Level.DELIVERED, number, number)
    heard = b""
    while box.is_due:
        heard += box.take()
    assert numbers_in(heard)[Level.DELIVERED] == [*range(1, 5 * MAX_RANGES, 2)]


def test_a_number_too_large_for_the_packet_is_not_confirmed() -> None:
    receipts = Receipts(lambda: None)
    receipts.reach(Level.STORED, 2**32 - 1, 2**32 - 1)
    receipts.reach(Level.STORED, 2**32, 2**32)
    assert receipts.take() == encode_receipt(Level.STORED, 2**32 - 1, 2**32 - 1)


# With the real server


def test_a_client_that_does_not_read_its_receipts_is_throttled_and_then_too_slow(start_server: StartServer) -> None:
    server = start_server("--write-timeout", 1, "--metrics-port", 0)
    away = server.log_in("away")
    sink = server.log_in("sink")
    away.close()
    server.wait_for_log("away disconnected")
    alice = Wire(server.host, server.port, receive_buffer=2304)
    alice.send(encode_login("alice", features=Feature.RECEIPTS | Feature.MAILBOX | Feature.BRIEF))
    assert alice.read() is not None
    flood = Flood(alice, b"".join(encode_chat_init(user_id) + encode_message(b"") for user_id in (1, 2)))
    reading = gevent.spawn(read_to_the_end, sink)  # every other message is delivered at once
    flood.until_stuck(0.5)
    server.wait_for_log("alice disconnected: Too Slow")
    assert server.metrics()["chat_messages_accepted_total"] < 30_000
    reading.kill()


def read_to_the_end(client: Wire) -> None:
    while client.socket.recv(65536):
        pass


def test_a_run_of_messages_is_confirmed_as_one_range(server: ServerProcess) -> None:
    bob = server.log_in("bob")
    alice = server.log_in("alice", features=Feature.RECEIPTS)
    alice.chat_with(1)
    alice.send(encode_message(b"x") * 100)
    alice.expect(encode_receipt(Level.DELIVERED, 1, 100))
    alice.expect(encode_receipt(Level.STORED, 1, 100))
    for _ in range(100):
        bob.expect_message("alice:x")
    alice.expect_pong()


def test_refused_messages_are_numbered_too_and_a_split_message_only_once(server: ServerProcess) -> None:
    alice = server.log_in("alice", features=Feature.RECEIPTS)
    alice.say("1: to nobody")
    alice.expect_error(Reason.NO_CHAT_STARTED)
    alice.chat_with(1)
    alice.say("2")
    alice.say("3" * 136)
    alice.say("4")
    alice.send(encode_chat_init(1))
    alice.say("5")
    received = []
    numbers = b""
    while numbers_in(numbers)[Level.STORED][-1:] != [5] or numbers_in(numbers)[Level.DELIVERED][-1:] != [5]:
        packet = alice.read()
        assert packet is not None
        if packet[0] == PacketType.RECEIPT:
            numbers += bytes((packet[0], len(packet[1]))) + packet[1]
        else:
            received.append(packet)
    assert numbers_in(numbers) == {Level.STORED: [2, 3, 4, 5], Level.DELIVERED: [2, 3, 4, 5]}
    assert len(received) == 5  # of four


def test_messages_before_the_login_are_numbered_too(server: ServerProcess) -> None:
    with server.connect() as client:
        client.say("1")
        client.expect_error(Reason.NOT_LOGGED_IN)
        client.send(encode_login("alice", features=Feature.RECEIPTS))
        client.read_list("alice")
        client.chat_with(1)
        client.say("2")
        client.expect_message("alice:2")
        client.expect(encode_receipt(Level.DELIVERED, 2, 2))


def test_a_message_is_not_delivered_before_the_kernel_has_it(start_server: StartServer) -> None:
    server = start_server("--write-timeout", 60, "--history", "off")
    bob = Wire(server.host, server.port, receive_buffer=2304)
    bob.send(encode_login("bob"))
    bob.read_list("bob")
    alice = server.log_in("alice", features=Feature.RECEIPTS)
    alice.chat_with(1)
    count = 6000
    sending = gevent.spawn(alice.send, encode_message(b"x" * 100) * count)
    known = len(read_some(alice)[Level.DELIVERED])
    assert 0 < known < count
    for _ in range(count):
        bob.expect_message("alice:" + "x" * 100)
    sending.get(timeout=30)
    assert len(read_receipts(alice, 0, count - known)[Level.DELIVERED]) == count - known


def read_some(client: Wire) -> Numbers:
    """The receipts received until no more arrive."""
    packets = b""
    try:
        while packet := client.read():
            packets += bytes((packet[0], len(packet[1]))) + packet[1]
            client.socket.settimeout(0.2)
    except TimeoutError:
        client.socket.settimeout(30)
    return numbers_in(packets)


def test_receipts_switched_on_in_mid_session_start_there_with_the_right_numbers(
    server: ServerProcess,
) -> None:
    alice = server.log_in("alice")
    alice.chat_with(1)
    alice.say("1")
    alice.expect_message("alice:1")
    alice.send(encode_login("alice", features=Feature.RECEIPTS))
    alice.read_list("alice")
    alice.say("2")
    alice.expect_message("alice:2")
    assert read_receipts(alice, 1, 1) == {Level.STORED: [2], Level.DELIVERED: [2]}


def test_each_sender_gets_receipts_for_its_own_messages_only(server: ServerProcess) -> None:
    bob = server.log_in("bob")
    senders = [server.log_in(name, features=Feature.RECEIPTS) for name in ("alice", "carol")]
    for number, sender in enumerate(senders, start=1):
        sender.chat_with(1)
        sender.send(encode_message(b"x") * number)
    for number, sender in enumerate(senders, start=1):
        expected = list(range(1, number + 1))
        assert read_receipts(sender, number, number) == {Level.STORED: expected, Level.DELIVERED: expected}
    for _ in range(3):
        assert bob.read() is not None
