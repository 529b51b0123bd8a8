"""The load tester against servers that do damage, stand still or die: what it tells of it."""

import math
import signal
import sqlite3
import time
from collections import defaultdict
from contextlib import closing, suppress
from pathlib import Path

import pytest

from loadtest.core.ledger import decode_stamp
from protocol import PacketType, Reason, encode, encode_error, parse_user_id
from testkit.faulty_proxy import (
    Fault,
    FaultyProxy,
    ProxiedConnection,
    delay,
    duplicate,
    flip,
    lose_every,
    misdeliver,
    stall,
    swallow_after,
    swap,
)
from testkit.loadtests import CHAT, LoadRun, Pair, load, read_ledger, read_numbers, start_locust
from testkit.ports import free_port
from testkit.processes import DEADLINE, wait_for
from testkit.scripted_server import ScriptedServer
from testkit.server import ServerProcess, StartServer

pytestmark = pytest.mark.slow

USERS = 4
ENOUGH = 200  # Messages, for every fault to show
TOLERANT = [
    part
    for row in ("connection", "connect", "login", "chat init", "send", "deliver")
    for part in ("--fail-if", f"{row}.failures>1000")
]
PONGS_MAY_WAIT = ("--fail-if", "chat init.failures>4")  # behind the messages of who was alone at first


def run_damaged(
    server: ServerProcess, fault: Fault, folder: Path, *options: object
) -> tuple[LoadRun, dict[Pair, list[int]]]:
    """Two pairs behind a proxy, until ENOUGH has been said: what Locust has found, and the numbers of the messages that
    the proxy has damaged.
    """
    with (
        FaultyProxy(server.host, server.port, fault) as proxy,
        start_locust(folder, *load(proxy.address, USERS), "--drain", 10, *options, "Chatter") as locust,
    ):
        locust.wait_for_users()
        wait_for("enough is said", lambda: proxy.messages >= ENOUGH)
        locust.interrupt()
        run = locust.end()
    damaged: defaultdict[Pair, list[int]] = defaultdict(list)
    for message in proxy.damaged:
        sender, _, text = message.decode().partition(":")
        receiver, number = read_message(text)
        damaged[sender, receiver].append(number)
    assert "Traceback" not in run.log, run.explain()
    return run, dict(damaged)


def read_message(text: str) -> tuple[str, int]:
    """To whom it was sent, which only its checksum knows, and its number."""
    for name in (f"load-{number}" for number in range(USERS)):
        with suppress(ValueError):
            return name, decode_stamp(text, name).number
    raise AssertionError(f"{text!r} is to nobody")


def expect_failure(run: LoadRun, **faults: int) -> None:
    """The run has failed because of these faults and no others."""
    assert run.status == 1, run.explain()
    assert run.faults == faults
    assert run.failed - {"deliver.failures > 0"} == {f"{fault} > 0" for fault in faults}
    named = {fault: sum(map(len, pairs.values())) for fault, pairs in run.findings.items()}
    assert named == faults


def test_lost_messages_are_named_by_pair_and_number(server: ServerProcess, tmp_path: Path) -> None:
    run, damaged = run_damaged(server, lose_every(80), tmp_path, "--ledger", "ledger.csv")
    lost = sum(map(len, damaged.values()))
    assert lost > 1
    expect_failure(run, lost=lost)
    assert run.findings["lost"] == damaged
    assert run.difference == f" + {lost}: it does not balance"
    assert run.ledger["delivered"] == run.ledger["sent"] - lost
    in_file = {pair: read_numbers(line["lost"]) for pair, line in read_ledger(tmp_path / "ledger.csv").items()}
    assert {pair: numbers for pair, numbers in in_file.items() if numbers} == damaged
    named = [error for error in run.errors if error.startswith("ledger: ")]
    assert len(named) == len(damaged)


def test_a_message_that_arrives_twice_is_named(server: ServerProcess, tmp_path: Path) -> None:
    run, damaged = run_damaged(server, duplicate(60), tmp_path)
    expect_failure(run, duplicated=1)
    assert run.findings["duplicated"] == damaged
    assert run.is_balanced
    assert run.rows["deliver"].failures == 1
    assert run.errors["chat deliver: FaultFound('duplicated')"] == 1


def test_a_message_that_another_one_overtakes_is_named(server: ServerProcess, tmp_path: Path) -> None:
    run, damaged = run_damaged(server, swap(60, DEADLINE), tmp_path)
    expect_failure(run, reordered=1)
    assert run.findings["reordered"] == {pair: numbers[:1] for pair, numbers in damaged.items()}
    assert run.is_balanced


def test_a_message_with_one_wrong_bit_is_named(server: ServerProcess, tmp_path: Path) -> None:
    run, damaged = run_damaged(server, flip(60), tmp_path)
    expect_failure(run, corrupted=1)
    assert run.findings["corrupted"] == damaged
    assert run.rows["deliver"].failures == 1


def test_a_misdelivered_message_is_named(server: ServerProcess, tmp_path: Path) -> None:
    run, damaged = run_damaged(server, misdeliver(60), tmp_path)
    expect_failure(run, misdelivered=1, lost=1)
    assert run.findings["lost"] == damaged
    ((sender, receiver), numbers) = next(iter(damaged.items()))
    ((known_sender, other), known_numbers) = next(iter(run.findings["misdelivered"].items()))
    assert (known_sender, known_numbers) == (sender, numbers)
    assert other != receiver


def test_messages_that_nothing_follows_are_lost_as_well(server: ServerProcess, tmp_path: Path) -> None:
    run, damaged = run_damaged(server, swallow_after(100), tmp_path, "--drain", 4)
    lost = sum(map(len, damaged.values()))
    assert lost > 20
    expect_failure(run, lost=lost)
    assert run.findings["lost"] == damaged
    assert run.ledger["delivered"] == 99


def test_late_messages_are_measured_and_pass(server: ServerProcess, tmp_path: Path) -> None:
    run, _ = run_damaged(server, delay(0.1), tmp_path)
    assert run.status == 0, run.explain()
    assert run.is_balanced
    assert run.ledger["delivered"] == run.ledger["sent"]
    assert 0.1 <= run.rows["deliver"].times["p50"] < 10


def test_messages_that_are_too_late_fail_the_condition(server: ServerProcess, tmp_path: Path) -> None:
    run, _ = run_damaged(server, delay(0.1), tmp_path, "--fail-if", "deliver.p50>80ms")
    assert run.status == 1, run.explain()
    assert run.failed == {"deliver.p50 > 80 ms"}
    assert run.verdict["deliver.p50 > 80 ms"].figure.endswith("ms")
    assert run.is_balanced


def test_a_pause_shows_in_the_highest_latencies(server: ServerProcess, tmp_path: Path) -> None:
    run, _ = run_damaged(server, stall(50, 0.5), tmp_path)
    assert run.status == 0, run.explain()
    assert run.is_balanced
    assert run.rows["deliver"].times["p99"] >= 0.4
    assert run.rows["deliver"].times["max"] >= 0.45


def test_a_message_missing_after_the_drain_time_is_lost(server: ServerProcess, tmp_path: Path) -> None:
    def late(link: ProxiedConnection, packet: bytes, number: int) -> None:
        link.put(packet, 60.0 if number > 50 else 0.0)

    run, _ = run_damaged(server, late, tmp_path, "--drain", 2, *PONGS_MAY_WAIT)
    expect_failure(run, lost=run.ledger["sent"] - 50)
    assert run.ledger["delivered"] == 50
    assert run.ledger["lost"] > 20


def test_a_message_that_arrives_within_the_drain_time_is_delivered(server: ServerProcess, tmp_path: Path) -> None:
    run, _ = run_damaged(server, stall(50, 3.5), tmp_path, "--drain", 20)
    assert run.status == 0, run.explain()
    assert run.is_balanced
    assert run.ledger["delivered"] == run.ledger["sent"]


# A server that is paused, or dies


def test_a_paused_server_cannot_slow_down_the_load_tester(server: ServerProcess, tmp_path: Path) -> None:
    users, rate = 10, 20
    with start_locust(tmp_path, *load(server.address, users, 10, rate=rate), "Chatter") as locust:
        locust.wait_for_users()
        time.sleep(1)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(3)
        server.process.send_signal(signal.SIGCONT)
        run = locust.end()
    assert run.status == 0, run.explain()
    assert run.is_balanced
    due = users * rate * run.seconds
    assert 0.8 * due <= run.ledger["sent"] <= 1.2 * due  # it would be 0.7 of them
    assert run.rows["deliver"].times["p99"] >= 1.5
    assert run.rows["deliver"].times["max"] >= 2.7
    assert run.rows["deliver"].times["p50"] < 0.5


def test_a_signal_while_users_wait_for_the_last_messages_loses_none(server: ServerProcess, tmp_path: Path) -> None:
    def late(link: ProxiedConnection, packet: bytes, number: int) -> None:
        link.put(packet, 1.5 if number else 0.0)

    with (
        FaultyProxy(server.host, server.port, late) as proxy,
        start_locust(tmp_path, *load(proxy.address, 4, 4), "--drain", 20, *PONGS_MAY_WAIT, "Chatter") as locust,
    ):
        locust.wait_for_log("limit reached")
        locust.process.terminate()
        run = locust.end()
    assert run.status == 0, run.explain()
    assert run.is_balanced
    assert run.ledger["delivered"] == run.ledger["sent"] > 100


def count_senders(server: ServerProcess) -> int:
    """How many have said something, by the server's database."""
    with closing(sqlite3.connect(server.data_dir / "chats.db")) as chats:
        count: int = chats.execute("SELECT count(DISTINCT sender) FROM batches").fetchone()[0]
    return count


def unread_bytes(port: int) -> int:
    """What has come for the server at this port, and is still with the kernel."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return sum(int(fields[4].partition(":")[2], 16) for fields in sockets if fields[1].endswith(f":{port:04X}"))


@pytest.mark.parametrize("tolerant", [False, True])
def test_users_come_back_when_the_server_does(start_server: StartServer, tmp_path: Path, tolerant: bool) -> None:
    server = start_server("--port", free_port())
    rate = 20
    began = time.monotonic()
    options = [*load(server.address, USERS, rate=rate), *TOLERANT * tolerant]
    with start_locust(tmp_path, *options, "Chatter") as locust:
        wait_for("everybody to have said something", lambda: count_senders(server) == USERS)
        server.process.send_signal(signal.SIGSTOP)
        wait_for("messages in flight", lambda: unread_bytes(server.port) > 500)
        server.stop(signal.SIGKILL)
        at_most = math.ceil(USERS * rate * (time.monotonic() - began))  # have been sent
        start_server("--port", server.port)
        locust.wait_for_counts({"connect": 2 * USERS, "deliver": 2 * at_most})
        locust.interrupt()
        run = locust.end()
    assert run.status == (not tolerant), run.explain()
    assert run.is_balanced
    assert run.faults == {}
    assert run.ledger["in flight"] > 0
    assert run.ledger["delivered"] >= 2 * at_most
    assert run.rows["connection"].failures == USERS
    assert run.rows["connect"].count >= 2 * USERS
    assert ("connection.failures > 0" in run.failed) is not tolerant
    assert "Traceback" not in run.log


def test_an_error_that_arrives_with_the_last_pong_counts_for_its_pair(tmp_path: Path) -> None:
    visitors = tmp_path / "visitor.py"
    visitors.write_text("from chat import Reconnector\n\n\nclass Visitor(Reconnector):\n    fixed_count = 1\n")
    with (
        ScriptedServer() as server,
        start_locust(tmp_path, *load(server.address, 2), "Chatter", "Visitor", files=(CHAT, visitors)) as locust,
    ):
        peers = {peer.read_name(): peer for peer in (server.accept(), server.accept())}  # who comes first is open
        host, visitor = peers["load-0"], peers["load-1"]
        host.let_in("load-0")
        host.expect(PacketType.CHAT_INIT)
        visitor.let_in("load-1", "load-0")
        assert parse_user_id(visitor.expect(PacketType.CHAT_INIT)) == 1
        visitor.pong()
        visitor.expect(PacketType.MESSAGE)
        last = visitor.expect(PacketType.PING)
        host.close()
        server.accept()  # it has noticed, and wants to come back
        visitor.send(encode_error(Reason.USER_NOT_ONLINE), encode(PacketType.PONG, last))
        with pytest.raises(EOFError):
            visitor.read()
        locust.interrupt()
        run = locust.end()
    assert run.is_balanced, run.explain()
    assert run.ledger["refused"] == 1


def test_a_late_refusal_of_a_partner_is_not_counted_for_a_message(tmp_path: Path) -> None:
    with (
        ScriptedServer() as server,
        start_locust(tmp_path, *load(server.address, 1), "Chatter") as locust,
        server.accept() as peer,
    ):
        peer.log_in("load-0")
        peer.expect(PacketType.CHAT_INIT)
        chat = peer.expect(PacketType.PING)
        locust.interrupt()
        last = peer.expect(PacketType.PING)
        peer.send(encode_error(Reason.USER_NOT_ONLINE), encode(PacketType.PONG, chat), encode(PacketType.PONG, last))
        with pytest.raises(EOFError):
            peer.read()
        run = locust.end()
    assert run.is_balanced, run.explain()
    assert run.ledger["sent"] == run.ledger["refused"] == 0
