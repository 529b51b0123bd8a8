"""The load tester with the protocol's extensions, against servers that get them wrong: what it tells of it."""

import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import cycle
from pathlib import Path

import pytest

from client import ChatClient
from protocol import HEADER_BYTES, STRING_PREFIX_BYTES, Feature, Level, PacketType, encode_receipt, parse_receipt
from testkit.faulty_proxy import Fault, FaultyProxy, ProxiedConnection, delay
from testkit.loadtests import LoadRun, expect_clean, load, run_until, start_locust
from testkit.ports import free_port
from testkit.processes import wait_for
from testkit.server import ServerProcess, StartServer

pytestmark = pytest.mark.slow

USERS = 16
TOLERANT = [
    part
    for row in ("connection", "connect", "login", "chat init", "send", "deliver", "refresh")
    for part in ("--fail-if", f"{row}.failures>1000")
]


def run_damaged(
    server: ServerProcess, fault: Fault, folder: Path, enough: Mapping[str, int], *options: object
) -> LoadRun:
    """Behind a proxy, until enough is counted; what Locust has found."""
    with FaultyProxy(server.host, server.port, fault) as proxy:
        run = run_until(folder, enough, *load(proxy.address, USERS), "--drain", 10, *options)
    assert "Traceback" not in run.log, run.explain()
    return run


def sender(message: bytes) -> bytes:
    return message[HEADER_BYTES + STRING_PREFIX_BYTES :].partition(b":")[0]


def told(run: LoadRun, row: str) -> str:
    """What Locust's report says of this row's failures."""
    return "\n".join(error for error in run.errors if error.startswith(f"chat {row}: "))


# Receipts


def test_receipts_that_are_lost_fail_nothing(server: ServerProcess, tmp_path: Path) -> None:
    def lose(link: ProxiedConnection, packet: bytes, _: int) -> None:
        if packet[0] != PacketType.RECEIPT:
            link.put(packet)

    run = run_damaged(server, lose, tmp_path, {"deliver": 500}, "--features", "receipts,mailbox")
    expect_clean(run)
    assert not {"stored", "delivered"} & run.rows.keys()


def test_receipts_that_are_ahead_of_the_truth_fail_their_row(server: ServerProcess, tmp_path: Path) -> None:
    seen: Counter[Level] = Counter()

    def exaggerate(link: ProxiedConnection, packet: bytes, _: int) -> None:
        link.put(packet)
        if packet[0] != PacketType.RECEIPT:
            return
        level, first, last = parse_receipt(packet[HEADER_BYTES:])
        seen[level] += 1
        if seen[level] == 20:
            link.put(packet)
        if seen[level] == 40:
            link.put(encode_receipt(level, last + 1000, last + 1000))
        if level is Level.STORED:  # but some have been delivered by then
            link.put(encode_receipt(Level.DELIVERED, first, last))

    enough = {"stored.failures": 2, "delivered.failures": 1}
    run = run_damaged(server, exaggerate, tmp_path, enough, "--features", "receipts,mailbox", "Traveller")
    assert run.status == 1, run.explain()
    assert run.failed == {"stored.failures > 0", "delivered.failures > 0"}
    assert run.rows["stored"].failures == 2
    assert "some of which had one before" in told(run, "stored")
    assert "had been sent" in told(run, "stored")
    assert "for a message to an offline user" in told(run, "delivered")
    assert run.is_balanced


# Mailboxes


def test_a_mailed_message_that_is_lost_doubled_or_overtaken_is_named(server: ServerProcess, tmp_path: Path) -> None:
    first: dict[ProxiedConnection, bytes] = {}
    kinds = cycle(("lost", "duplicated", "reordered"))
    damages: Counter[str] = Counter()

    def damage(link: ProxiedConnection, packet: bytes, number: int) -> None:
        """To the first message of each connection, if the very next packet is another one by its sender: then it is
        certain to be noticed. Until then it waits, at the longest for the answer to the ping before the client leaves.
        """
        if number and link not in first:
            first[link] = packet
            return
        packets = [packet]
        if message := first.get(link):
            first[link] = b""  # once is enough: two damages to neighbours would be hard to tell apart
            packets = [message, packet]
            if number and sender(message) == sender(packet):
                kind = next(kinds)
                damages[kind] += 1
                outcomes = {"lost": [packet], "duplicated": [message, *packets], "reordered": [packet, message]}
                packets = outcomes[kind]
        for each in packets:
            link.put(each)

    enough = {"mailbox": 20, "deliver.failures": 6}  # for each kind twice; what is lost shows at the end
    run = run_damaged(server, damage, tmp_path, enough, "--features", "mailbox", "Traveller")
    assert run.status == 1, run.explain()
    assert run.faults == {kind: damages[kind] for kind in ("lost", "duplicated", "reordered")}
    assert run.ledger["in flight"] == 0
    assert run.failed == {"lost > 0", "duplicated > 0", "reordered > 0", "deliver.failures > 0"}
    assert run.rows["mailbox"].count > 10


def test_a_full_mailbox_refuses_and_loses_nothing(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--mailbox-messages", 5)
    options = (*load(server.address, USERS), "--features", "mailbox,receipts", "Traveller")
    run = run_until(tmp_path, {"deliver.failures": 1, "mailbox": 20}, *options)
    assert run.status == 1, run.explain()
    assert run.failed == {"deliver.failures > 0"}
    assert run.errors == {"chat deliver: ServerError('Mailbox Full')": run.ledger["refused"]}
    assert run.is_balanced
    assert run.faults == {}


def test_mail_of_an_earlier_run_does_not_count(server: ServerProcess, tmp_path: Path) -> None:
    with ChatClient(server.host, server.port) as owner:
        user_id = owner.login("load-0")
    with ChatClient(server.host, server.port) as client:
        client.login("somebody", features=Feature.MAILBOX)
        wait_for("the server to notice", lambda: "load-0" not in client.refresh())
        client.chat(user_id)
        for _ in range(3):
            client.send("left over")
        client.ping()
    run = run_until(tmp_path, {"deliver": 1}, *load(server.address, 2), "--features", "mailbox")
    expect_clean(run)
    assert "3 messages of an earlier run were waiting for load-0" in run.log


def test_nothing_is_lost_where_news_travel_slowly(server: ServerProcess, tmp_path: Path) -> None:
    """Messages written before the server notices a departure, and those in flight at the end, are no faults."""
    with FaultyProxy(server.host, server.port, delay(0.3)) as proxy:
        proxy.linger = 0.2
        run = run_until(tmp_path, {"mailbox": 100}, *load(proxy.address, USERS), "--features", "mailbox", "Traveller")
    expect_clean(run)
    assert run.rows["mailbox"].count > 10


def grown(server: ServerProcess, figure: str, by: int) -> Callable[[], bool]:
    """Whether this figure has grown by so much since now."""
    before = server.metrics()[figure]
    return lambda: server.metrics()[figure] >= before + by


@pytest.mark.parametrize("disk", ["keeps", "forgets", "goes back"])
def test_a_killed_server_owes_what_was_stored_and_may_repeat_what_was_delivered(
    start_server: StartServer, tmp_path: Path, disk: str
) -> None:
    server = start_server("--port", free_port(), "--metrics-port", 0)
    database = server.data_dir / "chats.db"
    options = [*load(server.address, USERS, rate=150), *TOLERANT, "--features", "mailbox,receipts"]
    with start_locust(tmp_path, *options, "Traveller", "Refresher") as locust:  # who is always there to notice
        locust.wait_for_users()
        wait_for("something waits in mailboxes", lambda: server.metrics()["chat_mailbox_messages"] > 100)
        with closing(sqlite3.connect(database)) as reader, closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
            reader.backup(copy)
            if disk == "goes back":
                wait_for("much of this is delivered", grown(server, "chat_mailbox_delivered_total", 100))
                wait_for("much is new", grown(server, "chat_messages_stored_total", 100))
            else:
                reader.execute("BEGIN IMMEDIATE")  # from now on nothing gets to the disk
                time.sleep(0.8)  # less than the server takes for a failure; receipts arrive
            server.stop(signal.SIGKILL)
        if disk != "keeps":
            for file in server.data_dir.glob("chats.db*"):
                file.unlink()
        if disk == "goes back":
            (tmp_path / "copy.db").rename(database)
        start_server("--port", server.port)
        locust.wait_for_counts({"connection.failures": 1})
        everybody_back = locust.counted("login") + 3 * USERS
        locust.wait_for_counts({"login": everybody_back, "mailbox": 200, "repeated": disk == "goes back"})
        locust.interrupt()
        run = locust.end()
    assert run.rows["connection"].failures > 0
    assert run.rows["mailbox"].count > 100
    assert run.faults.keys() == (set() if disk == "keeps" else {"lost"}), run.explain()
    assert run.failed == {f"{fault} > 0" for fault in run.faults}
    assert run.is_balanced == (disk == "keeps")
    assert ("repeated" in run.rows) >= (disk == "goes back")


# The past


def test_a_past_that_is_not_what_was_said_fails_the_row(server: ServerProcess, tmp_path: Path) -> None:
    replays: dict[ProxiedConnection, list[bytes]] = {}
    damages = iter(("leave out", "exchange", "ascribe"))

    def damage(link: ProxiedConnection, packet: bytes, _: int) -> None:
        if packet[0] == PacketType.HISTORY and len(packet) > HEADER_BYTES:
            replays.setdefault(link, []).append(packet)
        elif packet[0] == PacketType.HISTORY:
            replay = replays.pop(link, [])
            if len(replay) >= 8:  # of which each second one is a message; four of them
                match next(damages, ""):
                    case "leave out":
                        del replay[2:4]
                    case "exchange":
                        replay[1::2] = reversed(replay[1::2])
                    case "ascribe":
                        replay[2] = replay[2][:-1] + b"\xff"
            for each in (*replay, packet):
                link.put(each)
        elif replays.get(link):
            replays[link].append(packet)
        else:
            link.put(packet)

    options = ("--features", "history", "--pairing", "ring")  # whose pasts have one writer
    run = run_damaged(server, damage, tmp_path, {"history.failures": 3}, *options, "Historian")
    assert run.status == 1, run.explain()
    assert run.failed == {"history.failures > 0"}
    assert run.rows["history"].failures == 3
    assert "(255)" in told(run, "history")
    assert "out of order" in told(run, "history")
    assert "not all of them" in told(run, "history") or "were asked for" in told(run, "history")
    assert run.is_balanced
