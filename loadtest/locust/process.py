"""One process of a test and what it exchanges with the others: places in, reports out, the verdict at the end.

Locust's own reports come too late for a verdict: a run that ends by itself leaves workers half a second for all that is
still under way. So the master asks them to stop, and waits for a report of its own from each.
"""

import logging
import signal
import sys
from itertools import count
from math import inf
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.event import Events
from locust.rpc import Message
from locust.runners import STATE_CLEANUP, STATE_MISSING, STATE_STOPPING, MasterRunner, Runner, WorkerRunner

from loadtest.core.capacity import Certificate
from loadtest.core.verdict import Status
from loadtest.locust import participation as crew
from loadtest.locust.options import check
from loadtest.locust.outcome import Outcome
from loadtest.locust.run import Place, ProcessReport, Run
from loadtest.locust.trial import TrialOrder, TrialReport, attempt
from loadtest.locust.users import LoadUser

MESSAGES = ("place", "stop", "report", "give_up", "trial", "tried")
PLACE, STOP, REPORT, GIVE_UP, TRIAL, TRIED = (f"loadtest_{message}" for message in MESSAGES)
REPORT_SECONDS = 10.0  # for a worker's report, besides the time to drain
JUDGE_SECONDS = 80.0  # the most that a run takes to end, besides the time to drain

logger = logging.getLogger(__name__)
coordinators: "WeakKeyDictionary[Environment, Coordinator]" = WeakKeyDictionary()


def listen(events: Events) -> None:
    """Be there when Locust starts."""
    events.init.add_listener(_begin)


def _begin(environment: Environment, runner: Runner, **_: object) -> None:
    _interrupt_main(signal.SIGINT)
    if environment.shape_class and environment.parsed_options and environment.parsed_options.headless:
        # while the shape lasts, Locust does not listen to SIGTERM
        _interrupt_main(signal.SIGTERM)
    if isinstance(runner, WorkerRunner):
        Worker(environment, runner).listen()
    else:
        crew.choose(environment)
        coordinators[environment] = Coordinator(environment, runner)
        coordinators[environment].listen()


def _interrupt_main(signum: int) -> None:
    """Have this signal interrupt the main greenlet, and not whichever runs just then: a user would end without leaving.

    The second time it ends the process at once.
    """
    main = gevent.getcurrent()

    def interrupt() -> None:
        watcher.cancel()
        signal.signal(signum, signal.SIG_DFL)
        gevent.kill(main, KeyboardInterrupt)

    watcher = gevent.signal_handler(signum, interrupt)


class TestProcess:
    """What all processes have in common."""

    def __init__(self, environment: Environment, runner: Runner) -> None:
        self.environment = environment
        self.runner: Any = runner  # of one of three classes, which share little
        self.run: Run | None = None
        self.place: Place | None = Place(0, 1)

    def listen(self) -> None:
        events = self.environment.events
        events.test_start.add_listener(self._on_start)
        events.test_stopping.add_listener(self._on_stopping)
        events.test_stop.add_listener(self._on_stop)
        self.runner.register_message(TRIAL, lambda msg, **_: self._try(msg.data))

    def give_up(self, reason: str) -> None:
        """End the run, because of what is wrong with it; said once."""
        raise NotImplementedError

    def end(self, run: Run) -> None:
        """The run is over, its users have stopped."""
        raise NotImplementedError

    def _on_start(self, **_: object) -> None:
        users = [user for user in self.environment.user_classes if issubclass(user, LoadUser)]
        options: Any = self.environment.parsed_options
        most_bytes = min((user.max_message_bytes for user in users), default=inf)
        error = check(options, most_bytes) or crew.check(users, options)
        if self.place is None:
            error = "a worker came after the run had begun: begin it anew"
        self.run = LoadUser.this_run = Run(self.environment, self.place or Place(0, 1), self.give_up)
        if error:
            self.run.fail("", "options", ValueError(error))

    def _try(self, order: TrialOrder) -> None:
        if self.run:
            trial = gevent.spawn(attempt, self.run, order)
            trial.link_value(lambda trial: self.runner.send_message(TRIED, trial.value))
            trial.link_exception(lambda trial: self.give_up(f"a trial has failed: {trial.exception}"))

    def _on_stopping(self, **_: object) -> None:
        if self.run:
            self.run.stopping()

    def _on_stop(self, **_: object) -> None:
        if self.run:
            run, self.run = self.run, None
            # Locust does not wait for users that were being stopped already
            self.runner.user_greenlets.join(timeout=2 * run.options.drain + 1)
            try:
                run.at_end()
            finally:
                self.end(run)


class Worker(TestProcess):
    """Has users, and reports to the master."""

    def listen(self) -> None:
        super().listen()
        self.place = None  # until the master tells
        self.run_number = -1
        self.runner.register_message(PLACE, self._on_place)
        self.runner.register_message(STOP, lambda **_: self.runner.stop())
        self.environment.events.quitting.add_listener(lambda **_: self.runner.stop())  # before it tells the master

    def give_up(self, reason: str) -> None:
        self.runner.send_message(GIVE_UP, reason)

    def end(self, run: Run) -> None:
        self.runner.send_message(REPORT, {"run": self.run_number, "report": run.end()})
        self.place = None

    def _on_place(self, msg: Message, **_: object) -> None:
        self.run_number = msg.data["run"]
        self.place = Place(*msg.data["place"])


class Coordinator(TestProcess):
    """The master, or the only process: gathers the reports, and gives the verdict."""

    def __init__(self, environment: Environment, runner: Runner) -> None:
        super().__init__(environment, runner)
        options = environment.parsed_options
        self._headless = bool(options and options.headless)
        self._runs = count()
        self._run_number = -1
        self._trials = count()
        self._given_up = False
        self._workers: list[str] = []
        self._reports: dict[str, ProcessReport] = {}  # by worker
        self._tried: list[TrialReport] = []
        self._judged = Event()
        self._judged.set()
        self._is_printed = False
        self._is_written = True
        self._outcome: Outcome | None = None
        self.certificate: Certificate | None = None  # of a search for the capacity

    def listen(self) -> None:
        super().listen()
        self.runner.register_message(TRIED, lambda msg, **_: self._tried.append(msg.data))
        self.runner.register_message(REPORT, self._on_report)
        self.runner.register_message(GIVE_UP, lambda msg, **_: self.give_up(msg.data))
        self.environment.events.quitting.add_listener(self._on_quitting)
        self.environment.events.quit.add_listener(self._on_quit)

    def give_up(self, reason: str) -> None:
        if not self._given_up:
            self._given_up = True
            logger.error(reason)
            gevent.spawn(self.runner.quit if self._headless else self.runner.stop)

    def end(self, run: Run) -> None:
        try:
            self._judge(run)
        finally:
            self._judged.set()
        if self._headless:  # whatever has ended the run
            gevent.spawn(self.runner.quit)

    def _judge(self, run: Run) -> None:
        self._gather(3 * run.options.drain + REPORT_SECONDS)
        exceptions = sum(exception["count"] for exception in self.runner.exceptions.values())
        missing = sum(worker not in self._reports for worker in self._workers)
        reports = [*self._reports.values(), run.end()]
        self._outcome = Outcome(reports, exceptions, missing, self._given_up, run.options, self.certificate)
        for finding in self._outcome.balance.findings():
            self.runner.stats.log_error("", "ledger", finding)
        self._is_written = self._outcome.write(run.options)
        if not self._headless:  # the page goes on, and shows the log
            logger.info("the run has ended\n%s", self._outcome)

    def _on_start(self, **_: object) -> None:
        self._judged.clear()
        self._outcome = self.certificate = None
        self._given_up = False
        self._run_number = next(self._runs)
        self._reports.clear()
        self._tried.clear()
        if isinstance(self.runner, MasterRunner):
            clients = self.runner.clients
            self._workers = [client.id for client in clients.ready + clients.running + clients.spawning]
            for rank, worker in enumerate(self._workers):
                place = {"run": self._run_number, "place": Place(rank, len(self._workers))}
                self.runner.send_message(PLACE, place, client_id=worker)
        super()._on_start()

    @property
    def processes(self) -> int:
        """How many processes have users."""
        return len(self._workers) or 1

    def order(self, rate: float, seconds: float) -> int:
        """Have each user write at this rate for some seconds; the number of the trial."""
        number = next(self._trials)
        self.runner.send_message(TRIAL, TrialOrder(number=number, rate=rate, seconds=seconds))
        return number

    def tried(self, number: int) -> list[TrialReport]:
        """The reports of this trial, once all are here; before that, none."""
        reports = [report for report in self._tried if report["number"] == number]
        return reports if len(reports) == self.processes else []

    def _on_report(self, msg: Message, **_: object) -> None:
        if msg.data["run"] == self._run_number:
            self._reports[msg.node_id] = msg.data["report"]

    def _gather(self, seconds: float) -> None:
        """Ask the workers to stop, and wait for the reports of those that are still there."""
        deadline = monotonic() + seconds
        if self._workers:
            self.runner.send_message(STOP)
        while any(map(self._is_awaited, self._workers)) and monotonic() < deadline:
            gevent.sleep(0.05)

    def _is_awaited(self, worker: str) -> bool:
        client = self.runner.clients.get(worker)
        return worker not in self._reports and client is not None and client.state != STATE_MISSING

    def _on_quitting(self, **_: object) -> None:
        if self.run and self.runner.state not in (STATE_CLEANUP, STATE_STOPPING):
            self.runner.quit()
        options = self.environment.parsed_options
        self._judged.wait(4 * (options.drain if options else 0) + JUDGE_SECONDS)  # another greenlet may be at it
        if self._run_number < 0:
            return
        status = self._outcome.verdict.status if self._outcome else Status.FAILED
        self.environment.process_exit_code = (status if self._is_written else status or Status.FAILED).value

    def _on_quit(self, **_: object) -> None:
        options = self.environment.parsed_options
        if self._outcome and self._headless and not self._is_printed:
            self._is_printed = True
            print(f"\n{self._outcome}", file=sys.stderr if options and options.json else sys.stdout, flush=True)
