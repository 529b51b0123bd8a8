"""Whether a blocked loop is noticed, and the code that blocks it named."""

import logging
import re
import signal
import time
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent import get_hub
from gevent.monkey import get_original

from chatserver.operations import lag as module
from chatserver.operations.lag import LoopLag
from testkit.processes import DEADLINE, wait_for
from testkit.server import STALL_SECONDS, ServerProcess, StartServer


def block_the_loop(seconds: float = 0.4) -> None:
    get_original("time", "sleep")(seconds)


def count_to_a_lot() -> None:
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        pass


def hold_the_interpreter_lock() -> None:
    sum(range(20_000_000))


def block_until_logged(
    start: Callable[[Callable[[], None]], object],
    culprit: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
    text: str,
) -> None:
    """Block the loop until the log has `text`; again if the loop was late before or the machine was busy."""

    def is_logged() -> bool:
        start(culprit)
        gevent.sleep(0.1)  # returns when the loop is free again
        return text in caplog.text

    wait_for(text, is_logged)


@pytest.fixture
def lag(caplog: pytest.LogCaptureFixture) -> Iterator[LoopLag]:
    """A watched loop that already beats."""
    with caplog.at_level(logging.WARNING, "chat"), LoopLag() as watched:
        gevent.sleep(0.2)
        caplog.clear()
        watched.blocked = 0
        yield watched


@pytest.mark.parametrize("culprit", [block_the_loop, count_to_a_lot])
def test_a_greenlet_that_blocks_the_loop_is_counted_and_named(
    lag: LoopLag, caplog: pytest.LogCaptureFixture, culprit: Callable[[], None]
) -> None:
    block_until_logged(gevent.spawn, culprit, caplog, culprit.__name__)
    assert re.search(r"the loop was blocked for (0\.[3-9]|[1-9]).* s\n.*File", caplog.text)
    assert lag.blocked >= 1
    assert lag.worst >= 0.3


def test_code_that_holds_the_interpreter_lock_is_logged_without_a_stack(
    lag: LoopLag, caplog: pytest.LogCaptureFixture
) -> None:
    block_until_logged(gevent.spawn, hold_the_interpreter_lock, caplog, "(no stack)")
    assert lag.blocked >= 1


def test_a_callback_in_the_hub_that_blocks_is_named(lag: LoopLag, caplog: pytest.LogCaptureFixture) -> None:
    block_until_logged(get_hub().loop.run_callback, block_the_loop, caplog, "in block_the_loop")
    assert lag.blocked >= 1


def test_each_block_has_its_own_stack(lag: LoopLag, caplog: pytest.LogCaptureFixture) -> None:
    block_until_logged(gevent.spawn, block_the_loop, caplog, "in block_the_loop")
    caplog.clear()
    block_until_logged(gevent.spawn, count_to_a_lot, caplog, "in count_to_a_lot")
    assert "in block_the_loop" not in caplog.text
    assert lag.blocked >= 2


def test_short_delays_are_measured_and_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "BLOCKED_SECONDS", 60.0)  # a shared machine may pause for a while
    with LoopLag() as lag:
        gevent.spawn(block_the_loop)
        wait_for("the lag", lambda: lag.worst >= 0.3)
    assert lag.blocked == 0
    assert "blocked" not in caplog.text


def test_the_worst_delay_is_forgotten_after_two_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_BEATS", 2)
    with LoopLag() as lag:
        gevent.spawn(block_the_loop)
        wait_for("the lag", lambda: lag.worst >= 0.3)
        wait_for("the end of the windows", lambda: lag.worst < 0.3)


def test_nothing_runs_after_the_block_ends(caplog: pytest.LogCaptureFixture) -> None:
    with LoopLag() as lag:
        gevent.sleep(0.1)
    before = lag.blocked
    block_the_loop()
    gevent.sleep(0.2)
    assert lag.blocked == before
    assert "in block_the_loop" not in caplog.text


def test_a_paused_server_logs_the_pause_once_and_blames_no_code(start_server: StartServer) -> None:
    server = start_server("--metrics-port", 0)
    before = blocked_and_logged(server)
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(2 * STALL_SECONDS)
    server.process.send_signal(signal.SIGCONT)
    wait_for("the lag", lambda: server.metrics()["chat_loop_lag_seconds"] >= STALL_SECONDS, DEADLINE)
    blocked, logged = blocked_and_logged(server)
    assert blocked - before[0] == logged - before[1] >= 1
    assert "since the system did not run the server" in server.log
    assert not server.stalls


def blocked_and_logged(server: ServerProcess) -> tuple[float, int]:
    """How often the loop was blocked: (by the metrics, by the log) at the same time."""
    while True:
        before, logged = server.metrics()["chat_loop_blocked_total"], server.log.count("the loop was blocked")
        if server.metrics()["chat_loop_blocked_total"] == before:
            return before, logged
