"""The server's own figures against the load tester's ledger: two who count the same messages, and differ in none."""

from functools import partial
from pathlib import Path

import pytest

from protocol import Reason, encode_error
from testkit.flood import PUSH_BYTES, RELAYED_BIG, stuck_pair
from testkit.loadtests import LoadRun, load, run_until, start_locust
from testkit.processes import wait_for
from testkit.server import ServerProcess, StartServer

USERS = 20


def settled(server: ServerProcess) -> dict[str, int]:
    """The server's figures once everybody has gone, by the ledger's names."""
    wait_for("everybody gone", lambda: server.metrics()["chat_connected"] == 0)
    wait_for("nothing in flight", lambda: server.metrics()["chat_messages_in_flight"] == 0)
    figures = server.metrics()
    refused = sum(value for name, value in figures.items() if name.startswith("chat_messages_refused_total"))
    return {
        "sent": int(figures["chat_messages_accepted_total"]),
        "delivered": int(figures["chat_messages_delivered_total"]),
        "refused": int(refused),
        "undeliverable": int(figures["chat_messages_undeliverable_total"]),
        "mailed": int(figures["chat_messages_mailed_total"]),
    }


def ledger(run: LoadRun) -> dict[str, int]:
    assert run.is_balanced, run.explain()
    assert run.faults == {}, run.explain()
    return {name: run.ledger[name] for name in ("sent", "delivered", "refused")}


@pytest.mark.slow
def test_the_server_has_counted_what_the_ledger_has(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--metrics-port", 0)
    run = run_until(tmp_path, {"send": 1001, "connect": 2 * USERS}, *load(server.address, USERS))
    assert run.status == 0, run.explain()
    assert run.ledger["in flight"] == 0
    assert run.ledger["sent"] > 1000
    assert run.rows["connect"].count > USERS  # some have come back
    assert settled(server) == ledger(run) | {"undeliverable": 0, "mailed": 0}
    assert server.metrics()["chat_logins_total"] == run.rows["login"].count


@pytest.mark.slow
def test_messages_through_mailboxes_are_counted_on_both_sides(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--metrics-port", 0)
    run = run_until(tmp_path, {"mailbox": 300}, *load(server.address, USERS), "--features", "all")
    assert run.status == 0, run.explain()
    assert run.ledger["in flight"] == 0
    counted, figures = settled(server), server.metrics()
    fetched = int(figures["chat_mailbox_delivered_total"])
    assert counted["mailed"] == fetched > 100
    assert run.rows["mailbox"].count > 100  # due before their receivers came: a few may have been sent thereafter
    direct = ledger(run)["delivered"] - fetched
    assert counted == ledger(run) | {"delivered": direct, "undeliverable": 0, "mailed": fetched}
    assert figures["chat_mailbox_messages"] == 0
    assert figures["chat_messages_stored_total"] == run.ledger["sent"] >= run.rows["stored"].count
    assert figures["chat_logins_total"] == run.rows["login"].count


@pytest.mark.slow
def test_a_limited_rate_delays_and_the_figures_still_agree(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--metrics-port", 0, "--rate", 30, "--burst", 5)
    with start_locust(tmp_path, *load(server.address, USERS, rate=35), "--drain", 60, "Chatter") as locust:
        locust.wait_for_users()
        wait_for("somebody delayed", lambda: server.metrics()["chat_delays_total"] > 0)
        locust.interrupt()
        run = locust.end()
    assert settled(server) == ledger(run) | {"undeliverable": 0, "mailed": 0}
    assert run.ledger["in flight"] == 0


@pytest.mark.slow
def test_with_a_reader_dropped_meanwhile_the_figures_are_those_of_both(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server("--metrics-port", 0, "--pool-size", USERS + 2, "--write-timeout", 6)
    with start_locust(tmp_path, *load(server.address, USERS)) as locust:
        locust.wait_for_users()
        reader, sender, flood = stuck_pair(server, timeout=2)
        server.wait_for_log("reader disconnected: Too Slow")
        stream = b"".join(iter(partial(reader.socket.recv, PUSH_BYTES), b""))  # may end within a packet, after 2 s
        read, refused = stream.count(RELAYED_BIG), 0
        assert stream.startswith(RELAYED_BIG * read)
        sent = flood.end(b"\x08\x00")
        while sender.read() == (4, encode_error(Reason.USER_NOT_ONLINE)[2:]):
            refused += 1
        reader.close()
        sender.close()
        locust.interrupt()
        run = locust.end()
    assert run.status == 0, run.explain()
    both = {"sent": sent, "delivered": read, "refused": refused}
    expected = {name: count + both[name] for name, count in ledger(run).items()}
    assert settled(server) == expected | {"undeliverable": sent - read - refused, "mailed": 0}
    assert sent > read + refused
