"""One process of a test and what it exchanges with the others: places in, reports out, the verdict at the end.

Locust's own reports come too late for a verdict: a run that ends by itself leaves workers half a second for all that is
still under way. So the master asks them to stop, and waits for a report of its own from each.
"""

import logging
import signal
import sys
from math import inf
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.event import Events
from locust.rpc import Message
from locust.runners import STATE_MISSING, MasterRunner, Runner, WorkerRunner

from loadtest.capacity import Certificate
from loadtest.verdict import Status
from locustload.options import check
from locustload.outcome import Outcome
from locustload.run import Place, Report, Run
from locustload.trial import TrialOrder, TrialReport, attempt
from locustload.users import LoadUser

MESSAGES = ("place", "stop", "report", "give_up", "trial", "tried")
PLACE, STOP, REPORT, GIVE_UP, TRIAL, TRIED = (f"loadtest_{message}" for message in MESSAGES)
REPORT_SECONDS = 10.0  # for a worker's report, besides the time to drain

logger = logging.getLogger(__name__)
judges: "WeakKeyDictionary[Environment, Judge]" = WeakKeyDictionary()


def listen(events: Events) -> None:
    """Be there when Locust starts."""
    events.init.add_listener(_begin)


def _begin(environment: Environment, runner: Runner, **_: object) -> None:
    _interrupt_main(signal.SIGINT)
    if environment.shape_class:  # while it lasts, Locust does not listen to SIGTERM
        _interrupt_main(signal.SIGTERM)
    if isinstance(runner, WorkerRunner):
        Worker(environment, runner).listen()
    else:
        _drop_users_without_tasks(environment)
        judges[environment] = Judge(environment, runner)
        judges[environment].listen()


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


def _drop_users_without_tasks(environment: Environment) -> None:
    """--tags leaves some users nothing to do; Locust would start them, and log a traceback for each."""
    environment._filter_tasks_by_tags()
    environment.user_classes = [user for user in environment.user_classes if user.tasks]
    if not environment.user_classes:
        sys.exit("no user has a task with these tags")


class Node:
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
        self.runner.register_message(TRIAL, lambda msg, **_: gevent.spawn(self._try, msg.data))

    def give_up(self, reason: str) -> None:
        """End the run, because of what is wrong with it; said once."""
        raise NotImplementedError

    def end(self, run: Run) -> None:
        """The run is over, its users have stopped."""
        raise NotImplementedError

    def _on_start(self, **_: object) -> None:
        users = [user for user in self.environment.user_classes if issubclass(user, LoadUser)]
        error = check(self.environment.parsed_options, min((user.max_message_bytes for user in users), default=inf))
        if self.place is None:
            error = "a worker came after the run had begun: begin it anew"
        self.run = LoadUser.this_run = Run(self.environment, self.place or Place(0, 1), self.give_up)
        if error:
            self.run.fail("", "options", ValueError(error))

    def _try(self, order: TrialOrder) -> None:
        if self.run:
            self.runner.send_message(TRIED, attempt(self.run, order))

    def _on_stopping(self, **_: object) -> None:
        if self.run:
            self.run.stopping()

    def _on_stop(self, **_: object) -> None:
        if self.run:
            run, self.run = self.run, None
            self.end(run)


class Worker(Node):
    """Has users, and reports to the master."""

    def listen(self) -> None:
        super().listen()
        self.place = None  # until the master tells
        self.runner.register_message(PLACE, self._on_place)
        self.runner.register_message(STOP, lambda **_: self.runner.stop())
        self.environment.events.quitting.add_listener(lambda **_: self.runner.stop())  # before it tells the master

    def give_up(self, reason: str) -> None:
        self.runner.send_message(GIVE_UP, reason)

    def end(self, run: Run) -> None:
        self.runner.send_message(REPORT, run.end())
        self.place = None

    def _on_place(self, msg: Message, **_: object) -> None:
        self.place = Place(**msg.data)


class Judge(Node):
    """The master, or the only process: gathers the reports, and gives the verdict."""

    def __init__(self, environment: Environment, runner: Runner) -> None:
        super().__init__(environment, runner)
        options = environment.parsed_options
        self._headless = bool(options and options.headless)
        self._given_up = False
        self._workers: list[str] = []
        self._reports: dict[str, Report] = {}  # by worker
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
        self._judged.clear()
        self._gather(run.options.drain + REPORT_SECONDS)
        exceptions = sum(exception["count"] for exception in self.runner.exceptions.values())
        missing = len(self._workers) - len(self._reports)
        reports = [*self._reports.values(), run.end()]
        self._outcome = Outcome(reports, exceptions, missing, run.options, self.certificate)
        for finding in self._outcome.balance.findings():
            self.runner.stats.log_error("", "ledger", finding)
        self._is_written = self._outcome.write(run.options)
        self._judged.set()
        if self._headless:  # whatever has ended the run
            gevent.spawn(self.runner.quit)
        else:  # the page goes on, and shows the log
            logger.info("the run has ended\n%s", self._outcome)

    def _on_start(self, **_: object) -> None:
        self._given_up = False
        self._reports.clear()
        self.certificate = None
        if isinstance(self.runner, MasterRunner):
            clients = self.runner.clients
            self._workers = [client.id for client in clients.ready + clients.running + clients.spawning]
            for rank, worker in enumerate(self._workers):
                place = {"rank": rank, "workers": len(self._workers)}
                self.runner.send_message(PLACE, place, client_id=worker)
        super()._on_start()

    @property
    def processes(self) -> int:
        """How many processes have users."""
        return len(self._workers) or 1

    def order(self, order: TrialOrder) -> None:
        """Have all users write at this rate for some seconds."""
        self.runner.send_message(TRIAL, order)

    def tried(self, number: int) -> list[TrialReport]:
        """The reports of this trial, once all are here; before that, none."""
        reports = [report for report in self._tried if report["number"] == number]
        return reports if len(reports) == self.processes else []

    def _on_report(self, msg: Message, **_: object) -> None:
        self._reports[msg.node_id] = msg.data

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
        if self.run:
            self.runner.quit()
        self._judged.wait()  # a signal and the end of a shape may both be on their way out
        if self._outcome:
            status = self._outcome.verdict.status
            self.environment.process_exit_code = (status if self._is_written else status or Status.FAILED).value

    def _on_quit(self, **_: object) -> None:
        options = self.environment.parsed_options
        if self._outcome and self._headless and not self._is_printed:
            self._is_printed = True
            print(f"\n{self._outcome}", file=sys.stderr if options and options.json else sys.stdout, flush=True)
