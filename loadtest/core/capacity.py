"""How much load a server can take: the search for the highest rate that meets a target, and the certificate.

The target is a 99th percentile of the latency; the ledger has to balance as well.
"""

import os
import platform
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from loadtest.core.generator import GeneratorLimits, GeneratorLoad
from loadtest.core.verdict import duration
from table import aligned

PRECISION = 1.1  # the search ends when the lowest rate that failed is at most this factor above the best that passed
HEADINGS = ("messages/s", "sent", "delivered", "p50", "p99", "faults", "generator", "result")


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The result of trying one rate, in messages a second. Times are in seconds."""

    rate: float
    sent: int
    delivered: int
    # messages not delivered when the time to drain was over, users who were missing, users who had not sent all
    undelivered: int
    failures: int
    faults: int  # of the ledger
    p50: float
    p99: float
    load: GeneratorLoad

    def objection(self, target: float, limits: GeneratorLimits) -> str:
        """Return why this rate does not pass; "" if it passes."""
        objections = {
            f"{self.faults} faults": self.faults,
            f"{self.failures} failures": self.failures,
            f"{self.undelivered} not delivered": self.undelivered,
            "generator too slow": self.load.exceeds(limits),
            f"p99 over {duration(target)}": self.p99 > target,
            "nothing sent": not self.sent,
        }
        return next((objection for objection, holds in objections.items() if holds), "")


def search(first: float, least: float = 1.0) -> Generator[float, bool | None, None]:
    """Yield the rates to try, and receive by send() whether each one passed.

    The rate doubles until one fails; then the search bisects. A rate that fails is tried once more before it counts as
    failed, because a single failure may be a hiccup of the machine. `least` is the lowest rate to try.
    """
    passed, failed = 0.0, float("inf")
    rate = first
    while rate >= least and failed / (passed or least / 2) > PRECISION:
        if (yield rate) or (yield rate):
            passed = rate
        else:
            failed = rate
        rate = passed * 2 if failed == float("inf") else (passed * failed) ** 0.5 if passed else failed / 2


@dataclass(frozen=True, slots=True)
class Certificate:
    """All trials in order, and what follows from them."""

    trials: Sequence[TrialResult]
    target: float  # seconds that p99 must not exceed
    limits: GeneratorLimits
    users: int
    processes: int
    host: str
    complete: bool = False  # whether the search has come to its end

    @property
    def best(self) -> TrialResult | None:
        """The trial with the highest rate that passed."""
        passed = [trial for trial in self.trials if not trial.objection(self.target, self.limits)]
        return max(passed, key=lambda trial: trial.rate, default=None)

    @property
    def is_generator_bound(self) -> bool:
        """Whether the lowest rate above the best one failed because of the generator."""
        best = self.best.rate if self.best else 0.0
        above = [trial for trial in reversed(self.trials) if trial.rate > best]  # a rate's last trial counts
        return bool(above) and min(above, key=lambda trial: trial.rate).load.exceeds(self.limits)

    def __str__(self) -> str:
        return f"Capacity: what was tried\n{self._table()}\n\nCertificate\n" + "\n".join(
            f"  {name:<11}{value}" for name, value in self._facts().items()
        )

    def _table(self) -> str:
        return aligned([HEADINGS, *map(self._line, self.trials)])

    def _line(self, trial: TrialResult) -> tuple[str, ...]:
        return (
            f"{trial.rate:.0f}",
            str(trial.sent),
            str(trial.delivered),
            duration(trial.p50),
            duration(trial.p99),
            str(trial.faults),
            f"{trial.load.cpu:.0%}",
            trial.objection(self.target, self.limits) or "pass",
        )

    def _facts(self) -> Mapping[str, str]:
        best = self.best
        facts = {"machine": machine(), "versions": versions(), "host": self.host}
        facts["users"] = f"{self.users}, in {self.processes} process{'es' * (self.processes > 1)}"
        if best:
            facts["capacity"] = f"{'at least ' * self.is_generator_bound}{best.rate:.0f} messages/s"
            facts["p99"] = f"{duration(best.p99)} (target {duration(self.target)})"
            facts["ledger"] = f"sent {best.sent} = delivered {best.delivered}, no fault"
        else:
            facts["capacity"] = f"none found: no rate kept p99 under {duration(self.target)} without a fault"
        if not self.complete:
            facts["capacity"] += ", but the search was stopped"
        if self.is_generator_bound:
            facts["limit"] = "the generator, not the server: try more --processes, or more cores"
        return facts


def machine() -> str:
    """Describe the processor, its cores and the system."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.platform()}"


def versions() -> str:
    """Name the versions of what a figure depends on."""
    return f"Python {platform.python_version()}, gevent {version('gevent')}, locust {version('locust')}"
