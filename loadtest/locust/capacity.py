"""The capacity test: a shape that keeps its users, and changes the rate at which each of them writes."""

import logging
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import Any, TypeAlias

from locust import LoadTestShape, User, events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.core import capacity
from loadtest.core.capacity import Certificate, Trial
from loadtest.core.generator import GeneratorLoad
from loadtest.core.histogram import merged
from loadtest.core.verdict import duration
from loadtest.locust.options import MILLISECONDS, Range, add_group, beyond, limits, number
from loadtest.locust.process import Coordinator, coordinators
from loadtest.locust.shapes import USERS
from loadtest.locust.trial import TrialReport
from loadtest.locust.users import PacedUser

SPAWN_RATE = 20.0
FIRST_RATE = Range(1, 1_000_000)
TRIAL_TIME = Range(1, 3600)
ONLINE_SECONDS = 30.0  # for all users to come in
ANSWER_SECONDS = 120.0  # for the report of a trial, besides what it takes

logger = logging.getLogger(__name__)


def add_options(parser: LocustArgumentParser) -> None:
    options = {
        "--target-p99": {
            "type": number(float, MILLISECONDS),
            "default": 20.0,
            "metavar": "MS",
            "help": "a rate counts if 99 of 100 messages are delivered so fast, and none with a fault (default: 20)",
        },
        "--first-rate": {
            "type": number(float, FIRST_RATE),
            "default": 500.0,
            "metavar": "RATE",
            "help": "messages a second, of all users together, to begin with (default: 500)",
        },
        "--trial-time": {
            "type": number(float, TRIAL_TIME),
            "default": 5.0,
            "metavar": "SECONDS",
            "help": "how long each rate is tried (default: 5)",
        },
    }
    on_the_page = {name: {"page": True, **settings} for name, settings in options.items()}
    add_group(parser, "Capacity test", "What is promised, and how to look for the highest rate", on_the_page)


def set_defaults(environment: Environment, **_: object) -> None:
    """Users write in trials only; and one alone, Locust's default, is no test."""
    options: Any = environment.parsed_options
    options.message_rate = 0.0
    options.num_users = options.num_users or USERS
    options.spawn_rate = options.spawn_rate or SPAWN_RATE


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(set_defaults)


Crew: TypeAlias = tuple[int, float, list[type[User]] | None]


class CapacityShape(LoadTestShape):
    """Doubles the rate, then bisects, until the highest one is found that keeps the promise."""

    abstract = True
    use_common_options = True

    def reset_time(self) -> None:
        """Called before each run."""
        super().reset_time()
        self._course = self._conduct()

    def tick(self) -> Crew | None:
        """Called about once a second: the users to have; None when the search is over, or --run-time."""
        runner: Any = self.runner
        limit = runner.environment.parsed_options.run_time
        return None if limit and self.get_run_time() > limit else next(self._course, None)

    def _conduct(self) -> Iterator[Crew]:
        """The course of a run; goes on each time a trial may have ended."""
        runner: Any = self.runner
        options = runner.environment.parsed_options
        users = options.num_users
        paced = [user for user in runner.user_classes if issubclass(user, PacedUser)]
        crew = (users, options.spawn_rate, paced)
        judge = coordinators[runner.environment]
        yield crew
        if error := _check(options, paced):
            judge.give_up(error)
        deadline = monotonic() + users / options.spawn_rate + ONLINE_SECONDS
        while runner.user_count < users:
            if monotonic() > deadline:
                judge.give_up(f"only {runner.user_count} of {users} users have been started")
            yield crew
        judge.certificate = certificate = Certificate(
            [],
            options.target_p99 / 1000,
            limits(options),
            users,
            judge.processes,
            runner.environment.host or paced[0].host,
        )
        yield from self._wait_until_online(judge, crew)
        yield from self._search(judge, crew, certificate, options)

    def _wait_until_online(self, judge: Coordinator, crew: Crew) -> Iterator[Crew]:
        users = crew[0]
        deadline = monotonic() + ONLINE_SECONDS
        while (online := sum(report["users"] for report in (yield from self._trial(judge, crew, 0.0, 0.5)))) < users:
            if monotonic() > deadline:
                judge.give_up(f"only {online} of {users} users have come in: has the server fewer places?")
                yield crew

    def _search(self, judge: Coordinator, crew: Crew, certificate: Certificate, options: Any) -> Iterator[Crew]:
        rates = capacity.search(options.first_rate)
        passed = None
        with suppress(StopIteration):  # the search is over
            while True:
                rate = rates.send(passed)
                reports = yield from self._trial(judge, crew, rate / crew[0], options.trial_time)
                trial = _merge(rate, reports, crew[0])
                judge.certificate = certificate = replace(certificate, trials=[*certificate.trials, trial])
                objection = trial.objection(certificate.target, certificate.limits)
                logger.info("%.0f messages/s: p99 %s, %s", rate, duration(trial.p99), objection or "pass")
                passed = not objection
        judge.certificate = replace(certificate, complete=True)

    def _trial(
        self, judge: Coordinator, crew: Crew, rate: float, seconds: float
    ) -> Generator[Crew, None, list[TrialReport]]:
        number = judge.order(rate, seconds)
        deadline = monotonic() + seconds + ANSWER_SECONDS
        while not (reports := judge.tried(number)):
            if monotonic() > deadline:
                judge.give_up("a process with users does not answer any more")
            yield crew
        return reports


def _check(options: Any, paced: list[type[User]]) -> str:
    """What is wrong with what the web page may have set; "" if nothing is."""
    ranges = {"target_p99": MILLISECONDS, "first_rate": FIRST_RATE, "trial_time": TRIAL_TIME}
    for _, wrong in beyond(options, ranges):
        return wrong
    return "" if paced else "there are no users who write at a given rate (PacedUser)"


def _merge(rate: float, reports: list[TrialReport], users: int) -> Trial:
    latencies = merged(report["latencies"] for report in reports)
    return Trial(
        rate,
        sent=sum(report["sent"] for report in reports),
        delivered=sum(report["delivered"] for report in reports),
        late=sum(report["late"] for report in reports) + users - sum(report["users"] for report in reports),
        failures=sum(report["failures"] for report in reports),
        faults=sum(report["faults"] for report in reports),
        p50=latencies.percentile(50),
        p99=latencies.percentile(99),
        load=GeneratorLoad(max(report["cpu"] for report in reports), max(report["lag_p99"] for report in reports)),
    )
