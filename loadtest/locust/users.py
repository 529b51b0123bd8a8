"""What Locust users of any protocol share: a name, rows in the statistics, and messages in the ledger."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, perf_counter
from typing import ClassVar

import gevent
from gevent import GreenletExit
from locust import User

from loadtest.core.pair import AllowedRepeat, FaultFound
from loadtest.locust.run import DELIVER, REPEATED, TestRun

NOTABLE_SECONDS = 1.0  # a request that is still unanswered after so long when the run ends has failed
DRAIN_CHECK_SECONDS = 0.01  # between two checks whether everything has arrived


class Stopwatch:
    """Measures the seconds from its creation until it is stopped."""

    def __init__(self) -> None:
        self._begin = perf_counter()
        self._end: float | None = None

    def stop(self) -> None:
        self._end = perf_counter()

    def read(self) -> float:
        return (self._end or perf_counter()) - self._begin


class LoadUser(User):
    """A user with a unique name, and a number that is unique in its process. Subclasses implement the protocol."""

    abstract = True
    protocol: ClassVar[str]  # the type of request that the statistics show
    max_message_bytes: ClassVar[int]  # the longest text that one message takes
    this_run: ClassVar[TestRun]  # shared by the users of a process

    number = -1  # until the user starts
    name = ""
    is_online = False
    _was_online = False

    @classmethod
    def check(cls, _: Namespace) -> str:
        """Return what is wrong with the options that this class has added; "" if nothing is.

        The web page may set an option to anything.
        """
        return ""

    @classmethod
    def objection(cls, _: Namespace) -> str:
        """Return why users of this class take no part in a run with these options; "" if they do."""
        return ""

    def enter(self) -> None:
        """Connect, and do everything else up to a call of go_online()."""
        raise NotImplementedError

    def leave(self) -> None:
        """Disconnect in order, when nothing is in flight any more. Called only if the user is online."""
        raise NotImplementedError

    def on_start(self) -> None:
        """Take a name and enter, unless the run has been given up."""
        if self.this_run.given_up:
            raise GreenletExit
        self.number = self.this_run.take_number()
        self.name = self.this_run.name(self.number)
        self.enter()
        if not self._was_online:
            raise RuntimeError("enter() has to call go_online(): the ledger excuses what is lost while offline")

    def on_stop(self) -> None:
        """Leave. Also called if on_start() did not complete."""
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
        """From now on others can reach this user."""
        self.is_online = self._was_online = True
        self.this_run.online.add(self)
        self.this_run.ledger.connect(self.name)

    def go_offline(self, in_order: bool = False) -> None:
        """The connection has ended: what is still in flight may arrive, or not. `in_order`: see Ledger.disconnect()."""
        self.is_online = False
        self.this_run.online.discard(self)
        self.this_run.ledger.disconnect(self.name, in_order)

    # Requests, in the statistics

    def report(self, row: str, seconds: float | None, error: Exception | None = None, size: int = 0) -> None:
        """Count a request of `size` bytes in this row; without `seconds` it was not timed."""
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
        """Report how long the block took, and the Exception that left it, which is raised again.

        A block that the end of the run interrupts after NOTABLE_SECONDS has failed; otherwise no row would show it. A
        block that goes on to check the answer stops the watch first.
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
        """Like measured("connect"), but a failure ends the run if no user has ever been connected."""
        begin = perf_counter()
        try:
            yield
        except GreenletExit:
            self._report_wait("connect", perf_counter() - begin)
            raise
        except Exception as error:
            if not self.this_run.server_reached:
                self.this_run.fail(self.protocol, "connect", error)
                raise GreenletExit from None
            self.report("connect", perf_counter() - begin, error)
            raise
        self.report("connect", perf_counter() - begin)
        self.this_run.server_reached = True

    def connection_lost(self, error: Exception) -> None:
        """The other side has ended the connection. Does nothing if this user went offline before."""
        if self.is_online:
            self.report("connection", None, error)
            self.go_offline()

    def spawn(self, function: Callable[..., object], *arguments: object) -> "gevent.Greenlet[..., object]":
        """Run this function beside the tasks; an exception in it counts like one in a task."""
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

    # Messages, in the ledger

    def send_message(self, receiver: str, due: float, send: Callable[[str], object]) -> None:
        """Send `receiver` the message that was due at this moment of monotonic(), by calling send(text)."""
        text = self.this_run.ledger.send(self.name, receiver, due, self.this_run.options.message_size)
        try:
            send(text)
        except BaseException as error:  # also GreenletExit: it is unknown whether the text was sent
            self.this_run.ledger.doubt(self.name, receiver)
            if isinstance(error, Exception):
                self.report("send", None, error)
            raise
        self.report("send", None, size=len(text))

    def receive_message(self, sender: str, text: str) -> None:
        """A text has arrived, apparently from this user."""
        try:
            self.report(DELIVER, self.this_run.ledger.receive(sender, self.name, text), size=len(text))
        except FaultFound as fault:
            self.report(DELIVER, None, fault)
        except AllowedRepeat:
            self.report(REPEATED, None, size=len(text))

    def message_refused(self, receiver: str, error: Exception) -> None:
        """The server has said that a message of this user will not arrive."""
        self.this_run.ledger.refuse(self.name, receiver)
        self.report(DELIVER, None, error)

    def drain(self) -> None:
        """Wait until all messages to and from this user have arrived, or should have (--drain)."""
        deadline = monotonic() + self.this_run.options.drain
        while self.this_run.ledger.pending(self.name) and monotonic() < deadline:
            gevent.sleep(DRAIN_CHECK_SECONDS)
        self.this_run.ledger.settle(self.name)
