"""Load for the chat server: `locust -f locustfiles/chat.py`, then open http://localhost:8089.

Each user logs in and writes to another one, or to itself when alone. Every text carries the time at which it was sent,
so `deliver` is what the receiver saw: from one client's send to the other's receive, by the clock of one machine.
"""

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import ClassVar

import gevent
from locust import User, constant_throughput, task
from locust.exception import StopUser

sys.path.append(str(Path(__file__).parent.parent))  # locust puts this folder on the path, not the one above

from client import ChatClient, ChatError, ConnectionClosed, ErrorReceived, MessageReceived, ServerError, parse_address

NAME_PREFIX = "load-"
FAILURES = (ChatError, TimeoutError, ValueError)  # ValueError: a host that is none
DRAIN_SECONDS = 0.5  # at the end: others may still be writing to us


class Chatter(User):
    """Logs in, chooses a partner, and writes ten messages a second."""

    host = "tcp://127.0.0.1:9034"
    wait_time = constant_throughput(10)
    names_taken: ClassVar[set[str]] = set()  # given back at the end, so that few users have to sign up

    name = ""  # until connected

    def come_in(self) -> None:
        """Not in on_start: Locust logs a traceback for whatever leaves that, a StopUser too."""
        try:
            with self.measured("connect"):
                self.client = ChatClient(*parse_address(self.host or ""))
        except FAILURES:
            raise StopUser from None
        self.name = next(name for number in count() if (name := f"{NAME_PREFIX}{number}") not in self.names_taken)
        self.names_taken.add(self.name)
        self.receiver = gevent.spawn(self.receive)
        self.or_stop("login", lambda: self.client.login(self.name))

    def on_stop(self) -> None:
        if not self.name:
            return
        with suppress(*FAILURES):
            self.client.ping()  # what was sent has been handled, and its Errors have arrived
            gevent.sleep(DRAIN_SECONDS)
        self.client.close()
        self.receiver.join()
        self.names_taken.discard(self.name)

    @task
    def write(self) -> None:
        if not self.name:
            self.come_in()
        if not self.client.partner_id:
            self.or_stop("chat init", self.choose_partner)
        try:
            self.client.send(str(time.time_ns()))
        except FAILURES as error:
            self.report("send", None, error)
            raise StopUser from None
        self.report("send", None)

    def or_stop(self, what: str, call: Callable[[], object]) -> None:
        """Measure a call; a user for whom it fails is of no more use."""
        try:
            with self.measured(what):
                call()
        except FAILURES:
            raise StopUser from None

    def choose_partner(self) -> None:
        online = self.client.refresh()
        others = [name for name in online if name.startswith(NAME_PREFIX) and name != self.name]
        self.client.chat(random.choice(others or [self.name]))

    def receive(self) -> None:
        """Until the connection ends: time what arrives, and count every Error."""
        try:
            while True:
                match self.client.receive(timeout=None):
                    case MessageReceived(_, text) if text.isdecimal():
                        self.report("deliver", (time.time_ns() - int(text)) / 1e6)
                    case MessageReceived(sender, _):
                        self.report("deliver", None, ValueError(f"a text from {sender} is not as it was sent"))
                    case ErrorReceived(reason):
                        self.report("refused", None, ServerError(reason))
        except ConnectionClosed as closing:
            if closing.reason:
                self.report("connection", None, closing)

    @contextmanager
    def measured(self, what: str) -> Iterator[None]:
        """Report how long the block took, in milliseconds, or why it failed."""
        begin = time.perf_counter()
        try:
            yield
        except FAILURES as error:
            self.report(what, (time.perf_counter() - begin) * 1e3, error)
            raise
        self.report(what, (time.perf_counter() - begin) * 1e3)

    def report(self, what: str, milliseconds: float | None, error: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type="chat", name=what, response_time=milliseconds, response_length=0, exception=error, context={}
        )
