"""The master, or the only process of a load test: it gathers the reports, and gives the verdict."""

import logging
import sys
from itertools import count
from time import monotonic
from weakref import WeakKeyDictionary

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.rpc import Message
from locust.runners import STATE_CLEANUP, STATE_MISSING, STATE_STOPPING, MasterRunner, Runner

from loadtest.core.capacity import Certificate
from loadtest.core.verdict import Status
from loadtest.locust.outcome import Outcome
from loadtest.locust.process import GIVE_UP, RANK, REPORT, STOP, TRIAL, TRIAL_REPORT, TestProcess
from loadtest.locust.run import ProcessReport, Rank, TestRun
from loadtest.locust.trial import TrialOrder, TrialReport

REPORT_SECONDS = 10.0  # how long to wait for a worker's report, besides the time to drain
OUTCOME_SECONDS = 80.0  # how long the end of a run may take, besides the time to drain

logger = logging.getLogger(__name__)
coordinators: "WeakKeyDictionary[Environment, Coordinator]" = WeakKeyDictionary()


class Coordinator(TestProcess):
    """Numbers the workers, orders trials, gathers the reports, and gives the verdict."""

    def __init__(self, environment: Environment, runner: Runner) -> None:
        super().__init__(environment, runner)
        options = environment.parsed_options
        self._headless = bool(options and options.headless)
        self._run_numbers = count()
        self._run_number = -1
        self._trial_numbers = count()
        self._given_up = False
        self._workers: list[str] = []
        self._reports: dict[str, ProcessReport] = {}  # by worker
        self._trial_reports: list[TrialReport] = []
        self._has_outcome = Event()
        self._has_outcome.set()
        self._is_printed = False
        self._is_written = True
        self._outcome: Outcome | None = None
        self.certificate: Certificate | None = None  # of a search for the capacity

    def listen(self) -> None:
        super().listen()
        self.runner.register_message(TRIAL_REPORT, lambda msg, **_: self._trial_reports.append(msg.data))
        self.runner.register_message(REPORT, self._on_report)
        self.runner.register_message(GIVE_UP, lambda msg, **_: self.give_up(msg.data))
        self.environment.events.quitting.add_listener(self._on_quitting)
        self.environment.events.quit.add_listener(self._on_quit)

    def give_up(self, reason: str) -> None:
        if not self._given_up:
            self._given_up = True
            logger.error(reason)
            gevent.spawn(self.runner.quit if self._headless else self.runner.stop)

    def end(self, run: TestRun) -> None:
        try:
            self._conclude(run)
        finally:
            self._has_outcome.set()
        if self._headless:  # whatever has ended the run
            gevent.spawn(self.runner.quit)

    # Trials

    @property
    def processes(self) -> int:
        """How many processes have users."""
        return len(self._workers) or 1

    def order_trial(self, rate: float, seconds: float) -> int:
        """Have each user send at this rate (messages a second) for some seconds. Returns the number of the trial."""
        number = next(self._trial_numbers)
        self.runner.send_message(TRIAL, TrialOrder(number=number, rate=rate, seconds=seconds))
        return number

    def trial_reports(self, number: int) -> list[TrialReport]:
        """Return the reports of this trial when all are here; until then an empty list."""
        reports = [report for report in self._trial_reports if report["number"] == number]
        return reports if len(reports) == self.processes else []

    # The outcome

    def _conclude(self, run: TestRun) -> None:
        self._gather(3 * run.options.drain + REPORT_SECONDS)
        exceptions = sum(exception["count"] for exception in self.runner.exceptions.values())
        missing = sum(worker not in self._reports for worker in self._workers)
        reports = [*self._reports.values(), run.end()]
        self._outcome = Outcome(reports, exceptions, missing, self._given_up, run.options, self.certificate)
        for finding in self._outcome.balance.findings():
            self.runner.stats.log_error("", "ledger", finding)
        self._is_written = self._outcome.write(run.options)
        if not self._headless:  # the web page goes on, and shows the log
            logger.info("the run has ended\n%s", self._outcome)

    def _gather(self, seconds: float) -> None:
        """Ask the workers to stop, and wait at most so long for the reports of those that still answer."""
        deadline = monotonic() + seconds
        if self._workers:
            self.runner.send_message(STOP)
        while any(map(self._is_awaited, self._workers)) and monotonic() < deadline:
            gevent.sleep(0.05)

    def _is_awaited(self, worker: str) -> bool:
        client = self.runner.clients.get(worker)
        return worker not in self._reports and client is not None and client.state != STATE_MISSING

    # Events

    def _on_start(self, **_: object) -> None:
        self._has_outcome.clear()
        self._outcome = self.certificate = None
        self._given_up = False
        self._run_number = next(self._run_numbers)
        self._reports.clear()
        self._trial_reports.clear()
        if isinstance(self.runner, MasterRunner):
            clients = self.runner.clients
            self._workers = [client.id for client in clients.ready + clients.running + clients.spawning]
            for number, worker in enumerate(self._workers):
                message = {"run": self._run_number, "rank": Rank(number, len(self._workers))}
                self.runner.send_message(RANK, message, client_id=worker)
        super()._on_start()

    def _on_report(self, msg: Message, **_: object) -> None:
        if msg.data["run"] == self._run_number:
            self._reports[msg.node_id] = msg.data["report"]

    def _on_quitting(self, **_: object) -> None:
        if self.run and self.runner.state not in (STATE_CLEANUP, STATE_STOPPING):
            self.runner.quit()
        options = self.environment.parsed_options
        # another greenlet may be concluding the run
        self._has_outcome.wait(4 * (options.drain if options else 0) + OUTCOME_SECONDS)
        if self._run_number < 0:
            return
        status = self._outcome.verdict.status if self._outcome else Status.FAILED
        self.environment.process_exit_code = (status if self._is_written else status or Status.FAILED).value

    def _on_quit(self, **_: object) -> None:
        options = self.environment.parsed_options
        if self._outcome and self._headless and not self._is_printed:
            self._is_printed = True
            print(f"\n{self._outcome}", file=sys.stderr if options and options.json else sys.stdout, flush=True)
