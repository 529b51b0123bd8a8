"""Locust as a process, and the figures of the summary that it prints at its end."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from testkit import HarnessError
from testkit.ports import free_port
from testkit.processes import DEADLINE, ROOT, wait_for

CHAT = ROOT / "locustfiles" / "chat.py"
CAPACITY = ROOT / "locustfiles" / "shapes" / "capacity.py"
GENEROUS = ("--max-generator-cpu", 1000, "--max-loop-lag", 10_000)  # a shared machine may slow the generator down
END_SECONDS = 60.0  # for a run to end, besides its --run-time
TIMES = ("p50", "p90", "p99", "p99.9", "max")
FAULTS = ("lost", "duplicated", "reordered", "corrupted", "misdelivered")
UNBALANCED = " refused, and delivered all the same"  # follows a count, where other findings have numbers
ROWS = {"chat init", "connect", "deliver", "login", "refresh", "send"}  # of a run that uses no extension

Pair = tuple[str, str]  # sender and receiver


@dataclass(frozen=True, slots=True)
class ReportLine:
    """A line of the latency table; `times` are in seconds, and empty if nothing was timed."""

    count: int
    failures: int
    times: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Judged:
    """A line of the verdict: a condition's figure, and "pass" or "FAIL"."""

    figure: str
    result: str


@dataclass(frozen=True, slots=True)
class LoadRun:
    """How a Locust process ended, and the figures of its summary."""

    status: int
    out: str
    log: str
    rows: dict[str, ReportLine] = field(default_factory=dict)
    ledger: dict[str, int] = field(default_factory=dict)  # the totals
    pairs: int = 0
    difference: str = ""  # set if the ledger does not balance
    findings: dict[str, dict[Pair, list[int]]] = field(default_factory=dict)  # by fault: the messages' numbers
    verdict: dict[str, Judged] = field(default_factory=dict)  # by condition
    certificate: dict[str, str] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)  # Locust's error report: how often each one occurred

    @property
    def is_balanced(self) -> bool:
        known = self.ledger["delivered"] + self.ledger["refused"] + self.ledger["in flight"]
        return not self.difference and self.ledger["sent"] == known

    @property
    def faults(self) -> dict[str, int]:
        """The faults that the ledger found, with their counts."""
        return {fault: self.ledger[fault] for fault in FAULTS if self.ledger[fault]}

    @property
    def failed(self) -> set[str]:
        """The conditions of the verdict that failed the run."""
        return {condition for condition, judged in self.verdict.items() if judged.result == "FAIL"}

    @property
    def seconds(self) -> float:
        """How long all users were running, by the log of a run with --run-time."""
        begin, end = (_moment(self.log, text) for text in ("All users spawned", "--run-time limit reached"))
        return (end - begin).total_seconds()

    def explain(self) -> str:
        """Everything the process said, for the report of a failure."""
        return f"exit status {self.status}\n{self.out}\n{self.log}"


class LocustProcess:
    """`python -m locust -f locustfiles/chat.py --headless` with these options, in a process group of its own."""

    def __init__(
        self, folder: Path, *options: object, files: tuple[Path, ...] = (CHAT,), headless: bool = True
    ) -> None:
        command = [sys.executable, "-m", "locust", "-f", ",".join(map(str, files)), *["--headless"] * headless]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
        environment["PYTHONPATH"] = str(ROOT)  # the project need not be installed
        self._out, self._log = (folder / f"locust-{time.monotonic_ns()}.{kind}" for kind in ("out", "log"))
        with self._out.open("wb") as out, self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *map(str, options)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for_log(self, *texts: str) -> None:
        """Wait until the log has one of these texts."""
        self._wait(" or ".join(map(repr, texts)), lambda: any(text in self.log for text in texts))

    def wait_for_users(self) -> None:
        """Wait until all users have been started. Locust logs this in other words if workers are slow to report."""
        self.wait_for_log("All users spawned", "Spawning is complete")

    def wait_for_counts(self, enough: Mapping[str, int]) -> None:
        """Wait for at least these counts of rows or of their failures: {"send": 100, "deliver.failures": 2}."""
        self._wait(str(enough), lambda: all(self.counted(figure) >= count for figure, count in enough.items()))

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        wait_for(what, lambda: condition() or self.process.poll() is not None)
        if not condition():
            raise HarnessError(f"Locust ended without {what}\n{self.log}")

    def counted(self, figure: str) -> int:
        """The count of "row", or of "row.failures", in the latest table; Locust prints one every two seconds."""
        row, _, failures = figure.partition(".")
        counts = re.findall(rf"^\S+ +{row} +(\d+) +(\d+)\(", self.log, re.MULTILINE)
        return int(counts[-1][bool(failures)]) if counts else 0

    def interrupt(self) -> None:
        """Send SIGINT to the whole process group, as Ctrl-C does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, seconds: float = END_SECONDS) -> LoadRun:
        """Wait until it has ended by itself. Raises HarnessError after so many seconds."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise HarnessError(f"no end after {seconds} s\n{self._out.read_text()}\n{self.log}") from None
        return parse_run(self.process.returncode, self._out.read_text(), self.log)

    def kill(self) -> None:
        """Kill what is left of the process group."""
        with suppress(ProcessLookupError):  # nothing is left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE)


@contextmanager
def start_locust(
    folder: Path, *options: object, files: tuple[Path, ...] = (CHAT,), headless: bool = True
) -> Iterator[LocustProcess]:
    """Start Locust in this folder, and kill what is left of it at the end."""
    locust = LocustProcess(folder, *options, files=files, headless=headless)
    try:
        yield locust
    finally:
        locust.kill()


def run_locust(folder: Path, *options: object, files: tuple[Path, ...] = (CHAT,)) -> LoadRun:
    """Run Locust until it has ended by itself."""
    with start_locust(folder, *options, files=files) as locust:
        return locust.end()


def run_until(folder: Path, enough: Mapping[str, int], *options: object, files: tuple[Path, ...] = (CHAT,)) -> LoadRun:
    """Run Locust until it has reached these counts (see wait_for_counts), then interrupt it."""
    with start_locust(folder, *options, files=files) as locust:
        locust.wait_for_counts(enough)
        locust.interrupt()
        return locust.end()


def load(address: str, users: int, seconds: int = 0, *, rate: float = 50) -> list[object]:
    """Options: this many users at once, each sending `rate` messages a second, on a machine that may be slow."""
    options = ["--host", f"tcp://{address}", "--users", users, "--spawn-rate", users, "--message-rate", rate, *GENEROUS]
    return [*options, "--run-time", f"{seconds}s"] if seconds else options


def two_processes() -> list[object]:
    """Options: two workers, whose master has a free port since other tests may run at the same time."""
    port = free_port()
    return ["--processes", 2, "--master-bind-port", port, "--master-port", port]


def expect_clean(run: LoadRun) -> None:
    """Raises HarnessError unless the run passed and every message arrived."""
    expected = {
        "exit status 0": run.status == 0,
        "a balanced ledger": bool(run.ledger) and run.is_balanced,
        "every message delivered": run.ledger.get("delivered") == run.ledger.get("sent"),
        "no faults": bool(run.ledger) and not run.faults and not run.findings,
        "no errors": not run.errors,
        "no traceback": "Traceback" not in run.log,
        "a verdict that passes": {judged.result for judged in run.verdict.values()} == {"pass"},
    }
    _expect_all(run, expected)


def expect_refusal(run: LoadRun, text: str, status: int = 2) -> None:
    """Raises HarnessError unless Locust refused to run, with this text in its last line."""
    expected = {
        f"exit status {status}": run.status == status,
        f"{text!r} in the last line": text in run.log.strip().rpartition("\n")[2],
        "no traceback": "Traceback" not in run.log,
        "no verdict": not run.verdict,
    }
    _expect_all(run, expected)


def _expect_all(run: LoadRun, expected: Mapping[str, bool]) -> None:
    if failed := [what for what, holds in expected.items() if not holds]:
        raise HarnessError(f"expected {', '.join(failed)}\n{run.explain()}")


# Reading the summary


def parse_run(status: int, out: str, log: str) -> LoadRun:
    """Read the summary; its figures are empty if there is none, as after a bad option."""
    run = LoadRun(status, out, log, errors=_read_errors(log))
    for section in out.strip().split("\n\n"):
        title, *lines = section.splitlines() or [""]
        if title.startswith("Latency"):
            run.rows.update(map(_read_row, lines[1:]))
        elif title.startswith("Delivery ledger"):
            run = _read_ledger(run, title, lines)
        elif title == "Verdict":
            run.verdict.update(map(_read_judged, lines[1:-1]))
        elif title == "Certificate":
            run.certificate.update((line[:13].strip(), line[13:].strip()) for line in lines)
    return run


def _read_row(line: str) -> tuple[str, ReportLine]:
    name, count, failures, *times = re.split(r"\s{2,}", line.strip())
    timed = {} if times[0] == "-" else {time: int(value) / 1e6 for time, value in zip(TIMES, times, strict=True)}
    return name, ReportLine(int(count), int(failures), timed)


def _read_ledger(run: LoadRun, title: str, lines: list[str]) -> LoadRun:
    equation, faults, *findings = (line.strip() for line in lines)
    totals = re.match(r"sent (\d+) = delivered (\d+) \+ refused (\d+) \+ in flight (\d+)(.*)$", equation)
    pairs = re.search(r"\((\d+) pairs\)", title)
    if not totals or not pairs:
        raise HarnessError(f"not the head of a ledger: {title}\n{equation}")
    ledger = dict(zip(("sent", "delivered", "refused", "in flight"), map(int, totals.groups()[:4]), strict=True))
    ledger |= {fault: int(count) for fault, count in (part.split(" ") for part in faults.split(", "))}
    found: defaultdict[str, dict[Pair, list[int]]] = defaultdict(dict)
    for finding in findings:
        if finding.startswith("and "):  # "and 5 more": those are in the file only
            break
        match = re.fullmatch(rf"(\w+): (\S+) -> (\S+): ([-\d, ]*\d)(?: and \d+ more|{UNBALANCED})?", finding)
        if not match:
            raise HarnessError(f"not a finding of the ledger: {finding}")
        found[match[1]][match[2], match[3]] = read_numbers(match[4])
    return replace(run, ledger=ledger, pairs=int(pairs[1]), difference=totals[5], findings=dict(found))


def read_numbers(text: str) -> list[int]:
    """Read "3, 7-9"."""
    numbers: list[int] = []
    for part in text.split(", ") if text else []:
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _read_judged(line: str) -> tuple[str, Judged]:
    condition, figure, result = re.split(r"\s{2,}", line.strip())
    return condition, Judged(figure, result)


def _read_errors(log: str) -> dict[str, int]:
    """The last of Locust's own error reports in the log."""
    _, _, report = log.rpartition("Error report\n")
    errors = {}
    for line in report.splitlines()[2:]:
        if match := re.match(r"(\d+)\s+(\S.*?)\s*$", line):
            errors[match[2]] = int(match[1])
        else:
            break
    return errors if report != log else {}


def _moment(log: str, text: str) -> datetime:
    match = re.search(rf"^\[([^\]]+)\].*{re.escape(text)}", log, re.MULTILINE)
    if not match:
        raise HarnessError(f"no {text!r} in:\n{log}")
    return datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f")


def read_statistics(prefix: Path) -> dict[str, dict[str, str]]:
    """The rows of Locust's statistics CSV, by name. Locust writes it once a second."""
    with prefix.with_name(f"{prefix.name}_stats.csv").open(newline="") as file:
        return {row["Name"]: row for row in csv.DictReader(file)}


def read_ledger(file: Path) -> dict[Pair, dict[str, str]]:
    """The rows of the file that --ledger writes, by pair."""
    with file.open(newline="") as lines:
        return {(line["sender"], line["receiver"]): line for line in csv.DictReader(lines)}


def signed_up(data_dir: Path) -> list[str]:
    """The names in the server's database, in no particular order."""
    with (data_dir / "users.csv").open(newline="") as file:
        return [line[1] for line in csv.reader(file)]
