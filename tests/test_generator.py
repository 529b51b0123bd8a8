"""The load meter: how busy the process was at its busiest, and how late its loop."""

import pytest

from loadtest.core.generator import TICK, GeneratorLoad, LoadMeter


class Machine:
    """A clock and the processor time that was used, both of which pass when the test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.used = 7.0
        self.meter = LoadMeter(lambda: self.now, lambda: self.used)

    def run(self, seconds: float, share: float, lag: float = 0.0) -> None:
        """Tick for so long, using this share of a core; each tick is late."""
        for _ in range(round(seconds / (TICK + lag))):
            self.now += TICK + lag
            self.used += (TICK + lag) * share
            self.meter.tick()


def test_the_busiest_window_counts() -> None:
    machine = Machine()
    for share in (0.2, 0.9, 0.4):
        machine.run(5.01, share)
    assert machine.meter.read().cpu == pytest.approx(0.9, abs=0.01)


def test_time_before_the_meter_started_does_not_count() -> None:
    machine = Machine()
    machine.run(6, 0.0)
    assert machine.meter.read().cpu == 0.0


def test_a_run_shorter_than_a_window_is_taken_as_one() -> None:
    machine = Machine()
    machine.run(1, 1.0)
    machine.run(1, 0.5)
    assert machine.meter.read().cpu == pytest.approx(0.75, abs=0.01)


def test_too_short_a_run_says_nothing() -> None:
    machine = Machine()
    machine.run(0.4, 1.0)
    assert machine.meter.read().cpu == 0.0
    assert Machine().meter.read() == GeneratorLoad(0.0, 0.0)


def test_the_last_seconds_count_too_but_not_the_last_moment() -> None:
    machine = Machine()
    machine.run(5.01, 0.5)
    machine.run(0.4, 1.0)
    assert machine.meter.read().cpu == pytest.approx(0.5, abs=0.01)
    machine.run(1, 1.0)
    assert machine.meter.read().cpu == pytest.approx(1.0, abs=0.01)


def test_a_loop_that_wakes_up_in_time_has_no_lag() -> None:
    machine = Machine()
    machine.run(1, 0.1)
    assert machine.meter.read().lag_p99 == pytest.approx(1e-6)


def test_one_late_tick_in_a_hundred_is_not_the_p99_but_two_are() -> None:
    machine = Machine()
    machine.run(0.99, 0.1)
    machine.run(0.06, 0.1, lag=0.05)
    assert machine.meter.read().lag_p99 == pytest.approx(1e-6)
    machine.run(0.06, 0.1, lag=0.05)
    assert machine.meter.read().lag_p99 == pytest.approx(0.05, rel=1e-3)


def test_one_stall_is_one_late_tick_and_moves_no_other() -> None:
    machine = Machine()
    machine.run(2, 0.1, lag=2.0)
    machine.run(2, 0.1)
    assert machine.meter.read().lag_p99 == pytest.approx(1e-6)


def test_the_worst_of_several_generators_counts() -> None:
    assert GeneratorLoad(0.9, 0.001).worst(GeneratorLoad(0.2, 0.02)) == GeneratorLoad(0.9, 0.02)
