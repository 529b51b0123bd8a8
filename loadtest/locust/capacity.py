"""The capacity test: a Locust shape that keeps the number of users, and changes how much each of them sends."""

import logging
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import Any, NamedTuple

from locust import LoadTestShape, User, events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.core.capacity import Certificate, TrialResult, search
from loadtest.core.generator import GeneratorLoad
from loadtest.core.histogram import merged
from loadtest.core.verdict import duration
from loadtest.locust.coordinator import coordinators
from loadtest.locust.options import MILLISECONDS, Range, add_group, generator_limits, number, out_of_range
from loadtest.locust.paced import PacedUser
from loadtest.locust.shapes import USERS
from loadtest.locust.trial import TrialReport

SPAWN_RATE = 20.0
FIRST_RATE = Range(1, 1_000_000)
TRIAL_TIME = Range(1, 3600)
ONLINE_SECONDS = 30.0  # how long it may take until all users are online
ANSWER_SECONDS = 120.0  # how long to wait for the reports of a trial, besides its own length

logger = logging.getLogger(__name__)


def add_options(parser: LocustArgumentParser) -> None:
    """Add the options of the capacity test to Locust's command line and web page."""
    options = {
        "--target-p99": {
            "type": number(float, MILLISECONDS),
            "default": 20.0,
            "metavar": "MS",
            "help": "a rate passes if 99 of 100 messages arrive within this time, and none with a fault (default: 20)",
        },
        "--first-rate": {
            "type": number(float, FIRST_RATE),
            "default": 500.0,
            "metavar": "RATE",
            "help": "messages a second, of all users together, in the first trial (default: 500)",
        },
        "--trial-time": {
            "type": number(float, TRIAL_TIME),
            "default": 5.0,
            "metavar": "SECONDS",
            "help": "how long each rate is tried (default: 5)",
        },
    }
    on_the_page = {name: {"page": True, **settings} for name, settings in options.items()}
    add_group(parser, "Capacity test", "The target, and how to search for the highest rate that meets it", on_the_page)


def set_defaults(environment: Environment, **_: object) -> None:
    """Users send during trials only; and Locust's default of one user is too few for a test."""
    options: Any = environment.parsed_options
    options.message_rate = 0.0
    options.num_users = options.num_users or USERS
    options.spawn_rate = options.spawn_rate or SPAWN_RATE


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(set_defaults)


class Population(NamedTuple):
    """The users to have, as Locust wants to know from a shape."""

    users: int
    spawn_rate: float
    classes: list[type[User]] | None


class CapacityShape(LoadTestShape):
    """Doubles the rate, then bisects, until it has found the highest one that meets the target."""

    abstract = True
    use_common_options = True

    def reset_time(self) -> None:
        """Called by Locust before each run."""
        super().reset_time()
        self._search = self._start_search()

    def tick(self) -> Population | None:
        """Called by Locust about once a second. Returns None when the search or --run-time is over."""
        runner: Any = self.runner
        limit = runner.environment.parsed_options.run_time
        return None if limit and self.get_run_time() > limit else next(self._search, None)

    def _start_search(self) -> Iterator[Population]:
        """A generator, so that the search begins with the first tick, when Locust knows the users."""
        yield from CapacitySearch(self.runner).steps()


class CapacitySearch:
    """One search for the capacity. Its generators yield the population whenever they have to wait."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._options = options = runner.environment.parsed_options
        self._paced = [user for user in runner.user_classes if issubclass(user, PacedUser)]
        self._population = Population(options.num_users, options.spawn_rate, self._paced)
        self._coordinator = coordinators[runner.environment]

    def steps(self) -> Iterator[Population]:
        """The whole search: start the users, wait until they are online, try rates."""
        yield self._population
        if error := _check(self._options, self._paced):
            self._coordinator.give_up(error)
        yield from self._wait_until_started()
        self._coordinator.certificate = certificate = self._empty_certificate()
        yield from self._wait_until_online()
        yield from self._try_rates(certificate)

    def _wait_until_started(self) -> Iterator[Population]:
        users, spawn_rate, _ = self._population
        deadline = monotonic() + users / spawn_rate + ONLINE_SECONDS
        while self._runner.user_count < users:
            if monotonic() > deadline:
                self._coordinator.give_up(f"only {self._runner.user_count} of {users} users have started")
            yield self._population

    def _wait_until_online(self) -> Iterator[Population]:
        users = self._population.users
        deadline = monotonic() + ONLINE_SECONDS
        while (online := sum(report["users"] for report in (yield from self._trial(0.0, 0.5)))) < users:
            if monotonic() > deadline:
                self._coordinator.give_up(f"only {online} of {users} users are online: has the server fewer places?")
                yield self._population

    def _try_rates(self, certificate: Certificate) -> Iterator[Population]:
        users = self._population.users
        rates = search(self._options.first_rate)
        passed = None
        with suppress(StopIteration):  # the search is over
            while True:
                rate = rates.send(passed)
                reports = yield from self._trial(rate / users, self._options.trial_time)
                trial = _merge(rate, reports, users)
                self._coordinator.certificate = certificate = replace(certificate, trials=[*certificate.trials, trial])
                objection = trial.objection(certificate.target, certificate.limits)
                logger.info("%.0f messages/s: p99 %s, %s", rate, duration(trial.p99), objection or "pass")
                passed = not objection
        self._coordinator.certificate = replace(certificate, complete=True)

    def _empty_certificate(self) -> Certificate:
        return Certificate(
            [],
            self._options.target_p99 / 1000,
            generator_limits(self._options),
            self._population.users,
            self._coordinator.processes,
            self._runner.environment.host or self._paced[0].host,
        )

    def _trial(self, rate: float, seconds: float) -> Generator[Population, None, list[TrialReport]]:
        """Have each user send at this rate for some seconds; return the reports of all processes."""
        number = self._coordinator.order_trial(rate, seconds)
        deadline = monotonic() + seconds + ANSWER_SECONDS
        while not (reports := self._coordinator.trial_reports(number)):
            if monotonic() > deadline:
                self._coordinator.give_up("a process with users does not answer any more")
            yield self._population
        return reports


def _check(options: Any, paced: list[type[User]]) -> str:
    """Return what is wrong with the options that the web page may have set; "" if nothing is."""
    ranges = {"target_p99": MILLISECONDS, "first_rate": FIRST_RATE, "trial_time": TRIAL_TIME}
    for _, wrong in out_of_range(options, ranges):
        return wrong
    return "" if paced else "no users send at a given rate (PacedUser)"


def _merge(rate: float, reports: list[TrialReport], users: int) -> TrialResult:
    latencies = merged(report["latencies"] for report in reports)
    missing_users = users - sum(report["users"] for report in reports)
    return TrialResult(
        rate,
        sent=sum(report["sent"] for report in reports),
        delivered=sum(report["delivered"] for report in reports),
        undelivered=sum(report["undelivered"] for report in reports) + missing_users,
        failures=sum(report["failures"] for report in reports),
        faults=sum(report["faults"] for report in reports),
        p50=latencies.percentile(50),
        p99=latencies.percentile(99),
        load=GeneratorLoad(max(report["cpu"] for report in reports), max(report["lag_p99"] for report in reports)),
    )
