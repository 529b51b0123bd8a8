"""Real Locust as a process, and what it prints at the end of a run as figures."""

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

from testkit.ports import free_port
from testkit.processes import DEADLINE, ROOT, wait_for

CHAT = ROOT / "locustfiles" / "chat.py"
CAPACITY = ROOT / "locustfiles" / "shapes" / "capacity.py"
GENEROUS = ("--max-generator-cpu", 1000, "--max-loop-lag", 10_000)  # on a shared machine the generator may be slow
END_SECONDS = 60.0  # for a run to end, besides its --run-time
TIMES = ("p50", "p90", "p99", "p99.9", "max")
FAULTS = ("lost", "duplicated", "reordered", "corrupted", "misdelivered")
UNBALANCED = " refused, and delivered all the same"  # after how many, in place of numbers
ROWS = {"chat init", "connect", "deliver", "login", "refresh", "send"}  # without extensions

Pair = tuple[str, str]  # sender and receiver


@dataclass(frozen=True, slots=True)
class ReportLine:
    """A line of the latency table; `times` are in seconds, and empty where nothing was timed."""

    count: int
    failures: int
    times: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Judged:
    """A line of the verdict."""

    figure: str
    result: str


@dataclass(frozen=True, slots=True)
class LoadRun:
    """What a process of Locust's has come to."""

    status: int
    out: str
    log: str
    rows: dict[str, ReportLine] = field(default_factory=dict)
    ledger: dict[str, int] = field(default_factory=dict)  # the totals
    pairs: int = 0
    difference: str = ""  # where the ledger does not balance
    findings: dict[str, dict[Pair, list[int]]] = field(default_factory=dict)  # by fault: numbers of the messages
    verdict: dict[str, Judged] = field(default_factory=dict)  # by condition
    certificate: dict[str, str] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)  # Locust's error report: how often what happened

    @property
    def is_balanced(self) -> bool:
        known = self.ledger["delivered"] + self.ledger["refused"] + self.ledger["in flight"]
        return not self.difference and self.ledger["sent"] == known

    @property
    def faults(self) -> dict[str, int]:
        """The faults of the ledger that were found."""
        return {fault: self.ledger[fault] for fault in FAULTS if self.ledger[fault]}

    @property
    def failed(self) -> set[str]:
        """The conditions that failed the run."""
        return {condition for condition, judged in self.verdict.items() if judged.result == "FAIL"}

    @property
    def seconds(self) -> float:
        """How long all users have been there, by the log of a run with a --run-time."""
        begin, end = (_moment(self.log, text) for text in ("All users spawned", "--run-time limit reached"))
        return (end - begin).total_seconds()

    def explain(self) -> str:
        """For a test that fails."""
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
        """One of these."""
        self._wait(" or ".join(map(repr, texts)), lambda: any(text in self.log for text in texts))

    def wait_for_users(self) -> None:
        """All of them have been started. Where workers are slow to report Locust says it in another way."""
        self.wait_for_log("All users spawned", "Spawning is complete")

    def wait_for_counts(self, enough: Mapping[str, int]) -> None:
        """So much in these rows, or of these rows' failures, at least: {"send": 100, "deliver.failures": 2}."""
        self._wait(str(enough), lambda: all(self.counted(figure) >= count for figure, count in enough.items()))

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        """Until then, or until it has ended."""
        wait_for(what, lambda: condition() or self.process.poll() is not None)
        assert condition(), f"it ended without {what}\n{self.log}"

    def counted(self, figure: str) -> int:
        """What the last of the tables that Locust prints every two seconds says of this row, or "row.failures"."""
        row, _, failures = figure.partition(".")
        counts = re.findall(rf"^\S+ +{row} +(\d+) +(\d+)\(", self.log, re.MULTILINE)
        return int(counts[-1][bool(failures)]) if counts else 0

    def interrupt(self) -> None:
        """What Ctrl-C does: a signal to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, seconds: float = END_SECONDS) -> LoadRun:
        """Wait until it has ended by itself, so many seconds at most."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end after {seconds} s\n{self._out.read_text()}\n{self.log}") from None
        return parse_run(self.process.returncode, self._out.read_text(), self.log)

    def kill(self) -> None:
        """Kill all that is left of the group."""
        with suppress(ProcessLookupError):  # nothing is
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE)


@contextmanager
def start_locust(
    folder: Path, *options: object, files: tuple[Path, ...] = (CHAT,), headless: bool = True
) -> Iterator[LocustProcess]:
    """Start Locust in this folder; nothing of it is left at the end."""
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
    """Run Locust until it has counted so much (see wait_for_counts), however long that takes, then interrupt it."""
    with start_locust(folder, *options, files=files) as locust:
        locust.wait_for_counts(enough)
        locust.interrupt()
        return locust.end()


def load(address: str, users: int, seconds: int = 0, *, rate: float = 50) -> list[object]:
    """Options: so many users at once, who write at this rate, on a machine that may be slow."""
    options = ["--host", f"tcp://{address}", "--users", users, "--spawn-rate", users, "--message-rate", rate, *GENEROUS]
    return [*options, "--run-time", f"{seconds}s"] if seconds else options


def two_processes() -> list[object]:
    """Options: two workers, and a port of their own for their master; other tests may run at the same time."""
    port = free_port()
    return ["--processes", 2, "--master-bind-port", port, "--master-port", port]


def expect_clean(run: LoadRun) -> None:
    """It has passed, and every message has arrived."""
    assert run.status == 0, run.explain()
    assert run.is_balanced
    assert run.ledger["delivered"] == run.ledger["sent"]
    assert run.faults == {}
    assert run.findings == {}
    assert run.errors == {}
    assert "Traceback" not in run.log
    assert {judged.result for judged in run.verdict.values()} == {"pass"}


def expect_refusal(run: LoadRun, text: str, status: int = 2) -> None:
    """A bad option: nothing has run, and one line says why."""
    assert run.status == status, run.explain()
    assert text in run.log.strip().splitlines()[-1]
    assert "Traceback" not in run.log
    assert run.verdict == {}


# Reading what it prints


def parse_run(status: int, out: str, log: str) -> LoadRun:
    """Read the summary; where there is none, as after a bad option, its figures are empty."""
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
    assert totals, equation
    assert pairs, title
    ledger = dict(zip(("sent", "delivered", "refused", "in flight"), map(int, totals.groups()[:4]), strict=True))
    ledger |= {fault: int(count) for fault, count in (part.split(" ") for part in faults.split(", "))}
    found: defaultdict[str, dict[Pair, list[int]]] = defaultdict(dict)
    for finding in findings:
        if finding.startswith("and "):  # more of them, which are in the file alone
            break
        match = re.fullmatch(rf"(\w+): (\S+) -> (\S+): ([-\d, ]*\d)(?: and \d+ more|{UNBALANCED})?", finding)
        assert match, finding
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
    """Locust's own report, the last one of the log."""
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
    assert match, f"no {text!r} in:\n{log}"
    return datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f")


def read_statistics(prefix: Path) -> dict[str, dict[str, str]]:
    """Locust's CSV of the statistics rows, by name; it is up to a second behind."""
    with prefix.with_name(f"{prefix.name}_stats.csv").open(newline="") as file:
        return {row["Name"]: row for row in csv.DictReader(file)}


def read_ledger(file: Path) -> dict[Pair, dict[str, str]]:
    """The file of --ledger."""
    with file.open(newline="") as lines:
        return {(line["sender"], line["receiver"]): line for line in csv.DictReader(lines)}


def signed_up(data_dir: Path) -> list[str]:
    """The names in the server's database, in no particular order."""
    with (data_dir / "users.csv").open(newline="") as file:
        return [line[1] for line in csv.reader(file)]
