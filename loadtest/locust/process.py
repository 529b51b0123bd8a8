"""One process of a load test: it runs users and trials, and a worker reports to the master.

Locust's own reports come too late for a verdict: if a run ends by itself, Locust gives the workers half a second for
everything that is still in flight. So the master asks the workers to stop, and each sends a report of its own.
"""

from math import inf
from typing import Any

import gevent
from locust.env import Environment
from locust.rpc import Message
from locust.runners import Runner

from loadtest.locust.options import check
from loadtest.locust.participation import check_users
from loadtest.locust.run import Rank, TestRun
from loadtest.locust.trial import TrialOrder, run_trial
from loadtest.locust.users import LoadUser

# The messages between the processes. The master sends RANK, STOP and TRIAL, a worker the others.
RANK, STOP, REPORT, GIVE_UP, TRIAL, TRIAL_REPORT = (
    f"loadtest_{message}" for message in ("rank", "stop", "report", "give_up", "trial", "trial_report")
)


class TestProcess:
    """What all processes have in common."""

    def __init__(self, environment: Environment, runner: Runner) -> None:
        self.environment = environment
        self.runner: Any = runner  # of one of three classes, which have little in common
        self.run: TestRun | None = None
        self.rank: Rank | None = Rank(0, 1)

    def listen(self) -> None:
        """Listen to Locust's events, and to messages of other processes."""
        events = self.environment.events
        events.test_start.add_listener(self._on_start)
        events.test_stopping.add_listener(self._on_stopping)
        events.test_stop.add_listener(self._on_stop)
        self.runner.register_message(TRIAL, lambda msg, **_: self._start_trial(msg.data))

    def give_up(self, reason: str) -> None:
        """End the run for this reason, which is logged once."""
        raise NotImplementedError

    def end(self, run: TestRun) -> None:
        """The run is over, and its users have stopped."""
        raise NotImplementedError

    def _on_start(self, **_: object) -> None:
        users = [user for user in self.environment.user_classes if issubclass(user, LoadUser)]
        options: Any = self.environment.parsed_options
        most_bytes = min((user.max_message_bytes for user in users), default=inf)
        error = check(options, most_bytes) or check_users(users, options)
        if self.rank is None:
            error = "this worker joined after the run had begun: start the run again"
        self.run = LoadUser.this_run = TestRun(self.environment, self.rank or Rank(0, 1), self.give_up)
        if error:
            self.run.fail("", "options", ValueError(error))

    def _start_trial(self, order: TrialOrder) -> None:
        if self.run:
            trial = gevent.spawn(run_trial, self.run, order)
            trial.link_value(lambda trial: self.runner.send_message(TRIAL_REPORT, trial.value))
            trial.link_exception(lambda trial: self.give_up(f"a trial has failed: {trial.exception}"))

    def _on_stopping(self, **_: object) -> None:
        if self.run:
            self.run.stop_measuring()

    def _on_stop(self, **_: object) -> None:
        if self.run:
            run, self.run = self.run, None
            # Locust does not wait for users that were already stopping
            self.runner.user_greenlets.join(timeout=2 * run.options.drain + 1)
            try:
                run.after_users()
            finally:
                self.end(run)


class Worker(TestProcess):
    """Has users, and reports to the master."""

    def listen(self) -> None:
        super().listen()
        self.rank = None  # until the master sends it
        self.run_number = -1
        self.runner.register_message(RANK, self._on_rank)
        self.runner.register_message(STOP, lambda **_: self.runner.stop())
        # report to the master before it hears that this worker quits
        self.environment.events.quitting.add_listener(lambda **_: self.runner.stop())

    def give_up(self, reason: str) -> None:
        self.runner.send_message(GIVE_UP, reason)

    def end(self, run: TestRun) -> None:
        self.runner.send_message(REPORT, {"run": self.run_number, "report": run.end()})
        self.rank = None

    def _on_rank(self, msg: Message, **_: object) -> None:
        self.run_number = msg.data["run"]
        self.rank = Rank(*msg.data["rank"])
