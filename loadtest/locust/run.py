"""One load test, as one process sees it: what its users share, and what it has measured."""

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
DELIVER = "deliver"  # the row of messages that have arrived, and how long that took
REPEATED = "repeated"  # the row of messages that arrived twice, and may


class Paced(Protocol):
    """A user who sends at the pace of the load test."""

    is_online: bool

    def is_behind(self) -> bool: ...


class Rank(NamedTuple):
    """The number of this process, from 0, among the processes that have users."""

    number: int
    processes: int


class Pace(NamedTuple):
    """How many messages a second each user is due to send, from `start` to `end` (moments of monotonic())."""

    rate: float
    start: float
    end: float = float("inf")


class RowReport(TypedDict):
    """What a row of the statistics has counted; the histogram is encoded."""

    count: int
    failures: int
    histogram: bytes


class ProcessReport(TypedDict):
    """What a process has measured, as it is sent to the master."""

    seconds: float
    cpu: float
    lag_p99: float
    unanswered: int
    online: int
    ledger: list[dict[str, Any]]
    rows: dict[str, RowReport]


class TestRun:
    """The state of one load test in this process. Each load test has a new one, so that nothing of the last is left."""

    def __init__(self, environment: Environment, rank: Rank, give_up: Callable[[str], None]) -> None:
        """`give_up` ends the load test in all processes, and is called with the reason."""
        self.options = options = environment.parsed_options or Namespace()
        self.ledger = Ledger(monotonic)
        self.pairing = Pairing(options.pairing)
        self.mail_ring = Pairing("ring")  # of users to whom others write while they are offline, too
        self.rows: defaultdict[str, RequestStats] = defaultdict(RequestStats)
        self.pace = Pace(options.message_rate, monotonic())
        self.server_reached = False  # somebody has been connected
        self.after_users: Callable[[], object] = lambda: None  # what is left to do when all users have stopped
        self.given_up = False
        self._rank = rank
        self._give_up = give_up
        self._free_numbers: list[int] = []
        self._new_numbers = count()
        self._environment = environment
        self._begin = monotonic()
        self._seconds = 0.0
        self._load = GeneratorLoad()
        self.meter = LoadMeter(monotonic, process_time)
        self.trial_latencies: Histogram | None = None  # of deliveries since a trial began
        self.paced: set[Paced] = set()
        self.online: set[object] = set()  # the users who are
        self._unanswered = 0  # logins
        self._online_then = 0  # at most, when a login was not answered
        environment.events.request.add_listener(self._on_request)
        self._ticker = gevent.spawn(self._tick)

    def take_number(self) -> int:
        """Return the lowest free number for a user, so that there are few names, and the next run uses them again."""
        return heappop(self._free_numbers) if self._free_numbers else next(self._new_numbers)

    def give_back(self, number: int) -> None:
        """Free this number, whose user has stopped."""
        heappush(self._free_numbers, number)

    def name(self, number: int) -> str:
        """Return the name of the user with this number, which is unique among all processes."""
        return f"{NAME_PREFIX}{number * self._rank.processes + self._rank.number}"

    def fail(self, protocol: str, row: str, error: Exception) -> None:
        """Count one failure, and end the load test: the same would happen to every user."""
        if not self.given_up:
            self.given_up = True
            self._environment.events.request.fire(
                request_type=protocol, name=row, response_time=None, response_length=0, exception=error, context={}
            )
            self._give_up(str(error))

    def note_unanswered(self) -> None:
        """A login was not answered: with so many users online, the server may have had no more places."""
        self._unanswered += 1
        self._online_then = max(self._online_then, len(self.online))

    def stop_measuring(self) -> None:
        """The users are about to stop, and the load ends. Only the first call counts."""
        if self._ticker.dead:
            return
        self._ticker.kill()
        self._load = self.meter.read()
        self._seconds = monotonic() - self._begin

    def end(self) -> ProcessReport:
        """All users have stopped: return what was measured."""
        self._environment.events.request.remove_listener(self._on_request)
        return {
            "seconds": self._seconds,
            "cpu": self._load.cpu,
            "lag_p99": self._load.lag_p99,
            "unanswered": self._unanswered,
            "online": self._online_then,
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
