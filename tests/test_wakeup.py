"""Waking up on time."""

import sys
from pathlib import Path
from time import monotonic

import gevent
import pytest

from loadtest.locust.wakeup import KernelWakeup, LoopWakeup, Wakeup
from testkit.processes import DEADLINE, wait_for


@pytest.mark.parametrize("kind", [Wakeup, LoopWakeup])
def test_nobody_wakes_up_before_the_moment(kind: type[LoopWakeup]) -> None:
    wakeup = kind()
    for wait in (0.0005, 0.01, 0.0, 0.02):
        moment = monotonic() + wait
        with gevent.Timeout(DEADLINE):
            wakeup.wait_until(moment)
        assert monotonic() >= moment
    wakeup.close()


@pytest.mark.parametrize("kind", [Wakeup, LoopWakeup])
def test_others_run_meanwhile(kind: type[LoopWakeup]) -> None:
    wakeup = kind()
    ran = gevent.spawn(lambda: "ran")
    wakeup.wait_until(monotonic() + 0.5)
    assert ran.ready()
    wakeup.close()


def test_a_moment_that_is_over_is_not_waited_for() -> None:
    wakeup = Wakeup()
    other = gevent.spawn(lambda: None)
    wakeup.wait_until(monotonic() - 1)
    assert Wakeup is LoopWakeup or not other.ready()
    wakeup.close()


def open_timers() -> int:
    """How many timerfds this process has."""
    links = Path("/proc/self/fd").iterdir()
    return sum("timerfd" in str(link.readlink()) for link in links if link.is_symlink())


@pytest.mark.skipif(Wakeup is LoopWakeup or sys.platform != "linux", reason="this system has no timerfd")
def test_a_user_killed_while_waiting_leaves_no_descriptor() -> None:
    wait_for("the timers of other tests to be closed", lambda: open_timers() == 0)
    wakeup = KernelWakeup()
    waiting = gevent.spawn(wakeup.wait_until, monotonic() + 3600)
    gevent.sleep(0)
    waiting.kill()
    assert open_timers() == 1
    wakeup.close()
    wait_for("the timer to be closed", lambda: open_timers() == 0)
