"""Whether somebody notices that the loop is held up, and who it was."""

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


def keep_the_interpreter() -> None:
    sum(range(20_000_000))


def block_until_told(
    start: Callable[[Callable[[], None]], object],
    culprit: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
    text: str,
) -> None:
    """More than once where the loop was late already, or the system ran others for most of that time."""

    def is_told() -> bool:
        start(culprit)
        gevent.sleep(0.1)  # returns when the loop is free again
        return text in caplog.text

    wait_for(text, is_told)


@pytest.fixture
def lag(caplog: pytest.LogCaptureFixture) -> Iterator[LoopLag]:
    """A loop that is watched; by now it beats."""
    with caplog.at_level(logging.WARNING, "chat"), LoopLag() as watched:
        gevent.sleep(0.2)
        caplog.clear()
        watched.blocked = 0
        yield watched


@pytest.mark.parametrize("culprit", [block_the_loop, count_to_a_lot])
def test_a_greenlet_that_blocks_the_loop_is_counted_and_named(
    lag: LoopLag, caplog: pytest.LogCaptureFixture, culprit: Callable[[], None]
) -> None:
    block_until_told(gevent.spawn, culprit, caplog, culprit.__name__)
    assert re.search(r"the loop was blocked for (0\.[3-9]|[1-9]).* s\n.*File", caplog.text)
    assert lag.blocked >= 1
    assert lag.worst >= 0.3


def test_what_keeps_the_interpreter_for_itself_is_told_without_a_stack(
    lag: LoopLag, caplog: pytest.LogCaptureFixture
) -> None:
    block_until_told(gevent.spawn, keep_the_interpreter, caplog, "(no stack)")
    assert lag.blocked >= 1


def test_a_callback_in_the_hub_that_blocks_is_named(lag: LoopLag, caplog: pytest.LogCaptureFixture) -> None:
    block_until_told(get_hub().loop.run_callback, block_the_loop, caplog, "in block_the_loop")
    assert lag.blocked >= 1


def test_each_time_has_a_stack_of_its_own(lag: LoopLag, caplog: pytest.LogCaptureFixture) -> None:
    block_until_told(gevent.spawn, block_the_loop, caplog, "in block_the_loop")
    caplog.clear()
    block_until_told(gevent.spawn, count_to_a_lot, caplog, "in count_to_a_lot")
    assert "in block_the_loop" not in caplog.text
    assert lag.blocked >= 2


def test_short_times_are_measured_and_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "BLOCKED_SECONDS", 60.0)  # as a shared machine may stand still for a while
    with LoopLag() as lag:
        gevent.spawn(block_the_loop)
        wait_for("the lag", lambda: lag.worst >= 0.3)
    assert lag.blocked == 0
    assert "blocked" not in caplog.text


def test_the_worst_falls_back_after_two_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_BEATS", 2)
    with LoopLag() as lag:
        gevent.spawn(block_the_loop)
        wait_for("the lag", lambda: lag.worst >= 0.3)
        wait_for("the end of the windows", lambda: lag.worst < 0.3)


def test_nothing_beats_or_watches_after_the_end(caplog: pytest.LogCaptureFixture) -> None:
    with LoopLag() as lag:
        gevent.sleep(0.1)
    told = lag.blocked
    block_the_loop()
    gevent.sleep(0.2)
    assert lag.blocked == told
    assert "in block_the_loop" not in caplog.text


def test_a_server_that_was_stopped_tells_how_long_once_and_blames_nobody(start_server: StartServer) -> None:
    server = start_server("--metrics-port", 0)
    before = blocked_and_told(server)
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(2 * STALL_SECONDS)
    server.process.send_signal(signal.SIGCONT)
    wait_for("the lag", lambda: server.metrics()["chat_loop_lag_seconds"] >= STALL_SECONDS, DEADLINE)
    blocked, told = blocked_and_told(server)
    assert blocked - before[0] == told - before[1] >= 1
    assert "since the system did not run the server" in server.log
    assert not server.stalls


def blocked_and_told(server: ServerProcess) -> tuple[float, int]:
    """How often the loop was blocked by the server's figures, and by its log at the same time."""
    while True:
        before, told = server.metrics()["chat_loop_blocked_total"], server.log.count("the loop was blocked")
        if server.metrics()["chat_loop_blocked_total"] == before:
            return before, told
