"""Whether somebody notices that the loop is held up, and who it was."""

import logging
import signal
import time
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent import get_hub
from gevent.monkey import get_original

from chatserver import lag as module
from chatserver.lag import LoopLag
from tests.conftest import StartServer
from tests.processes import DEADLINE, wait_for


def block_the_loop(seconds: float = 0.4) -> None:
    get_original("time", "sleep")(seconds)


def count_to_a_lot() -> None:
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        pass


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
    gevent.spawn(culprit)
    wait_for("the warning", lambda: culprit.__name__ in caplog.text)
    assert "the loop was blocked for 0." in caplog.text
    assert lag.blocked >= 1
    assert lag.worst >= 0.3


def test_a_callback_in_the_hub_that_blocks_is_named(lag: LoopLag, caplog: pytest.LogCaptureFixture) -> None:
    get_hub().loop.run_callback(block_the_loop)
    wait_for("the warning", lambda: "in block_the_loop" in caplog.text)
    assert lag.blocked >= 1


def test_each_time_has_a_stack_of_its_own(lag: LoopLag, caplog: pytest.LogCaptureFixture) -> None:
    gevent.spawn(block_the_loop)
    wait_for("the first warning", lambda: "in block_the_loop" in caplog.text)
    caplog.clear()
    gevent.spawn(count_to_a_lot)
    wait_for("the second warning", lambda: "in count_to_a_lot" in caplog.text)
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


def test_a_server_that_was_stopped_tells_how_long_once(start_server: StartServer) -> None:
    server = start_server("--metrics-port", 0)
    server.may_stall = True
    before = server.metrics()["chat_loop_blocked_total"]
    told = server.log.count("the loop was blocked")
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(0.4)
    server.process.send_signal(signal.SIGCONT)
    wait_for("the lag", lambda: server.metrics()["chat_loop_lag_seconds"] >= 0.3, DEADLINE)
    figures = server.metrics()
    assert figures["chat_loop_blocked_total"] - before == server.log.count("the loop was blocked") - told >= 1
