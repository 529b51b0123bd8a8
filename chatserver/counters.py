"""Plain integers, counted where something happens and read by metrics.py; all since the server started."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

from protocol import Reason

LATENCY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)  # seconds


@dataclass(slots=True)
class Latency:
    """A histogram of durations: a count for each of LATENCY_BOUNDS, and one for longer durations."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    seconds: float = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Record the time that the block takes, also when it raises."""
        begin = perf_counter()
        try:
            yield
        finally:
            taken = perf_counter() - begin
            self.counts[bisect_left(LATENCY_BOUNDS, taken)] += 1
            self.seconds += taken


@dataclass(slots=True)
class Counters:
    """Counters only grow. Every accepted Message is delivered, refused, mailed, handed on, undeliverable or in flight.

    A Counters is also the Fate (transport/marks.py) of Messages that need no other.
    """

    connections: int = 0
    sign_ups: int = 0
    logins: int = 0
    login_failures: Counter[Reason] = field(default_factory=Counter)
    exposed_passwords: int = 0  # that came unencrypted over a network
    messages_accepted: int = 0  # read from a client, well-formed
    messages_refused: Counter[Reason] = field(default_factory=Counter)  # answered with an Error
    messages_delivered: int = 0  # the kernel has them, for the receiver
    messages_undeliverable: int = 0  # queued for a receiver whose connection ended first
    messages_mailed: int = 0  # put in a mailbox: the receiver was offline, or disconnected before delivery
    mailbox_delivered: int = 0  # from a mailbox: the kernel has them, for the receiver
    messages_stored: int = 0  # durable on disk
    messages_handed_on: int = 0  # to other nodes of a group, which have accepted them
    messages_taken_on: int = 0  # accepted from other nodes
    bytes_received: int = 0
    bytes_sent: int = 0
    disconnects: Counter[str] = field(default_factory=Counter)  # by outcome, as in the log
    delays: int = 0  # how often a client over its --rate was throttled
    storage: Latency = field(default_factory=Latency)  # of a write to the user table, including the wait for its turn
    commits: Latency = field(default_factory=Latency)  # of chats to disk

    @property
    def messages_in_flight(self) -> int:
        """Accepted Messages whose fate is still open."""
        settled = self.messages_delivered + self.messages_undeliverable + self.messages_mailed + self.messages_handed_on
        return self.messages_accepted + self.messages_taken_on - settled - self.messages_refused.total()

    def delivered(self, count: int) -> None:
        """As in Fate."""
        self.messages_delivered += count

    def dropped(self, count: int) -> None:
        """As in Fate."""
        self.messages_undeliverable += count
