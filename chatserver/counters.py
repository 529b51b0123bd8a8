"""What has happened since the server started, as plain integers: counted where it happens, read by metrics.py."""

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
    """How long something took, how often: a count for each of LATENCY_BOUNDS, and one for what was longer."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    seconds: float = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count the time that passes in the block, also when it fails."""
        begin = perf_counter()
        try:
            yield
        finally:
            taken = perf_counter() - begin
            self.counts[bisect_left(LATENCY_BOUNDS, taken)] += 1
            self.seconds += taken


@dataclass(slots=True)
class Counters:
    """Only ever counted up. Every accepted Message is delivered, refused, mailed, undeliverable, or still under way.

    It is the fate of a Message that nobody else asks for.
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
    messages_mailed: int = 0  # into a mailbox, as the receiver was not there, or not long enough
    mailbox_delivered: int = 0  # out of one: the kernel has them, for the receiver
    messages_stored: int = 0  # durable on disk
    messages_handed_on: int = 0  # to other nodes of a group, which have taken them
    messages_taken_on: int = 0  # from other nodes
    bytes_received: int = 0
    bytes_sent: int = 0
    disconnects: Counter[str] = field(default_factory=Counter)  # by what the log says
    delays: int = 0  # how often a client over its --rate was read later
    storage: Latency = field(default_factory=Latency)  # of a write, waiting for its turn included
    commits: Latency = field(default_factory=Latency)  # of chats

    @property
    def messages_under_way(self) -> int:
        """Accepted, and nothing has become of them yet."""
        settled = self.messages_delivered + self.messages_undeliverable + self.messages_mailed + self.messages_handed_on
        return self.messages_accepted + self.messages_taken_on - settled - self.messages_refused.total()

    def delivered(self, count: int) -> None:
        """As in Fate."""
        self.messages_delivered += count

    def dropped(self, count: int) -> None:
        """As in Fate."""
        self.messages_undeliverable += count
