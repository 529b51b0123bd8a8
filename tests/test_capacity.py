"""The search for the highest rate, and the certificate, with a server whose capacity is known."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.core.capacity import PRECISION, Certificate, TrialResult, search
from loadtest.core.generator import GeneratorLimits, GeneratorLoad

TARGET = 0.02  # seconds
LIMITS = GeneratorLimits(cpu=0.9, lag=0.01)
GOOD = TrialResult(
    1000.0,
    sent=5000,
    delivered=5000,
    undelivered=0,
    failures=0,
    faults=0,
    p50=0.001,
    p99=0.01,
    load=GeneratorLoad(0.5, 0.001),
)


def tried(capacity: float, first: float) -> list[tuple[float, bool]]:
    """Each rate that the search tries, and whether a server of this capacity passes."""
    trials: list[tuple[float, bool]] = []
    rates = search(first)
    passed = None
    while True:
        try:
            rate = rates.send(passed)
        except StopIteration:
            return trials
        passed = rate <= capacity
        trials.append((rate, passed))


def test_the_rate_is_doubled_until_it_fails_twice_and_then_bisected() -> None:
    rates = [round(rate) for rate, _ in tried(capacity=1500, first=500)]
    assert rates[:4] == [500, 1000, 2000, 2000]
    assert all(1000 < rate < 2000 for rate in rates[4:])


@given(capacity=st.floats(2, 1e6), first=st.floats(1, 1e5))
def test_the_highest_rate_that_passes_is_found_to_within_the_precision(capacity: float, first: float) -> None:
    trials = tried(capacity, first)
    best = max(rate for rate, passed in trials if passed)
    assert best <= capacity <= best * PRECISION
    assert len(trials) < 100


def test_a_single_failure_is_a_hiccup() -> None:
    rates = search(100)
    assert next(rates) == 100
    assert rates.send(False) == 100
    assert rates.send(True) == 200


def test_a_server_that_takes_nothing_ends_the_search() -> None:
    assert not any(passed for _, passed in tried(capacity=0, first=500))


@pytest.mark.parametrize(
    ("trial", "objection"),
    [
        (GOOD, ""),
        (replace(GOOD, p99=0.021), "p99 over 20 ms"),
        (replace(GOOD, faults=2), "2 faults"),
        (replace(GOOD, failures=3), "3 failures"),
        (replace(GOOD, undelivered=4), "4 not delivered"),
        (replace(GOOD, load=GeneratorLoad(0.95, 0.001)), "generator too slow"),
        (replace(GOOD, load=GeneratorLoad(0.5, 0.02)), "generator too slow"),
        (replace(GOOD, sent=0, delivered=0), "nothing sent"),
    ],
)
def test_a_rate_counts_only_if_nothing_can_be_said_against_it(trial: TrialResult, objection: str) -> None:
    assert trial.objection(TARGET, LIMITS) == objection


def certificate(*trials: TrialResult, complete: bool = True) -> Certificate:
    return Certificate(trials, TARGET, LIMITS, users=20, processes=2, host="tcp://there:9034", complete=complete)


def test_the_certificate_names_the_best_rate_and_all_that_it_depends_on() -> None:
    text = str(certificate(GOOD, replace(GOOD, rate=2000.0, p99=0.03)))
    for fact in (
        "Python 3.",
        "gevent ",
        "tcp://there:9034",
        "20, in 2 processes",
        "capacity   1000 messages/s",
        "10 ms (target 20 ms)",
        "sent 5000 = delivered 5000",
        "p99 over 20 ms",
    ):
        assert fact in text


def test_a_generator_that_was_too_slow_makes_it_at_least() -> None:
    text = str(certificate(GOOD, replace(GOOD, rate=2000.0, load=GeneratorLoad(0.99, 0.001))))
    assert "capacity   at least 1000 messages/s" in text
    assert "the generator, not the server" in text


def test_without_a_rate_that_passed_there_is_no_capacity() -> None:
    none = certificate(replace(GOOD, p99=1.0))
    assert none.best is None
    assert "capacity   none found" in str(none)


def test_a_stopped_search_is_marked_as_incomplete() -> None:
    assert "1000 messages/s, but the search was stopped" in str(certificate(GOOD, complete=False))
