"""Chats on disk, off the loop: what was handed over together with much else is written with it, in one transaction.

One greenlet commits, in a thread; whoever reads commits first, so that it reads all there is. A batch is known here
from the moment it is handed over, and so is what its receiver still has to get.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import gevent
from gevent.event import Event
from gevent.lock import Semaphore

from chatserver.counters import Counters
from chatserver.messages.batch import Batch
from chatserver.workers import Workers
from chatstorage.chats import ChatRow, Chats, messages
from storage import StorageUnavailable

PENDING_BYTES = 4 * 1024 * 1024  # that wait to be written, before those who send are made to wait
BATCH_BYTES = 400  # what a batch takes besides its packets
MAIL_BYTES = 64 * 1024  # read from a mailbox at once
RETRY_SECONDS = 1.0  # while nothing can be written
LAST_TRIES = 3  # at the end of the server
SETTLE_SECONDS = 0.01  # between two looks whether a connection that has ended has let go of what was queued for it

T = TypeVar("T")
Mail = tuple[Batch, Sequence[bytes]]  # what waits of a batch, message by message

log = logging.getLogger("chat")


class Archive:
    """The chats of one server. `mail` is how many Messages wait in each mailbox, by its owner's id."""

    def __init__(self, file: Chats, counters: Counters, interval: float, mailbox_messages: int) -> None:
        """`interval`: seconds that a commit waits for more to come together; 0 is as soon as the one before is done."""
        self.is_failing = False  # the last commit was in vain
        self.mail = Counter(file.mailbox_sizes())
        self.mailbox_messages = mailbox_messages
        self._file = file
        self._counters = counters
        self._interval = interval
        self._disk = Workers(0 if file.is_shared else 1)
        self._unwritten: dict[int, Batch] = {}  # those that are not on disk as they are, new ones in order, by id
        self._pending = 0  # bytes of those that are not there at all
        self._under_way: Counter[int] = Counter()  # owed batches that a connection may still deliver, by receiver
        self._commit_due = Event()
        self._room = Event()
        self._committing = Semaphore()
        self._writer = gevent.spawn(self._write)

    def add(self, batch: Batch) -> None:
        """Keep this batch, from now on. Never waits; wait_for_room() before."""
        batch.id = self._file.new_id()
        self._unwritten[batch.id] = batch
        self._pending += _size(batch)
        if batch.owed:
            self._under_way[batch.receiver] += 1
        self._commit_due.set()

    def wait_for_room(self) -> None:
        """Wait while more than enough waits to be written, but not for a disk that takes nothing."""
        while self._pending > PENDING_BYTES and not self.is_failing:
            self._room.clear()
            self._room.wait()

    def settled(self, batch: Batch) -> None:
        """No connection has anything of this batch any more. Never waits."""
        if not batch.owed:
            return
        self._under_way[batch.receiver] -= 1
        self.mail[batch.receiver] += batch.waiting
        if batch.written != batch.waiting:
            self._unwritten[batch.id] = batch
            self._commit_due.set()

    def waiting_messages(self) -> int:
        """In all mailboxes."""
        return sum(self.mail.values())

    def has_mail(self, receiver: int) -> bool:
        """Whether something waits for this user, or will when a connection that has ended lets go of it."""
        return self.mail[receiver] > 0 or self._under_way[receiver] > 0

    def take_mail(
        self, receiver: int, goes_on: Callable[[], bool], batch_again: Callable[[ChatRow], Batch]
    ) -> Iterator[Mail]:
        """What waits for this user, oldest first, as long as it `goes_on`; a batch that comes is on its way again.

        `batch_again` makes the batch of a row. Raises StorageUnavailable.
        """
        while self._under_way[receiver] and goes_on():
            gevent.sleep(SETTLE_SECONDS)
        after = 0
        while self.mail[receiver] > 0 and goes_on() and (rows := self._next_mail(receiver, after)):
            for row in rows:
                batch = self._unwritten.get(row.id) or batch_again(row)
                if batch.waiting and goes_on():
                    yield self._again(batch, messages(row))
            after = rows[-1].id

    def _next_mail(self, receiver: int, after: int) -> Sequence[ChatRow]:
        """Some of the mail behind this id: on disk, or, while nothing can be written, not there yet."""
        rows: Sequence[ChatRow] = self._read(self._file.mailbox, receiver, after, MAIL_BYTES)
        return rows or [
            _row(batch)
            for batch in self._unwritten.values()
            if batch.receiver == receiver and batch.id > after and batch.written is None
        ]

    def last(self, one: int, other: int, count: int) -> Sequence[ChatRow]:
        """As in ChatFile.last, what has just been handed over included if it can be written. Raises
        StorageUnavailable.
        """
        rows: Sequence[ChatRow] = self._read(self._file.last, one, other, count)
        return rows

    def close(self) -> None:
        """Write what is left."""
        with self._committing:  # not in the middle of it
            self._writer.kill()
        for _ in range(LAST_TRIES):
            with suppress(StorageUnavailable):
                self._commit()
                break
            gevent.sleep(RETRY_SECONDS)
        lost = [batch for batch in self._unwritten.values() if batch.written is None]
        if self._unwritten:
            log.error(
                "the database cannot be written: %d messages are lost to history, %d of them to mailboxes; and of %d "
                "batches it is not noted what was delivered, and will be again",
                sum(batch.count for batch in lost),
                sum(batch.waiting for batch in lost),
                len(self._unwritten) - len(lost),
            )
        self._disk.join()

    def _again(self, batch: Batch, found: Sequence[bytes]) -> Mail:
        waiting = batch.waiting
        batch.go_again()
        self.mail[batch.receiver] -= waiting
        self._under_way[batch.receiver] += 1
        return batch, found[-waiting:]

    def _read(self, operation: Callable[..., T], *arguments: object) -> T:
        if not self.is_failing:  # the writer tries again, and nobody else shall wait for that
            with suppress(StorageUnavailable):  # the log says so; what there is can perhaps be read
                self._commit()
        return self._disk.run(operation, *arguments)

    def _write(self) -> None:
        """The writer's greenlet."""
        while True:
            self._commit_due.wait()
            gevent.sleep(RETRY_SECONDS if self.is_failing else self._interval)
            try:
                self._commit()
            except StorageUnavailable:
                continue
            except Exception:
                log.exception("a fault of the server's own keeps messages from being written")

    def _commit(self) -> None:
        """Write all that is not on disk, and tell who waits for that. Raises StorageUnavailable; then nothing is
        written, and it has to be tried again.
        """
        with self._committing:
            batches = [(batch, batch.waiting) for batch in self._unwritten.values()]
            if not batches:
                return
            self._commit_due.clear()
            new = [batch for batch, _ in batches if batch.written is None]
            changed = {batch.id: waiting for batch, waiting in batches if batch.written is not None}
            try:
                with self._counters.commits.measured():
                    self._disk.run(self._file.write, [*map(_row, new)], changed)
            except Exception as error:
                self._commit_due.set()
                self._now_failing(error)
                raise
            self._now_working(sum(map(_size, new)))
            for batch, waiting in batches:
                batch.written = waiting
                if batch.waiting == waiting:
                    del self._unwritten[batch.id]
                else:  # it has been delivered meanwhile, or some of it
                    self._commit_due.set()
        for batch in new:
            batch.stored()

    def _now_failing(self, error: Exception) -> None:
        if not self.is_failing:
            log.error("the database cannot be written: %s", error)
        self.is_failing = True
        self._room.set()

    def _now_working(self, written_bytes: int) -> None:
        if self.is_failing:
            log.info("the database can be written again")
        self.is_failing = False
        self._pending -= written_bytes
        self._room.set()


def _size(batch: Batch) -> int:
    return BATCH_BYTES + len(batch.packets)


def _row(batch: Batch) -> ChatRow:
    return ChatRow(
        batch.id,
        batch.sender,
        batch.receiver,
        batch.time,
        batch.count,
        batch.waiting,
        batch.packets,
        batch.receipts.connection if batch.receipts else 0,
        batch.first,
    )
