"""The search for the highest rate that a server takes: one that is known, and one that is not there."""

import resource
import time
from collections import deque
from pathlib import Path

import pytest

from testkit.faulty_proxy import Fault, FaultyProxy, ProxiedConnection, delay, swallow_after
from testkit.loadtests import CAPACITY, CHAT, GENEROUS, LoadRun, run_locust, start_locust
from testkit.server import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.measured]
USERS = 2
WINDOW = 0.5  # seconds over which the proxy counts


def search(server: ServerProcess, fault: Fault, folder: Path, *options: object) -> LoadRun:
    """Look for the capacity of a server behind a proxy with this fault."""
    with FaultyProxy(server.host, server.port, fault) as proxy:
        where = ("--host", f"tcp://{proxy.address}", "--users", USERS, "--trial-time", 1, "--drain", 1)
        run = run_locust(folder, *where, *GENEROUS, *options, "Chatter", files=(CHAT, CAPACITY))
    assert "Traceback" not in run.log, run.explain()
    assert run.certificate["host"] == f"tcp://{proxy.address}"
    assert run.certificate["users"] == f"{USERS}, in 1 process"
    return run


def slow_beyond(rate: float, seconds: float) -> Fault:
    """Messages come that much later as long as more than `rate` a second arrive."""
    recent: deque[float] = deque()

    def fault(link: ProxiedConnection, packet: bytes, number: int) -> None:
        now = time.monotonic()
        if number:
            recent.append(now)
            while recent[0] < now - WINDOW:
                recent.popleft()
        link.put(packet, seconds if number and len(recent) > rate * WINDOW else 0.0)

    return fault


def test_the_highest_rate_that_keeps_the_promise_is_found(server: ServerProcess, tmp_path: Path) -> None:
    run = search(server, slow_beyond(190, 1.5), tmp_path, "--first-rate", 100, "--target-p99", 1000)
    assert run.status == 0, run.explain()
    capacity, unit = run.certificate["capacity"].split()
    assert 100 <= int(capacity) <= 200
    assert unit == "messages/s"
    assert run.verdict["capacity < 1"].figure == capacity
    assert run.certificate["p99"].endswith("(target 1 s)")
    assert run.certificate["ledger"].endswith(", no fault")
    assert "p99 over 1 s" in run.out
    assert run.is_balanced


def test_a_search_that_finds_nothing_fails(server: ServerProcess, tmp_path: Path) -> None:
    run = search(server, delay(0.1), tmp_path, "--first-rate", 2, "--target-p99", 50)
    assert run.status == 1, run.explain()
    assert run.certificate["capacity"] == "none found: no rate kept p99 under 50 ms without a fault"
    assert run.failed == {"capacity < 1"}
    assert run.is_balanced


def test_a_rate_with_faults_does_not_count(server: ServerProcess, tmp_path: Path) -> None:
    def twice(link: ProxiedConnection, packet: bytes, number: int) -> None:
        for _ in range(2 if number else 1):
            link.put(packet)

    run = search(server, twice, tmp_path, "--first-rate", 2, "--target-p99", 1000)
    assert run.status == 1, run.explain()
    assert run.certificate["capacity"].startswith("none found")
    assert run.failed == {"capacity < 1", "duplicated > 0"}
    assert run.ledger["duplicated"] == run.ledger["sent"] > 0
    assert run.is_balanced


def test_users_waiting_for_late_messages_use_no_cpu(server: ServerProcess, tmp_path: Path) -> None:
    begin, used = time.monotonic(), cpu_seconds()
    with FaultyProxy(server.host, server.port, swallow_after(1)) as proxy:
        options = ("--host", proxy.address, "--users", USERS, "--first-rate", 20, "--trial-time", 1, "--drain", 6)
        with start_locust(tmp_path, *options, *GENEROUS, "Chatter", files=(CHAT, CAPACITY)) as locust:
            locust.wait_for_log("20 messages/s: p99")
    used, elapsed = cpu_seconds() - used, time.monotonic() - begin
    assert elapsed > 6
    assert used < elapsed / 2


def cpu_seconds() -> float:
    """What processes that have ended have used."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
