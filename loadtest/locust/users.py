"""What Locust users of any protocol share: a name, rows in the statistics, and a schedule."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, perf_counter
from typing import ClassVar

import gevent
from gevent import GreenletExit
from locust import User

from loadtest.core.pair import CameAgain, FaultFound
from loadtest.core.schedule import Schedule
from loadtest.locust.run import DELIVER, REPEATED, Pace, Run
from loadtest.locust.wakeup import Wakeup

LOOK_SECONDS = 0.5  # how soon a user notices that the pace has changed
NOTABLE_SECONDS = 1.0  # of waiting in vain when a run ends
DRAIN_LOOK_SECONDS = 0.01  # between two looks whether all has arrived


class Stopwatch:
    """Seconds since it was made, until it is stopped."""

    def __init__(self) -> None:
        self._begin = perf_counter()
        self._end: float | None = None

    def stop(self) -> None:
        self._end = perf_counter()

    def read(self) -> float:
        return (self._end or perf_counter()) - self._begin


class LoadUser(User):
    """A user with a name of its own in this run, and a number in this process. What comes in and leaves is up to it."""

    abstract = True
    protocol: ClassVar[str]  # what the statistics show as the type of a request
    max_message_bytes: ClassVar[int]  # of text that one message takes
    this_run: ClassVar[Run]  # shared by the users of a process

    number = -1  # until the user starts
    name = ""
    is_online = False
    _was_online = False

    @classmethod
    def check(cls, _: Namespace) -> str:
        """What is wrong with these options where they are its own; "" if nothing is. The web page may set anything."""
        return ""

    @classmethod
    def objection(cls, _: Namespace) -> str:
        """Why such users take no part in a run with these options; "" if they do."""
        return ""

    def come_in(self) -> None:
        """Connect, and all else until go_online()."""
        raise NotImplementedError

    def leave(self) -> None:
        """Disconnect in order, when nothing is under way any more; called when the user is online."""
        raise NotImplementedError

    def on_start(self) -> None:
        """Take part in the run under a name, unless the run has been given up."""
        if self.this_run.given_up:
            raise GreenletExit
        self.number = self.this_run.take_number()
        self.name = self.this_run.name(self.number)
        self.come_in()
        if not self._was_online:
            raise RuntimeError("come_in() has to call go_online(): the ledger excuses who is not online")

    def on_stop(self) -> None:
        """Also called where on_start() has not come to its end."""
        try:
            if self.is_online:
                self.leave()
        except Exception as error:
            self._count_exception(error)
            raise
        finally:
            if self.name:
                self.this_run.give_back(self.number)
                self.name = ""

    def go_online(self) -> None:
        """From now on others can reach us."""
        self.is_online = self._was_online = True
        self.this_run.ledger.come(self.name)

    def go_offline(self, in_order: bool = False) -> None:
        """What is still under way may arrive, or not; as in Ledger.end()."""
        self.is_online = False
        self.this_run.ledger.end(self.name, in_order)

    def report(self, row: str, seconds: float | None, error: Exception | None = None, size: int = 0) -> None:
        """Count a request in this row, of `size` bytes; without seconds it was not timed."""
        self.environment.events.request.fire(
            request_type=self.protocol,
            name=row,
            response_time=None if seconds is None else seconds * 1000,
            response_length=size,
            exception=error,
            context={},
        )

    @contextmanager
    def measured(self, row: str) -> Iterator[Stopwatch]:
        """Report how long the block took, or the Exception that left it, which goes on.

        A block that has waited for long when the run ends has failed, too: it would be seen nowhere else. One that
        judges what it has got stops the watch before.
        """
        watch = Stopwatch()
        try:
            yield watch
        except GreenletExit:
            self._report_wait(row, watch.read())
            raise
        except Exception as error:
            self.report(row, watch.read(), error)
            raise
        self.report(row, watch.read())

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """The same for connecting; but a failure ends the run as long as nobody has ever been connected."""
        begin = perf_counter()
        try:
            yield
        except GreenletExit:
            self._report_wait("connect", perf_counter() - begin)
            raise
        except Exception as error:
            if not self.this_run.reached:
                self.this_run.fail(self.protocol, "connect", error)
                raise GreenletExit from None
            self.report("connect", perf_counter() - begin, error)
            raise
        self.report("connect", perf_counter() - begin)
        self.this_run.reached = True

    def connection_lost(self, error: Exception) -> None:
        """The other side has ended the connection; nothing if we have left before."""
        if self.is_online:
            self.report("connection", None, error)
            self.go_offline()

    def spawn(self, function: Callable[..., object], *arguments: object) -> "gevent.Greenlet[..., object]":
        """Run this beside the tasks; an exception in it counts as one in a task."""
        greenlet = gevent.spawn(function, *arguments)
        greenlet.link_exception(self._on_exception)
        return greenlet

    def _on_exception(self, greenlet: "gevent.Greenlet[..., object]") -> None:
        self._count_exception(greenlet.exception)

    def _count_exception(self, error: BaseException | None) -> None:
        self.environment.events.user_error.fire(user_instance=self, exception=error, tb=error and error.__traceback__)

    def _report_wait(self, row: str, seconds: float) -> None:
        if seconds > NOTABLE_SECONDS:
            self.report(row, seconds, TimeoutError("no answer before the run ended"))

    # Messages, by the ledger

    def send_message(self, receiver: str, due: float, send: Callable[[str], object]) -> None:
        """Send `receiver` the message that was due at this moment of monotonic(), by send(text)."""
        text = self.this_run.ledger.send(self.name, receiver, due, self.this_run.options.message_size)
        try:
            send(text)
        except BaseException as error:  # whatever it is, a GreenletExit too: who knows whether the text went out
            self.this_run.ledger.doubt(self.name, receiver)
            if isinstance(error, Exception):
                self.report("send", None, error)
            raise
        self.report("send", None, size=len(text))

    def receive_message(self, sender: str, text: str) -> None:
        """A text has come, by all that is known from this user."""
        try:
            self.report(DELIVER, self.this_run.ledger.receive(sender, self.name, text), size=len(text))
        except FaultFound as fault:
            self.report(DELIVER, None, fault)
        except CameAgain:
            self.report(REPEATED, None, size=len(text))

    def message_refused(self, receiver: str, error: Exception) -> None:
        """We have been told that a message of ours will not arrive."""
        self.this_run.ledger.refuse(self.name, receiver)
        self.report(DELIVER, None, error)

    def drain(self) -> None:
        """Wait until all that is under way to us or from us has arrived, or should have."""
        deadline = monotonic() + self.this_run.options.drain
        while self.this_run.ledger.open(self.name) and monotonic() < deadline:
            gevent.sleep(DRAIN_LOOK_SECONDS)
        self.this_run.ledger.settle(self.name)


class PacedUser(LoadUser):
    """A user whose task sends one message each time take_due() gives a moment, at the pace of the run."""

    abstract = True
    _pace: Pace | None = None
    _schedule: Schedule

    def on_start(self) -> None:
        self._alarm = Wakeup()
        self.this_run.paced.add(self)
        super().on_start()

    def on_stop(self) -> None:
        try:
            super().on_stop()
        finally:
            self.this_run.paced.discard(self)
            self._alarm.close()

    def wait_time(self) -> float:
        """Wait here until the next message is due, or it is time to look at the pace again: Locust would come late."""
        self._alarm.wait_until(min(self._follow().due, monotonic() + LOOK_SECONDS))
        return 0.0

    def take_due(self) -> float | None:
        """The moment of monotonic() at which a message was due that has not been sent; None if there is none."""
        schedule = self._follow()
        return schedule.take() if schedule.is_due(monotonic()) else None

    def is_behind(self) -> bool:
        """Whether messages are due that have not been sent."""
        return self._follow().is_due(monotonic())

    def _follow(self) -> Schedule:
        if self._pace is not self.this_run.pace:
            is_new = self._pace is None
            self._pace = self.this_run.pace
            start = max(self._pace.start, monotonic()) if is_new else self._pace.start  # who was held up is late
            self._schedule = Schedule(self._pace.rate, start, self._pace.end)
        return self._schedule
