"""A batch: a run of Messages from one sender to one receiver, on its way.

Its life: it is handed over and added to the archive, whose next commit puts it on disk. It is delivered, or the rest of
it is dropped when the receiver's connection ends. Then it is settled. If it is owed, the dropped Messages are the
receiver's mail: at the next login the batch is on its way again, until it is settled for good.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from chatserver.counters import Counters
from chatserver.transport.turns import Turn
from protocol import Level, Run, first_messages


class ReceiptSink(Protocol):
    """Where receipts for the Messages of one connection go (section 7.2)."""

    connection: int  # identifies the connection; never 0

    def reach(self, level: Level, first: int, last: int) -> None:
        """Messages `first` to `last` have reached this level. Never waits."""


class Sender(Protocol):
    """The sender of a run: a member of this server or, in a group, a user of another node."""

    user_id: int

    @property
    def mails(self) -> bool:
        """Whether it may write to offline users."""

    @property
    def receipts(self) -> ReceiptSink | None:
        """Where its receipts go, if it asked for them."""

    @property
    def turn(self) -> Turn:
        """To wait in line for room in the receiver's outbox."""

    def wait_for_receipts(self) -> None:
        """Wait while it reads its receipts too slowly to get more."""


@dataclass(slots=True, eq=False)
class Batch:
    """Messages that were handed over together, as their receiver gets them; as a Fate it learns what becomes of them.

    Either each Message is one packet, or there is a single Message of several packets. `owed`: what cannot be delivered
    goes to the mailbox.
    """

    sender: int
    receiver: int
    packets: bytes
    count: int
    counters: Counters
    on_settled: Callable[["Batch"], None]  # called when nothing of it is in flight any more
    owed: bool = False
    receipts: ReceiptSink | None = None
    first: int = 0  # number of its first Message among those of the sender's connection; from 1
    is_again: bool = False  # it comes out of a mailbox
    id: int = 0  # in the archive
    written: int | None = None  # how many wait in the mailbox as of the last commit; None: not on disk yet
    time: int = field(default_factory=lambda: int(time.time()))
    delivered_count: int = 0
    dropped_count: int = 0  # since it was last on its way

    @property
    def waiting(self) -> int:
        """How many of its last Messages are for the mailbox, as far as is known now."""
        return self.count - self.delivered_count if self.owed else 0

    def delivered(self, count: int) -> None:
        """As Fate.delivered."""
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
        """As Fate.dropped."""
        if not self.owed:
            self.counters.messages_undeliverable += count
        elif not self.is_again:
            self.counters.messages_mailed += count
        self.dropped_count += count
        self._settle()

    def keep(self, count: int) -> None:
        """Only the first `count` Messages were taken; the others were refused."""
        self.packets, self.count = first_messages(Run(self.packets, self.count), count)
        self._settle()

    def stored(self) -> None:
        """All of it is durable on disk; free the packets."""
        self.packets = b""
        self.counters.messages_stored += self.count
        if self.receipts and self.count:
            self.receipts.reach(Level.STORED, self.first, self.first + self.count - 1)

    def go_again(self) -> None:
        """What waits in the mailbox is on its way once more."""
        self.is_again = True
        self.dropped_count = 0

    def _settle(self) -> None:
        if self.delivered_count + self.dropped_count == self.count:
            self.on_settled(self)
