"""How much a server takes: a search for the highest rate that keeps a promise, and the certificate.

A promise is a 99th percentile of the latency, with a ledger that balances.
"""

import os
import platform
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from loadtest.core.generator import GeneratorLimits, GeneratorLoad
from loadtest.core.summary import aligned
from loadtest.core.verdict import duration

PRECISION = 1.1  # of the rate that is found: the next one that was tried and did not pass is at most this much higher
HEADINGS = ("messages/s", "sent", "delivered", "p50", "p99", "faults", "generator", "result")


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a rate, in messages a second. Times are in seconds."""

    rate: float
    sent: int
    delivered: int
    late: int  # not delivered when the time to drain was over, or not even sent; or users who were not there
    failures: int
    faults: int  # of the ledger
    p50: float
    p99: float
    load: GeneratorLoad

    def objection(self, target: float, limits: GeneratorLimits) -> str:
        """Why this rate does not count; "" if it does."""
        objections = {
            f"{self.faults} faults": self.faults,
            f"{self.failures} failures": self.failures,
            f"{self.late} not delivered": self.late,
            "generator too slow": self.load.exceeds(limits),
            f"p99 over {duration(target)}": self.p99 > target,
            "nothing sent": not self.sent,
        }
        return next((objection for objection, holds in objections.items() if holds), "")


def search(first: float, least: float = 1.0) -> Generator[float, bool | None, None]:
    """Yields the rates to try, and is sent whether each one passed: doubled as long as they do, then bisected.

    A rate that fails is tried once more before it counts, since one hiccup of the machine is not the server's.
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
    """All that was tried, in order, and what follows from it."""

    trials: Sequence[Trial]
    target: float  # seconds that p99 must not exceed
    limits: GeneratorLimits
    users: int
    processes: int
    host: str
    complete: bool = False  # the search is over

    @property
    def best(self) -> Trial | None:
        passed = [trial for trial in self.trials if not trial.objection(self.target, self.limits)]
        return max(passed, key=lambda trial: trial.rate, default=None)

    @property
    def is_generator_bound(self) -> bool:
        """Whether the lowest rate above the best one failed because of the generator."""
        best = self.best.rate if self.best else 0.0
        above = [trial for trial in reversed(self.trials) if trial.rate > best]  # of two tries the last one counts
        return bool(above) and min(above, key=lambda trial: trial.rate).load.exceeds(self.limits)

    def __str__(self) -> str:
        return f"Capacity: what was tried\n{self._table()}\n\nCertificate\n" + "\n".join(
            f"  {name:<11}{value}" for name, value in self._facts().items()
        )

    def _table(self) -> str:
        return aligned([HEADINGS, *map(self._line, self.trials)])

    def _line(self, trial: Trial) -> tuple[str, ...]:
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
    """The processor, its cores and the system."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.platform()}"


def versions() -> str:
    """What a figure depends on."""
    return f"Python {platform.python_version()}, gevent {version('gevent')}, locust {version('locust')}"
