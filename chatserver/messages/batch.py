"""A run of Messages from one sender to one receiver, on its way.

Its life: handed over; in the archive, on disk with the next commit; delivered, or what is left of it dropped when the
receiver's connection ends. Then it is settled. If it is owed, what was dropped is the receiver's mail: at the next
login it is on its way again, until it is settled for good.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from chatserver.counters import Counters
from chatserver.transport.receipts import Receipts
from protocol import Level, Run, first_messages


@dataclass(slots=True, eq=False)
class Batch:
    """Messages that were handed over together, as their receiver gets them, and what becomes of them (a Fate).

    Either each is one packet, or there is one of several. `owed`: what cannot be delivered is for the mailbox.
    """

    sender: int
    receiver: int
    packets: bytes
    count: int
    counters: Counters
    on_settled: Callable[["Batch"], None]  # nobody delivers or drops anything of it any more
    owed: bool = False
    receipts: Receipts | None = None  # who sent it wants to know
    first: int = 0  # number of its first Message, of those that the sender's connection has sent; from 1
    is_again: bool = False  # it comes out of a mailbox
    id: int = 0  # in the archive
    written: int | None = None  # how many wait in the mailbox, by what is on disk; None: it is not there yet
    time: int = field(default_factory=lambda: int(time.time()))
    delivered_count: int = 0
    dropped_count: int = 0  # since it was on its way the last time

    @property
    def waiting(self) -> int:
        """How many of its last Messages are for the mailbox, as far as is known now."""
        return self.count - self.delivered_count if self.owed else 0

    def delivered(self, count: int) -> None:
        """As in Fate."""
        if self.is_again:
            self.counters.mailbox_delivered += count
        else:
            self.counters.messages_delivered += count
        if self.receipts:
            first = self.first + self.delivered_count
            self.receipts.reach(Level.DELIVERED, first, first + count - 1)
        self.delivered_count += count
        self._settle()

    def dropped(self, count: int) -> None:
        """As in Fate."""
        if not self.owed:
            self.counters.messages_undeliverable += count
        elif not self.is_again:
            self.counters.messages_mailed += count
        self.dropped_count += count
        self._settle()

    def keep(self, count: int) -> None:
        """Only so many of its first Messages were taken; the others were refused."""
        self.packets, self.count = first_messages(Run(self.packets, self.count), count)
        self._settle()

    def stored(self) -> None:
        """All of it is durable on disk, and need not be kept here."""
        self.packets = b""
        self.counters.messages_stored += self.count
        if self.receipts and self.count:
            self.receipts.reach(Level.STORED, self.first, self.first + self.count - 1)

    def go_again(self) -> None:
        """What waits of it is on its way once more."""
        self.is_again = True
        self.dropped_count = 0

    def _settle(self) -> None:
        if self.delivered_count + self.dropped_count == self.count:
            self.on_settled(self)
