"""One run, as one process sees it: what its users share, and what it has measured."""

from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from time import monotonic, process_time
from typing import Any, NamedTuple, Protocol, TypedDict

import gevent
from locust.env import Environment

from loadtest.core.generator import TICK, GeneratorLoad, LoadMeter
from loadtest.core.histogram import Histogram
from loadtest.core.ledger import Ledger
from loadtest.core.pairing import Pairing
from loadtest.core.verdict import RequestStats

NAME_PREFIX = "load-"
DELIVER = "deliver"  # the row of messages that have arrived, and of how long that took
REPEATED = "repeated"  # the row of those that came again, and may


class Paced(Protocol):
    """A user who follows the pace of the run."""

    is_online: bool

    def is_behind(self) -> bool: ...


class Place(NamedTuple):
    """Which of the processes with users this is."""

    rank: int
    workers: int


class Pace(NamedTuple):
    """How many messages each user is due to send a second, from when and until when (of monotonic())."""

    rate: float
    start: float
    end: float = float("inf")


class RowReport(TypedDict):
    """What a row of the statistics has counted; the histogram is encoded."""

    count: int
    failures: int
    histogram: bytes


class ProcessReport(TypedDict):
    """What a process has measured, as it travels to the master."""

    seconds: float
    cpu: float
    lag_p99: float
    ledger: list[dict[str, Any]]
    rows: dict[str, RowReport]


class Run:
    """Made anew for each run, so that nothing of the last one is left."""

    def __init__(self, environment: Environment, place: Place, give_up: Callable[[str], None]) -> None:
        self.options = options = environment.parsed_options or Namespace()
        self.ledger = Ledger(monotonic)
        self.pairing = Pairing(options.pairing)
        self.circle = Pairing("ring")  # of users whom others write to while they are away, too
        self.rows: defaultdict[str, RequestStats] = defaultdict(RequestStats)
        self.pace = Pace(options.message_rate, monotonic())
        self.reached = False  # somebody has been connected
        self.at_end: Callable[[], object] = lambda: None  # what is left to do when all users have stopped
        self.given_up = False
        self._place = place
        self._give_up = give_up
        self._free: list[int] = []
        self._next = count()
        self._environment = environment
        self._begin = monotonic()
        self._seconds = 0.0
        self._load = GeneratorLoad()
        self.meter = LoadMeter(monotonic, process_time)
        self.trial_latencies: Histogram | None = None  # of deliveries since a trial began
        self.paced: set[Paced] = set()
        environment.events.request.add_listener(self._on_request)
        self._ticker = gevent.spawn(self._tick)

    def take_number(self) -> int:
        """A user's number: the lowest that is free, so that names are few and come again in the next run."""
        return heappop(self._free) if self._free else next(self._next)

    def give_back(self, number: int) -> None:
        heappush(self._free, number)

    def name(self, number: int) -> str:
        """The name of the user with this number, which nobody else has in any worker."""
        return f"{NAME_PREFIX}{number * self._place.workers + self._place.rank}"

    def fail(self, protocol: str, row: str, error: Exception) -> None:
        """Count one failure, and end the run: this would happen to every user."""
        if not self.given_up:
            self.given_up = True
            self._environment.events.request.fire(
                request_type=protocol, name=row, response_time=None, response_length=0, exception=error, context={}
            )
            self._give_up(str(error))

    def stopping(self) -> None:
        """The users are about to stop: what comes now is not the load any more. The first time counts."""
        if self._ticker.dead:
            return
        self._ticker.kill()
        self._load = self.meter.read()
        self._seconds = monotonic() - self._begin

    def end(self) -> ProcessReport:
        """The users have stopped."""
        self._environment.events.request.remove_listener(self._on_request)
        return {
            "seconds": self._seconds,
            "cpu": self._load.cpu,
            "lag_p99": self._load.lag_p99,
            "ledger": self.ledger.balance().encode(),
            "rows": {
                name: {"count": row.count, "failures": row.failures, "histogram": row.histogram.encode()}
                for name, row in self.rows.items()
            },
        }

    def _on_request(
        self, name: str, response_time: float | None, exception: Exception | None = None, **_: object
    ) -> None:
        row = self.rows[name]
        row.count += 1
        row.failures += exception is not None
        if response_time is not None:
            row.histogram.record(response_time / 1000)
            if self.trial_latencies and name == DELIVER:
                self.trial_latencies.record(response_time / 1000)

    def _tick(self) -> None:
        while True:
            gevent.sleep(TICK)
            self.meter.tick()
