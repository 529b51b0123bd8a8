"""Past chats and mailboxes, as a server sees them while it runs: batches go in, mail and history come out."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import TypeAlias, TypeVar

import gevent

from chatserver.counters import Counters
from chatserver.messages.batch import Batch, Sender
from chatserver.messages.commits import CommitQueue
from chatstorage.chats import ChatRow, Chats, messages
from chatstorage.interface import StorageUnavailable
from protocol import Run, first_messages

MAIL_BYTES = 64 * 1024  # read from a mailbox at once
MAIL_SECONDS = 10.0  # a login waits so long for a mailbox that cannot be read
MAIL_RETRY_SECONDS = 0.25  # between two attempts meanwhile
SETTLE_SECONDS = 0.01  # between two checks whether an ended connection has settled its batches

T = TypeVar("T")
Mail: TypeAlias = tuple[Batch, Sequence[bytes]]  # what waits of a batch, message by message


class Archive(ABC):
    """The chats of one server: alone, or as a node of a group."""

    @abstractmethod
    def wait_for_room(self) -> bool:
        """Wait while too much waits to be written; False at once if nothing can be written now."""

    @abstractmethod
    def has_room(self) -> bool:
        """Whether wait_for_room() would return True at once."""

    @abstractmethod
    def add(self, batch: Batch) -> None:
        """Keep a new batch, which gets its id. Never waits; call wait_for_room() before."""

    @abstractmethod
    def settled(self, batch: Batch) -> None:
        """Nothing of this batch is in flight any more. Never waits."""

    @abstractmethod
    def put_in_mailbox(self, sender: Sender, receiver: int, run: Run, first: int) -> int:
        """Put a run's Messages into an offline user's mailbox; returns how many of the first ones fit.

        `first` is the number of the first Message on the sender's connection. Raises KeyError if one of the two users
        has been removed meanwhile, and StorageUnavailable.
        """

    @abstractmethod
    def has_mail(self, receiver: int) -> bool:
        """Whether something may wait for this user, now or when an ended connection settles its batches."""

    @abstractmethod
    def take_mail(
        self, receiver: int, goes_on: Callable[[], bool], batch_again: Callable[[ChatRow], Batch]
    ) -> Iterator[Mail]:
        """What waits for this user, oldest first, as long as it `goes_on`. Each batch taken is on its way again.

        `batch_again` makes the batch of a row. Raises StorageUnavailable.
        """

    @abstractmethod
    def last(self, one: int, other: int, count: int) -> Sequence[ChatRow]:
        """As Chats.last, including what was handed over just now, if it can be written. Raises StorageUnavailable."""

    @abstractmethod
    def waiting_messages(self) -> int:
        """How many messages wait in all mailboxes. Raises StorageUnavailable."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left."""


class LocalArchive(Archive):
    """The archive of a lone server. `mail` is how many Messages wait in each mailbox, by its owner's id."""

    def __init__(
        self,
        chats: Chats,
        queue: CommitQueue,
        counters: Counters,
        mailbox_messages: int,
        patience: float = MAIL_SECONDS,
    ) -> None:
        """`queue` writes to `chats`; `mailbox_messages` may wait for one user. `patience`: see patiently()."""
        self.mail = Counter(chats.mailbox_sizes())
        self._chats = chats
        self._queue = queue
        self._counters = counters
        self._mailbox_messages = mailbox_messages
        self._patience = patience

    def wait_for_room(self) -> bool:
        return self._queue.wait_for_room()

    def has_room(self) -> bool:
        return self._queue.has_room()

    def add(self, batch: Batch) -> None:
        self._queue.add(batch)

    def settled(self, batch: Batch) -> None:
        if batch.owed:
            self.mail[batch.receiver] += batch.waiting
            self._queue.settled(batch)

    def put_in_mailbox(self, sender: Sender, receiver: int, run: Run, first: int) -> int:
        room = max(0, self._mailbox_messages - self.mail[receiver])
        fitting = first_messages(run, room)
        if fitting.messages:
            batch = Batch(
                sender.user_id,
                receiver,
                *fitting,
                self._counters,
                self.settled,
                owed=True,
                receipts=sender.receipts,
                first=first,
            )
            self.add(batch)
            batch.dropped(batch.count)
        return fitting.messages

    def has_mail(self, receiver: int) -> bool:
        return self.mail[receiver] > 0 or self._queue.has_in_flight(receiver)

    def take_mail(
        self, receiver: int, goes_on: Callable[[], bool], batch_again: Callable[[ChatRow], Batch]
    ) -> Iterator[Mail]:
        wait_until_settled(self._queue, receiver, goes_on)
        after = 0
        while self.mail[receiver] > 0 and goes_on() and (rows := self._next_mail(receiver, after)):
            for batch, waiting in waiting_mail(self._queue, rows, goes_on, batch_again):
                self.mail[receiver] -= len(waiting)
                yield batch, waiting
            after = rows[-1].id

    def _next_mail(self, receiver: int, after: int) -> Sequence[ChatRow]:
        """Some of the mail with ids above `after`: from the database or, while nothing can be written, from memory."""
        rows = patiently(lambda: self._queue.read(self._chats.mailbox, receiver, after, MAIL_BYTES), self._patience)
        return rows or [*self._queue.new_for(receiver, after)]

    def last(self, one: int, other: int, count: int) -> Sequence[ChatRow]:
        return self._queue.read(self._chats.last, one, other, count)

    def waiting_messages(self) -> int:
        return sum(self.mail.values())

    def close(self) -> None:
        self._queue.close()


def patiently(read: Callable[[], T], seconds: float = MAIL_SECONDS) -> T:
    """What this reads, as soon as that is possible. Raises StorageUnavailable after so many seconds."""
    deadline = monotonic() + seconds
    while True:
        try:
            return read()
        except StorageUnavailable:
            if monotonic() >= deadline:
                raise
        gevent.sleep(MAIL_RETRY_SECONDS)


def wait_until_settled(queue: CommitQueue, receiver: int, goes_on: Callable[[], bool]) -> None:
    """Wait, as long as it `goes_on`, until no ended connection holds batches for this user any more."""
    while queue.has_in_flight(receiver) and goes_on():
        gevent.sleep(SETTLE_SECONDS)


def waiting_mail(
    queue: CommitQueue,
    rows: Sequence[ChatRow],
    goes_on: Callable[[], bool],
    batch_again: Callable[[ChatRow], Batch],
) -> Iterator[Mail]:
    """The mail in these rows, as long as it `goes_on`; each batch is in flight again when it is yielded."""
    for row in rows:
        batch = queue.find(row.id) or batch_again(row)
        if batch.waiting and goes_on():
            waiting = messages(row)[-batch.waiting :]
            queue.take_up(batch)
            yield batch, waiting
