"""Mutated conversations over sockets: honest users notice none of them, and the checker notices every fault."""

from collections.abc import Callable

import gevent
import pytest

from protocol import HISTORY_END, Level, PacketType, encode, encode_presence, encode_string
from stress import letters
from stress.conversations import Ending, conversation
from stress.mutate import SERVER_OPTIONS, MutationReport, mutate
from testkit.faulty_proxy import Fault, FaultyProxy, ProxiedConnection
from testkit.server import StartServer

pytestmark = pytest.mark.slow

PRESENCE = encode_presence(True, "nobody", 99, 1)
NOBODY_DEAF = 665  # first of 150 conversations of seed 1 without a deaf client, with which a test takes seconds longer


def check(report: MutationReport, conversations: int) -> None:
    assert not report.faults, str(report)
    assert report.conversations == conversations
    assert report.sent == report.received > 0
    assert report.letters > 0


def test_seed_and_number_determine_a_conversation() -> None:
    talks = [conversation(1, number) for number in range(2000)]
    assert talks == [conversation(1, number) for number in range(2000)]
    assert talks != [conversation(2, number) for number in range(2000)]
    assert {one.ending for one in talks} == set(Ending)
    assert not any(one.ending is Ending.DEAF for one in talks[NOBODY_DEAF : NOBODY_DEAF + 150])


def test_mutated_conversations_do_not_affect_honest_users(start_server: StartServer) -> None:
    report = mutate(start_server(*SERVER_OPTIONS), 150, first=NOBODY_DEAF)
    check(report, 150)
    assert {"Config", "Pong", "Malformed Packet", "Unknown Packet Type"} <= set(report.answers)
    assert {"Presence", "Receipt", "History"} <= set(report.answers)


def test_many_mutated_conversations_do_not_affect_honest_users(start_server: StartServer) -> None:
    report = mutate(start_server(*SERVER_OPTIONS), 2000, seed=2)
    check(report, 2000)
    assert report.answers["Too Slow"] + report.answers["(cut)"] > 0  # (cut) if this process was delayed


def lose(_: ProxiedConnection, __: bytes) -> None:
    """The packet does not arrive."""


def change(link: ProxiedConnection, packet: bytes) -> None:
    link.put(packet[:-1] + b"!")


def double(link: ProxiedConnection, packet: bytes) -> None:
    link.put(packet)
    link.put(packet)


@pytest.mark.parametrize("damage", [lose, change, double])
def test_a_damaged_honest_message_is_a_fault(
    start_server: StartServer, damage: Callable[[ProxiedConnection, bytes], object]
) -> None:
    def fault(link: ProxiedConnection, packet: bytes, _: int) -> None:
        if b"honest-one:7 " in packet:
            damage(link, packet)
        else:
            link.put(packet)

    assert "honest-two got" in faults_behind(start_server, fault)


def test_a_reordered_honest_message_is_a_fault(start_server: StartServer) -> None:
    held: list[bytes] = []

    def fault(link: ProxiedConnection, packet: bytes, _: int) -> None:
        if b"honest-one:7 " in packet:
            held.append(packet)
            return
        link.put(packet)
        if b"honest-one:8 " in packet:
            link.put(held.pop())

    assert "honest-two got" in faults_behind(start_server, fault)


@pytest.mark.parametrize("damage", [lose, change, double])
def test_a_damaged_letter_is_a_fault(
    start_server: StartServer, damage: Callable[[ProxiedConnection, bytes], object]
) -> None:
    def fault(link: ProxiedConnection, packet: bytes, _: int) -> None:
        if packet.endswith(b"letter-writer:7"):
            damage(link, packet)
        else:
            link.put(packet)

    assert "letter-reader got" in faults_behind(start_server, fault)


@pytest.mark.parametrize("level", Level)
def test_a_missing_receipt_is_a_fault(start_server: StartServer, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(link: ProxiedConnection, packet: bytes, _: int) -> None:
        if packet[0] != PacketType.RECEIPT or packet[2] != level:
            link.put(packet)

    monkeypatch.setattr(letters, "RECEIPT_SECONDS", 1.0)
    assert f"{level.name}: [1, 2, 3" in faults_behind(start_server, fault)


def test_a_foreign_packet_within_a_replay_is_a_fault(start_server: StartServer) -> None:
    def fault(link: ProxiedConnection, packet: bytes, _: int) -> None:
        link.put(packet)
        if packet[0] == PacketType.HISTORY and packet != HISTORY_END:
            link.put(PRESENCE)

    assert "a packet of type 5 within a replay" in faults_behind(start_server, fault)


def test_a_packet_of_a_feature_not_requested_is_a_fault(start_server: StartServer) -> None:
    def fault(link: ProxiedConnection, packet: bytes, _: int) -> None:
        link.put(packet)
        if packet[0] == PacketType.ERROR:
            link.put(PRESENCE)

    assert "no packet of the protocol: Unknown Packet Type" in faults_behind(start_server, fault)


@pytest.mark.parametrize(
    "packet",
    [encode(PacketType.ERROR, encode_string(b"No Such Reason")), encode(PacketType.MESSAGE, b"x"), b"\x77\x00"],
)
def test_a_malformed_answer_is_a_fault(start_server: StartServer, packet: bytes) -> None:
    def fault(link: ProxiedConnection, answer: bytes, _: int) -> None:
        is_error = answer[0] == PacketType.ERROR
        link.put(packet if is_error else answer)

    assert "no packet of the protocol" in faults_behind(start_server, fault)


def faults_behind(start_server: StartServer, fault: Fault) -> str:
    server = start_server(*SERVER_OPTIONS)
    with FaultyProxy(server.host, server.port, fault) as proxy:
        report = mutate(server, 80, first=NOBODY_DEAF, address=(proxy.host, proxy.port))
    return "\n".join(report.faults)


def test_a_server_that_dies_is_a_fault(start_server: StartServer) -> None:
    server = start_server(*SERVER_OPTIONS)

    def kill() -> None:
        server.wait_for_log("letter-reader disconnected", times=2)  # all honest users are active
        server.process.kill()

    killing = gevent.spawn(kill)
    report = mutate(server, 1000)
    killing.get()
    assert "the server has ended, with status -9" in report.faults
