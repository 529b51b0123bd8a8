"""Messages to offline users (section 7), with the real server."""

import signal

import pytest

from chatserver.listener import SEND_BUFFER_BYTES
from protocol import (
    ALL_FEATURES,
    Envelope,
    Feature,
    Level,
    PacketType,
    Reason,
    encode,
    encode_chat_init,
    encode_error,
    encode_login,
    encode_message,
    encode_receipt,
)
from testkit.flood import BIG, RELAYED_BIG, Flood, stuck_pair
from testkit.processes import wait_for
from testkit.server import PATIENT, ServerProcess, StartServer
from testkit.wire import Wire

BOTH = Feature.MAILBOX | Feature.RECEIPTS


def write_to(server: ServerProcess, receiver: int, features: Feature = Feature.MAILBOX) -> Wire:
    alice = server.log_in("alice", features=features)
    alice.chat_with(receiver)
    return alice


def test_messages_to_an_offline_user_arrive_after_the_list_oldest_first(server: ServerProcess) -> None:
    server.visit("bob")
    alice = write_to(server, 1)
    carol = server.log_in("carol", features=Feature.MAILBOX)
    carol.chat_with(1)
    for number in range(50):
        alice.say(f"{number}")
        alice.expect_pong()
        carol.say(f"{number}")
        carol.expect_pong()
    bob = server.log_in("bob")  # without features
    for number in range(50):
        bob.expect_message(f"alice:{number}")
        bob.expect_message(f"carol:{number}")
    bob.expect_pong()
    alice.say("and now live")
    bob.expect_message("alice:and now live")
    bob.close()
    server.wait_for_log("bob disconnected", times=2)
    server.log_in("bob").expect_pong()


def test_a_mailbox_survives_a_restart(start_server: StartServer) -> None:
    first = start_server()
    first.visit("bob")
    alice = write_to(first, 1)
    alice.say("one")
    alice.say("x" * 136)
    alice.expect_pong()
    first.stop()
    bob = start_server().log_in("bob")
    bob.expect_message("alice:one")
    bob.expect(Envelope("alice").wrap(b"x" * 136)[:140])
    bob.expect(Envelope("alice").wrap(b"x" * 136)[140:])
    bob.expect_pong()


def test_stored_messages_survive_a_kill_and_committed_deliveries_are_not_repeated(
    start_server: StartServer,
) -> None:
    first = start_server("--sync", "always")
    first.visit("bob")
    alice = write_to(first, 1, BOTH)
    for number in range(3):
        alice.say(f"{number}")
        alice.expect(encode_receipt(Level.STORED, number + 1, number + 1))
    bob = first.log_in("bob")
    for number in range(3):
        bob.expect_message(f"alice:{number}")
    bob.close()
    first.wait_for_log("bob disconnected", times=2)
    for number in range(3, 6):
        alice.say(f"{number}")
    while not (packet := alice.read() or (0, b""))[1].endswith(b"\6") or packet[1][0] != Level.STORED:
        assert packet[0] == PacketType.RECEIPT  # of the last commit, which also notes what was delivered
    first.stop(signal.SIGKILL)
    bob = start_server().log_in("bob")
    for number in range(3, 6):
        bob.expect_message(f"alice:{number}")
    bob.expect_pong()


def test_a_sender_without_the_mailbox_feature_is_refused(server: ServerProcess) -> None:
    server.visit("bob")
    alice = server.log_in("alice", features=ALL_FEATURES & ~Feature.MAILBOX)
    alice.send(encode_chat_init(1))
    alice.expect_error(Reason.USER_NOT_ONLINE)
    server.log_in("bob").expect_pong()


@pytest.mark.parametrize("user_id", [3, 200])
def test_messages_to_an_id_that_never_signed_up_are_refused(server: ServerProcess, user_id: int) -> None:
    server.visit("bob")
    alice = server.log_in("alice", features=Feature.MAILBOX)
    alice.send(encode_chat_init(user_id))
    alice.expect_error(Reason.USER_NOT_ONLINE)


def test_without_a_history_there_are_no_mailboxes_and_nothing_is_on_disk(start_server: StartServer) -> None:
    server = start_server("--history", "off")
    server.visit("bob")
    alice = server.log_in("alice", features=BOTH)
    alice.send(encode_chat_init(1))
    alice.expect_error(Reason.USER_NOT_ONLINE)
    alice.chat_with(2)
    alice.say("to myself")
    alice.expect_message("alice:to myself")
    alice.expect(encode_receipt(Level.DELIVERED, 1, 1))
    alice.expect_pong()
    assert not (server.data_dir / "chats.db").exists()


def test_a_full_mailbox_accepts_what_fits_and_refuses_the_rest(start_server: StartServer) -> None:
    server = start_server("--mailbox-messages", 3)
    server.visit("bob")
    alice = write_to(server, 1)
    alice.send(*(encode_message(b"%d" % number) for number in range(5)))
    alice.expect_error(Reason.MAILBOX_FULL)
    alice.expect_error(Reason.MAILBOX_FULL)
    alice.expect_pong()
    bob = server.log_in("bob")
    for number in range(3):
        bob.expect_message(f"alice:{number}")
    bob.close()
    server.wait_for_log("bob disconnected", times=2)
    alice.say("there is room again")
    alice.expect_pong()
    server.log_in("bob").expect_message("alice:there is room again")


def test_a_partner_that_leaves_in_mid_chat_gets_the_rest_at_the_next_login(server: ServerProcess) -> None:
    bob = server.log_in("bob")
    alice = write_to(server, 1)
    alice.say("here")
    bob.expect_message("alice:here")
    bob.close()
    server.wait_for_log("bob disconnected")
    alice.say("gone")
    alice.expect_pong()
    server.log_in("bob").expect_message("alice:gone")


def test_a_dropped_reader_loses_no_message_and_gets_none_twice(start_server: StartServer) -> None:
    options = ("--outbox-bytes", 4096, "--write-timeout", 5, "--mailbox-messages", 100_000)
    server = start_server(*options, program=PATIENT)
    bob = Wire(server.host, server.port, receive_buffer=2304)
    bob.send(encode_login("bob"))
    bob.read_list("bob")
    alice = write_to(server, 1, BOTH)
    flood = Flood(alice, BIG)
    flood.until_stuck(0.2)
    server.wait_for_log("bob disconnected: Too Slow")
    received = 0
    while (packet := bob.read()) == (RELAYED_ALICE[0], RELAYED_ALICE[2:]):
        received += 1
    assert packet == (PacketType.ERROR, encode_error(Reason.TOO_SLOW)[2:])
    sent = flood.end()
    bob = server.log_in("bob")
    for _ in range(sent - received):
        bob.expect(RELAYED_ALICE)
    bob.expect_pong()
    delivered = set[int]()
    while len(delivered) < sent:
        packet = alice.read()
        assert packet is not None
        assert packet[0] == PacketType.RECEIPT, packet
        first, last = int.from_bytes(packet[1][1:5]), int.from_bytes(packet[1][5:])
        if packet[1][0] == Level.DELIVERED:
            assert delivered.isdisjoint(range(first, last + 1)), "twice"
            delivered |= set(range(first, last + 1))
    assert delivered == set(range(1, sent + 1))


RELAYED_ALICE = Envelope("alice").wrap(b"x" * 100)


def test_a_mailbox_larger_than_the_outbox_arrives_as_the_client_reads_and_is_not_overtaken(
    start_server: StartServer,
) -> None:
    server = start_server("--outbox-bytes", 1024, "--write-timeout", 60, "--mailbox-messages", 5000)
    server.visit("bob")
    alice = write_to(server, 1)
    text = "x" * 90
    for number in range(3000):
        alice.say(f"{number} {text}")
    alice.expect_pong()
    bob = Wire(server.host, server.port, receive_buffer=2304)
    bob.send(encode_login("bob"))
    bob.read_list("bob")
    alice.say("live")  # waits until bob has caught up
    carol = server.log_in("carol")
    carol.chat_with(1)
    carol.say("live")
    carol.send(encode(PacketType.PING, b"carol"))
    for number in range(3000):
        bob.expect_message(f"alice:{number} {text}")
    rest = [bob.read(), bob.read()]
    assert sorted(rest, key=str) == sorted(
        [(PacketType.MESSAGE, Envelope(name).wrap(b"live")[2:]) for name in ("alice", "carol")], key=str
    )
    carol.expect(encode(PacketType.PONG, b"carol"))
    bob.expect_pong()


def test_a_client_that_leaves_in_mid_mailbox_gets_the_rest_at_the_next_login(start_server: StartServer) -> None:
    server = start_server("--outbox-bytes", 1024, "--mailbox-messages", 5000)
    server.visit("bob")
    alice = write_to(server, 1)
    text = "x" * 90
    for number in range(3000):
        alice.say(f"{number} {text}")
    alice.expect_pong()
    number = 0
    for visit in range(3):
        bob = Wire(server.host, server.port, receive_buffer=2304)
        bob.send(encode_login("bob"))
        bob.read_list("bob")
        first = bob.read()
        assert first is not None
        begin = int(first[1][len("..alice:") :].split()[0])
        assert begin == number or visit, "what the kernel had taken went with the connection, and nothing else"
        assert number <= begin < number + 2 * SEND_BUFFER_BYTES // len(text)
        for number in range(begin + 1, begin + 100 * visit + 10):
            bob.expect_message(f"alice:{number} {text}")
        bob.close()
        server.wait_for_log("bob disconnected", times=visit + 2)
        number += 1
    bob = server.log_in("bob")
    first = bob.read()
    assert first is not None
    for number in range(int(first[1][len("..alice:") :].split()[0]) + 1, 3000):
        bob.expect_message(f"alice:{number} {text}")
    bob.expect_pong()


def test_a_mailbox_delivery_is_confirmed_while_the_sender_is_still_connected(server: ServerProcess) -> None:
    server.visit("bob")
    alice = write_to(server, 1, BOTH)
    alice.send(encode_message(b"one"), encode_message(b"two"))
    alice.expect(encode_receipt(Level.STORED, 1, 2))
    bob = server.log_in("bob")
    bob.expect_message("alice:one")
    bob.expect_message("alice:two")
    alice.expect(encode_receipt(Level.DELIVERED, 1, 2))
    bob.close()
    server.wait_for_log("bob disconnected", times=2)
    alice.say("three")
    alice.expect(encode_receipt(Level.STORED, 3, 3))
    alice.close()
    server.wait_for_log("alice disconnected")
    again = server.log_in("alice", features=BOTH)
    server.log_in("bob").expect_message("alice:three")
    again.expect_pong()  # and no Receipt: the Message was another connection's


@pytest.mark.one_server
def test_the_figures_add_up(start_server: StartServer) -> None:
    server = start_server("--mailbox-messages", 3, "--metrics-port", 0)
    server.visit("bob")
    alice = write_to(server, 1)
    alice.send(*(encode_message(b"%d" % number) for number in range(5)))
    alice.expect_error(Reason.MAILBOX_FULL)
    alice.expect_error(Reason.MAILBOX_FULL)
    figures = server.metrics()
    assert figures["chat_messages_accepted_total"] == 5
    assert figures["chat_messages_mailed_total"] == figures["chat_mailbox_messages"] == 3
    assert figures["chat_messages_refused_total{Mailbox Full}"] == 2
    bob = server.log_in("bob")
    for number in range(3):
        bob.expect_message(f"alice:{number}")
    alice.say("live")
    bob.expect_message("alice:live")
    figures = server.metrics()
    assert figures["chat_messages_mailed_total"] == figures["chat_mailbox_delivered_total"] == 3
    assert figures["chat_mailbox_messages"] == figures["chat_messages_in_flight"] == 0
    assert figures["chat_messages_delivered_total"] == 1
    wait_for("the last one on disk", lambda: server.metrics()["chat_messages_stored_total"] == 4)
    assert 0 < server.metrics()["chat_commit_seconds_count"] < 4 + 3


def test_without_mailboxes_what_a_dropped_reader_did_not_get_is_refused_or_lost(
    start_server: StartServer,
) -> None:
    server = start_server("--outbox-bytes", 4096, "--write-timeout", 1, program=PATIENT)
    reader, sender, flood = stuck_pair(server)
    server.wait_for_log("reader disconnected: Too Slow")
    while reader.read() == (RELAYED_BIG[0], RELAYED_BIG[2:]):
        pass
    flood.end()
    refused = 0
    sender.send(encode(PacketType.PING, b"!"))
    while sender.read() == (PacketType.ERROR, encode_error(Reason.USER_NOT_ONLINE)[2:]):
        refused += 1
    assert refused > 0
    server.log_in("reader").expect_pong()
