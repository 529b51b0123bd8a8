"""The verdict on a load test: which conditions that must not hold, such as `deliver.p99>50ms`, do hold."""

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum

from loadtest.core.balance import COLUMNS, Fault
from loadtest.core.generator import GeneratorLimits, GeneratorLoad
from loadtest.core.histogram import Histogram
from table import aligned

SYNTAX = re.compile(
    r"\s*(?:(?P<row>\S.*?)\.)?(?P<figure>p\d+(?:\.\d+)?|[a-z_ ]*[a-z])\s*(?P<sign>>=|<=|>|<)"
    r"\s*(?P<limit>\d+(?:\.\d+)?)\s*(?P<unit>us|µs|ms|s|%)?\s*"
)
SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
ROW_FIGURES = ("max", "failures", "count", "rate")
DEFAULT_COUNTS = (*(str(fault) for fault in Fault), "unbalanced", "exceptions", "missing_reports", "given_up")
COUNTS = (*COLUMNS[:-1], *DEFAULT_COUNTS, "requests", "capacity")
FAIL = "FAIL"
EXAMPLES = "for example deliver.p99>50ms, login.failures>1%, lost>0"


class Status(IntEnum):
    """The exit status of a load test."""

    PASSED = 0
    FAILED = 1
    INVALID = 3  # the generator was the bottleneck


@dataclass(slots=True)
class RequestStats:
    """One row of the statistics: how many requests there were, how many failed, and how long the timed ones took."""

    histogram: Histogram = field(default_factory=Histogram)
    count: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """All figures that a verdict can depend on."""

    rows: Mapping[str, RequestStats]
    counts: Mapping[str, int]  # those in COUNTS; `capacity` only after a search for it
    load: GeneratorLoad
    seconds: float  # the length of the load test


@dataclass(frozen=True, slots=True)
class Condition:
    """What must not hold. `row` is "" if the figure is a count of the whole load test; `limit` is in `unit`."""

    row: str
    figure: str
    sign: str
    limit: float
    unit: str

    def __str__(self) -> str:
        limit = f"{Decimal(repr(self.limit)):f}".removesuffix(".0")  # never 1e+06, which parse_condition() refuses
        return f"{self.subject} {self.sign} {limit}{' ' * (self.unit in SECONDS)}{self.unit}"

    @property
    def subject(self) -> str:
        return f"{self.row}.{self.figure}" if self.row else self.figure

    @property
    def is_latency(self) -> bool:
        return self.figure == "max" or self.figure[1:2].isdecimal()

    def is_met(self, figure: float) -> bool:
        """Whether the condition holds for this figure; a time is in seconds."""
        return SIGNS[self.sign](figure, self.limit * SECONDS.get(self.unit, 1.0))

    def figure_of(self, measured: Measured) -> float | None:
        """Return what was measured for this condition; None if nothing was."""
        if not self.row:
            return measured.counts.get(self.figure)
        row = measured.rows.get(self.row)
        if row is None:
            return None if self.is_latency else 0
        if self.is_latency:
            percent = 100.0 if self.figure == "max" else float(self.figure[1:])
            return row.histogram.percentile(percent) if row.histogram.count else None
        if self.figure == "failures" and self.unit == "%":
            return 100 * row.failures / row.count if row.count else 0
        return {"failures": row.failures, "count": row.count, "rate": row.count / (measured.seconds or 1)}[self.figure]

    def shown(self, figure: float | None) -> str:
        """Format the figure as in the table."""
        if figure is None:
            return "not measured"
        if self.is_latency:
            return duration(figure)
        if self.unit == "%":
            return f"{figure:.3g} %"
        return str(figure) if isinstance(figure, int) else f"{figure:.1f}"


def parse_condition(text: str) -> Condition:
    """Parse a condition as people write it. Raises ValueError with what is wrong."""
    match = SYNTAX.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a condition; {EXAMPLES}")
    row, figure, unit = match["row"] or "", match["figure"], (match["unit"] or "").replace("µ", "u")
    if not row:
        figure = figure.replace(" ", "_")
        if figure not in COUNTS:
            raise ValueError(f"{text!r}: {figure!r} is not a count; the counts are {', '.join(COUNTS)}; {EXAMPLES}")
    condition = Condition(row, figure, match["sign"], float(match["limit"]), unit)
    if row and not condition.is_latency and figure not in ROW_FIGURES:
        raise ValueError(f"{text!r}: a row has p50, p99.9 (any percentile), {', '.join(ROW_FIGURES)}; {EXAMPLES}")
    if condition.is_latency and figure != "max" and float(figure[1:]) > 100:
        raise ValueError(f"{text!r}: a percentile is at most 100")
    if condition.is_latency != (unit in SECONDS) or (unit == "%" and not (row and figure == "failures")):
        raise ValueError(f"{text!r}: a time needs us, ms or s; failures of a row may have %, nothing else has a unit")
    return condition


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the verdict."""

    condition: str
    figure: str
    result: str  # pass, FAIL or invalid


@dataclass(frozen=True, slots=True)
class Verdict:
    """The checks of all conditions, and the exit status that follows."""

    checks: Sequence[Check]
    status: Status

    def table(self) -> str:
        """Format the verdict for people."""
        lines = [("must not be", "was", ""), *((one.condition, one.figure, one.result) for one in self.checks)]
        return f"Verdict\n{aligned(lines, '<><')}\n{MEANINGS[self.status]} (exit status {self.status.value})"


MEANINGS = {
    Status.PASSED: "passed",
    Status.FAILED: "FAILED",
    Status.INVALID: "INVALID: the load generator itself was the bottleneck, so its latencies say nothing",
}


def judge(conditions: Iterable[Condition], measured: Measured, limits: GeneratorLimits) -> Verdict:
    """Judge a load test by these conditions and the defaults: no fault in the ledger, and no failure in any row.

    A condition replaces the default for the same figure. A search for the capacity may meet failures, since it goes
    beyond the capacity, but it has to find one.
    """
    given = list(conditions)
    subjects = {condition.subject for condition in given}
    defaults = [condition for condition in _defaults(measured) if condition.subject not in subjects]
    overloaded = measured.load.exceeds(limits)
    checks = [_check(condition, measured, overloaded) for condition in [*given, *defaults]]
    if any(check.result == FAIL for check in checks):
        status = Status.FAILED
    else:
        status = Status.INVALID if overloaded else Status.PASSED
    return Verdict([*checks, *_check_generator(measured.load, limits)], status)


def _check_generator(load: GeneratorLoad, limits: GeneratorLimits) -> list[Check]:
    cpu, lag = limits.cpu, limits.lag
    return [
        Check(f"generator.cpu > {cpu:.0%}", f"{load.cpu:.0%}", _result(load.cpu > cpu)),
        Check(f"generator.lag.p99 > {duration(lag)}", duration(load.lag_p99), _result(load.lag_p99 > lag)),
    ]


def _defaults(measured: Measured) -> list[Condition]:
    counts = [Condition("", str(count), ">", 0, "") for count in DEFAULT_COUNTS]
    counts.append(Condition("", "requests", "<", 1, ""))  # a load test that has measured nothing has not passed
    if "capacity" in measured.counts:
        return [*counts, Condition("", "capacity", "<", 1, "")]
    return counts + [Condition(row, "failures", ">", 0, "") for row in sorted(measured.rows)]


def _check(condition: Condition, measured: Measured, overloaded: bool) -> Check:
    figure = condition.figure_of(measured)
    if figure is not None and condition.is_latency and overloaded:
        return Check(str(condition), condition.shown(figure), "invalid")
    missing_row = "no such row: " if condition.row and condition.row not in measured.rows else ""
    failed = figure is None or condition.is_met(figure)
    return Check(str(condition), missing_row + condition.shown(figure), _result(failed))


def _result(failed: bool) -> str:
    return FAIL if failed else "pass"


def duration(seconds: float) -> str:
    """Format a duration with three digits and a suitable unit."""
    for unit, factor in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 1000 * factor - factor / 2:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:.0f} s"
