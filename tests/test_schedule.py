"""Schedules: moments that do not drift, that nothing moves, and that are never skipped."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.core.schedule import Schedule


def test_the_millionth_moment_is_where_it_belongs() -> None:
    schedule = Schedule(rate=3.0, start=1000.0)
    first = schedule.take()
    for _ in range(999_999):
        schedule.take()
    assert schedule.due == pytest.approx(first + 1_000_000 / 3, rel=0, abs=1e-9)


@given(rate=st.floats(0.001, 1000), start=st.floats(0, 1e6))
def test_a_schedule_begins_somewhere_in_its_first_period(rate: float, start: float) -> None:
    assert start <= Schedule(rate, start).due <= start + 1 / rate


def test_schedules_do_not_march_in_step() -> None:
    phases = [Schedule(rate=1.0, start=0.0).due for _ in range(1000)]
    assert len(set(phases)) > 990
    assert min(phases) < 0.1
    assert max(phases) > 0.9


def test_a_message_is_due_from_its_moment_on() -> None:
    schedule = Schedule(rate=10.0, start=5.0)
    moment = schedule.due
    assert not schedule.is_due(moment - 0.001)
    assert schedule.is_due(moment)
    assert schedule.take() == moment
    assert not schedule.is_due(moment + 0.099)
    assert schedule.is_due(moment + 0.101)


def test_no_moment_is_skipped_or_moved_after_a_stall() -> None:
    schedule = Schedule(rate=10.0, start=0.0)
    first = schedule.due
    taken = []
    while schedule.is_due(60.0):
        taken.append(schedule.take())
    assert taken == [pytest.approx(first + number / 10) for number in range(600)]


def test_a_schedule_is_over_when_every_moment_before_its_end_has_been_taken() -> None:
    schedule = Schedule(rate=10.0, start=0.0, end=2.0)
    taken = []
    while schedule.due < inf:
        taken.append(schedule.take())
    assert len(taken) == 20
    assert max(taken) < 2.0
    assert not schedule.is_due(100.0), "also for who comes late"


def test_a_moment_at_the_end_itself_is_after_it() -> None:
    schedule = Schedule(rate=10.0, start=0.0)
    ending = Schedule(rate=10.0, start=0.0, end=0.0)
    assert schedule.due < inf
    assert ending.due == inf


@pytest.mark.parametrize("end", [10.0, float("inf")])
def test_at_rate_0_nothing_is_due(end: float) -> None:
    schedule = Schedule(rate=0.0, start=0.0, end=end)
    assert not schedule.is_due(1e12)
    assert schedule.due == inf
