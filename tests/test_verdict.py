"""The verdict: how conditions are written, what each means, and what the run comes to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.core.generator import GeneratorLimits, GeneratorLoad
from loadtest.core.histogram import Histogram
from loadtest.core.verdict import (
    COUNTS,
    Condition,
    Measured,
    RequestStats,
    Status,
    Verdict,
    duration,
    judge,
    parse_condition,
)

COUNTED = {count: 0 for count in COUNTS if count != "capacity"} | {"requests": 100}
IDLE = GeneratorLoad(0.12, 0.0008)
BUSY = GeneratorLoad(0.97, 0.0008)
LATE = GeneratorLoad(0.12, 0.025)


def row(*seconds: float, count: int = 0, failures: int = 0) -> RequestStats:
    histogram = Histogram()
    for value in seconds:
        histogram.record(value)
    return RequestStats(histogram, count or len(seconds), failures)


def verdict(
    *conditions: str, load: GeneratorLoad = IDLE, counts: dict[str, int] | None = None, **rows: RequestStats
) -> Verdict:
    named = {name.replace("_", " "): measured for name, measured in rows.items()}
    measured = Measured(named, COUNTED | (counts or {}), load, seconds=10.0)
    return judge(map(parse_condition, conditions), measured, GeneratorLimits())


def results(judged: Verdict) -> dict[str, str]:
    return {check.condition: check.result for check in judged.checks}


# The grammar


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("deliver.p99>50ms", Condition("deliver", "p99", ">", 50, "ms")),
        ("  chat init.p99.9 >= 0.5 s ", Condition("chat init", "p99.9", ">=", 0.5, "s")),
        ("deliver.max>250us", Condition("deliver", "max", ">", 250, "us")),
        ("deliver.p100>1s", Condition("deliver", "p100", ">", 1, "s")),
        ("a.b.p50>1s", Condition("a.b", "p50", ">", 1, "s")),
        ("login.failures>1%", Condition("login", "failures", ">", 1, "%")),
        ("login.failures>1", Condition("login", "failures", ">", 1, "")),
        ("deliver.rate<1000", Condition("deliver", "rate", "<", 1000, "")),
        ("deliver.count<=9", Condition("deliver", "count", "<=", 9, "")),
        ("lost>0", Condition("", "lost", ">", 0, "")),
        ("capacity<500", Condition("", "capacity", "<", 500, "")),
        ("in flight>0", Condition("", "in_flight", ">", 0, "")),
        ("in_flight > 0", Condition("", "in_flight", ">", 0, "")),
        ("missing reports>0", Condition("", "missing_reports", ">", 0, "")),
    ],
)
def test_a_condition_is_parsed_as_intended(text: str, condition: Condition) -> None:
    assert parse_condition(text) == condition


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "'' is not a condition; for example deliver.p99>50ms"),
        ("deliver.p99", "is not a condition"),
        ("deliver.p99=50ms", "is not a condition"),
        ("deliver.p99>-5ms", "is not a condition"),
        ("deliver.p99>5min", "is not a condition"),
        ("deliver.p99>1e3ms", "is not a condition"),
        (".p99>5ms", "is not a condition"),
        ("p99>5ms", "'p99' is not a count; the counts are sent, delivered, .* for example"),
        ("lots>0", "'lots' is not a count"),
        ("failures>0", "'failures' is not a count"),
        ("deliver.lost>0", "a row has p50, p99.9 .any percentile., max, failures, count, rate"),
        ("deliver.p100.1>5ms", "a percentile is at most 100"),
        ("deliver.p101>5ms", "a percentile is at most 100"),
        ("deliver.p99>50", "a time needs us, ms or s"),
        ("deliver.max>50", "a time needs us, ms or s"),
        ("deliver.p99>50%", "a time needs us, ms or s"),
        ("deliver.count>5ms", "nothing else has a unit"),
        ("deliver.count>5%", "nothing else has a unit"),
        ("lost>1%", "nothing else has a unit"),
        ("lost>1s", "nothing else has a unit"),
    ],
)
def test_an_invalid_condition_gets_an_error_that_says_why(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_condition(text)


ROWS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1).map(lambda text: f"x{text}x")
TIMES = st.tuples(
    st.just("max") | st.floats(0, 100).map(lambda percent: f"p{percent:.3f}"), st.sampled_from(["us", "ms", "s"])
)
OTHERS = st.sampled_from([("failures", ""), ("failures", "%"), ("count", ""), ("rate", "")])
SUBJECTS = st.tuples(ROWS | st.just("chat init"), TIMES | OTHERS) | st.tuples(
    st.just(""), st.tuples(st.sampled_from(COUNTS), st.just(""))
)


@given(subject=SUBJECTS, sign=st.sampled_from([">", ">=", "<", "<="]), limit=st.floats(0, 1e15))
def test_a_printed_condition_can_be_parsed_again(subject: tuple[str, tuple[str, str]], sign: str, limit: float) -> None:
    name, (figure, unit) = subject
    condition = Condition(name, figure, sign, limit, unit)
    assert parse_condition(str(condition)) == condition


@pytest.mark.parametrize(
    "text", ["deliver.p99 > 50 ms", "login.failures >= 0.5%", "lost > 1234567", "x.max < 0.00001 s"]
)
def test_a_condition_is_shown_without_needless_digits(text: str) -> None:
    assert str(parse_condition(text)) == text


# What a condition means


@pytest.mark.parametrize(
    ("condition", "shown", "result"),
    [
        ("deliver.p50>11ms", "10 ms", "pass"),
        ("deliver.p50>9ms", "10 ms", "FAIL"),
        ("deliver.max>0.2s", "200 ms", "FAIL"),
        ("deliver.max<1s", "200 ms", "FAIL"),
        ("deliver.count>4", "4", "pass"),
        ("deliver.count>=4", "4", "FAIL"),
        ("deliver.count<=4", "4", "FAIL"),
        ("deliver.count<4", "4", "pass"),
        ("deliver.rate<0.5", "0.4", "FAIL"),
        ("deliver.failures>0", "1", "FAIL"),
        ("deliver.failures>24%", "25 %", "FAIL"),
        ("deliver.failures>25%", "25 %", "pass"),
        ("in flight>2", "3", "FAIL"),
        ("sent>10000000", "1234567", "pass"),
        ("delivered>0", "0", "pass"),
        ("nothing.count<1", "no such row: 0", "FAIL"),
        ("nothing.rate>1", "no such row: 0", "pass"),
        ("nothing.failures>1%", "no such row: 0 %", "pass"),
        ("capacity<1", "not measured", "FAIL"),
        ("nothing.p99>1s", "no such row: not measured", "FAIL"),
        ("nothing.max<1s", "no such row: not measured", "FAIL"),
        ("untimed.p99>1s", "not measured", "FAIL"),
        ("untimed.failures>1%", "0 %", "pass"),
    ],
)
def test_a_condition_compares_what_was_measured(condition: str, shown: str, result: str) -> None:
    judged = verdict(
        condition,
        counts={"in_flight": 3, "sent": 1_234_567},
        deliver=row(0.01, 0.01, 0.2, count=4, failures=1),
        untimed=row(),
    )
    assert (judged.checks[0].figure, judged.checks[0].result) == (shown, result)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 us"),
        (1e-6, "1 us"),
        (0.0009994, "999 us"),
        (0.0009996, "1 ms"),
        (0.01234, "12.3 ms"),
        (1, "1 s"),
        (75.2, "75.2 s"),
    ],
)
def test_a_duration_has_three_digits_and_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# What the run comes to


def test_a_run_passes_without_faults_and_failures() -> None:
    judged = verdict(deliver=row(0.01))
    assert judged.status is Status.PASSED
    assert set(results(judged).values()) == {"pass"}


@pytest.mark.parametrize(
    "count",
    ["lost", "duplicated", "reordered", "corrupted", "misdelivered", "unbalanced", "exceptions", "missing_reports"],
)
def test_a_single_fault_fails_the_run(count: str) -> None:
    judged = verdict(counts={count: 1}, deliver=row(0.01))
    assert judged.status is Status.FAILED
    assert [condition for condition, result in results(judged).items() if result == "FAIL"] == [f"{count} > 0"]


@pytest.mark.parametrize("count", ["sent", "delivered", "refused", "in_flight"])
def test_messages_that_are_accounted_for_fail_nothing(count: str) -> None:
    assert verdict(counts={count: 1}).status is Status.PASSED


def test_a_single_failure_in_any_row_fails_the_run() -> None:
    judged = verdict(chat_init=row(0.01, failures=1))
    assert judged.status is Status.FAILED
    assert results(judged)["chat init.failures > 0"] == "FAIL"


def test_a_condition_takes_the_place_of_the_default_about_the_same_figure() -> None:
    judged = verdict(
        "login.failures>50%", "lost>2", counts={"lost": 2}, login=row(count=2, failures=1), deliver=row(0.01)
    )
    assert judged.status is Status.PASSED
    assert {"login.failures > 0", "lost > 0"}.isdisjoint(results(judged))
    assert "deliver.failures > 0" in results(judged)


def test_a_search_for_the_capacity_fails_if_it_finds_none_but_not_by_what_fails_beyond_the_capacity() -> None:
    judged = verdict(counts={"capacity": 0}, deliver=row(0.01))
    assert results(judged)["capacity < 1"] == "FAIL"
    assert verdict(counts={"capacity": 500}, deliver=row(0.01, failures=3)).status is Status.PASSED
    assert verdict("capacity<600", counts={"capacity": 500}).status is Status.FAILED


@pytest.mark.parametrize("load", [BUSY, LATE])
def test_an_overloaded_generator_makes_latencies_invalid_and_nothing_else(load: GeneratorLoad) -> None:
    judged = verdict("deliver.p99>1ms", "deliver.max>1s", "deliver.count>5", load=load, deliver=row(0.01))
    assert judged.status is Status.INVALID
    assert judged.status.value == 3
    shown = results(judged)
    assert [shown.pop("deliver.p99 > 1 ms"), shown.pop("deliver.max > 1 s")] == ["invalid", "invalid"]
    assert "invalid" not in shown.values()


def test_a_run_that_has_measured_nothing_fails() -> None:
    judged = verdict(counts={"requests": 0})
    assert judged.status is Status.FAILED
    assert results(judged)["requests < 1"] == "FAIL"


def test_a_condition_that_was_never_measured_fails_even_then() -> None:
    judged = verdict("deliver.p99>1ms", load=GeneratorLoad(cpu=0.95, lag_p99=0.001), deliver=row())
    assert results(judged)["deliver.p99 > 1 ms"] == "FAIL"


def test_an_overloaded_generator_is_no_excuse_for_a_broken_ledger() -> None:
    judged = verdict("deliver.p99>1ms", load=BUSY, counts={"lost": 1}, deliver=row(0.01))
    assert judged.status is Status.FAILED
    assert judged.status.value == 1
    assert results(judged)["deliver.p99 > 1 ms"] == "invalid"


def test_a_generator_at_its_limits_is_not_beyond_them() -> None:
    assert verdict(load=GeneratorLoad(GeneratorLimits().cpu, GeneratorLimits().lag)).status is Status.PASSED


def test_the_table_is_for_people() -> None:
    judged = verdict("deliver.p99>50ms", counts={"lost": 2}, load=BUSY, deliver=row(0.01))
    assert judged.table() == (
        "Verdict\n"
        "  must not be                   was\n"
        "  deliver.p99 > 50 ms         10 ms  invalid\n"
        "  lost > 0                        2  FAIL\n"
        "  duplicated > 0                  0  pass\n"
        "  reordered > 0                   0  pass\n"
        "  corrupted > 0                   0  pass\n"
        "  misdelivered > 0                0  pass\n"
        "  unbalanced > 0                  0  pass\n"
        "  exceptions > 0                  0  pass\n"
        "  missing_reports > 0             0  pass\n"
        "  given_up > 0                    0  pass\n"
        "  requests < 1                  100  pass\n"
        "  deliver.failures > 0            0  pass\n"
        "  generator.cpu > 90%           97%  FAIL\n"
        "  generator.lag.p99 > 10 ms  800 us  pass\n"
        "FAILED (exit status 1)"
    )


@pytest.mark.parametrize(
    ("load", "last"),
    [
        (IDLE, "passed (exit status 0)"),
        (BUSY, "INVALID: the load generator itself was the bottleneck, so its latencies say nothing (exit status 3)"),
    ],
)
def test_the_last_line_of_the_table_states_the_result(load: GeneratorLoad, last: str) -> None:
    assert verdict(load=load).table().splitlines()[-1] == last
