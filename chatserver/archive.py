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

from chatserver.batch import Batch
from chatserver.counters import Counters
from chatserver.workers import Workers
from chatstorage.chats import ChatFile, Row
from storage import StorageUnavailable

PENDING_BYTES = 4 * 1024 * 1024  # that wait to be written, before those who send are made to wait
BATCH_BYTES = 400  # what a batch takes besides its packets
MAIL_BYTES = 64 * 1024  # read from a mailbox at once
RETRY_SECONDS = 1.0  # while nothing can be written
SETTLE_SECONDS = 0.01  # between two looks whether a connection that has ended has let go of what was queued for it

T = TypeVar("T")

log = logging.getLogger("chat")


class Archive:
    """The chats of one server. `mail` is how many Messages wait in each mailbox, by its owner's id."""

    def __init__(self, file: ChatFile, counters: Counters, interval: float, mailbox_messages: int) -> None:
        """`interval`: seconds that a commit waits for more to come together; 0 is as soon as the one before is done."""
        self.is_failing = False  # the last commit was in vain
        self.mail = Counter(file.mailbox_sizes())
        self.mailbox_messages = mailbox_messages
        self._file = file
        self._counters = counters
        self._interval = interval
        self._disk = Workers(1)
        self._next_id = file.highest_id() + 1
        self._new: list[Batch] = []
        self._changed: dict[int, Batch] = {}  # on disk, and no longer right there
        self._pending = 0  # bytes
        self._under_way: Counter[int] = Counter()  # batches that a connection may still deliver, by receiver
        self._commit_due = Event()
        self._room = Event()
        self._committing = Semaphore()
        self._writer = gevent.spawn(self._write)

    def add(self, batch: Batch) -> None:
        """Keep this batch, from now on. Never waits; wait_for_room() before."""
        batch.id = self._next_id
        self._next_id += 1
        self._new.append(batch)
        self._pending += BATCH_BYTES + len(batch.packets)
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
        if batch.written not in (None, batch.waiting):
            self._changed[batch.id] = batch
            self._commit_due.set()

    def has_mail(self, receiver: int) -> bool:
        """Whether something waits for this user, or will when a connection that has ended lets go of it."""
        return self.mail[receiver] > 0 or self._under_way[receiver] > 0

    def take_mail(self, receiver: int, goes_on: Callable[[], bool]) -> Iterator[Row]:
        """What waits for this user, oldest first, as long as it `goes_on`; for each row call again() before the next.

        Raises StorageUnavailable.
        """
        while self._under_way[receiver] and goes_on():
            gevent.sleep(SETTLE_SECONDS)
        after = 0
        while goes_on() and (rows := self._read(self._file.mailbox, receiver, after, MAIL_BYTES)):
            for row in rows:
                changed = self._changed.get(row.id)
                waiting = changed.waiting if changed else row.waiting
                if waiting and goes_on():
                    yield row._replace(waiting=waiting)
            after = rows[-1].id

    def again(self, batch: Batch, waiting: int) -> None:
        """So many Messages of this batch are on their way out of the mailbox. Never waits."""
        batch.written = waiting
        self.mail[batch.receiver] -= waiting
        self._under_way[batch.receiver] += 1

    def last(self, one: int, other: int, count: int) -> Sequence[Row]:
        """As in ChatFile.last, what has just been handed over included. Raises StorageUnavailable."""
        rows: Sequence[Row] = self._read(self._file.last, one, other, count)
        return rows

    def close(self) -> None:
        """Write what is left."""
        with self._committing:  # not in the middle of it
            self._writer.kill()
        with suppress(StorageUnavailable):
            self._commit()
        if self._new or self._changed:
            log.error("the last messages could not be written to the database, and are lost to history and mailboxes")
        self._disk.join()

    def _read(self, operation: Callable[..., T], *arguments: object) -> T:
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
        """Write all that is new or changed, and tell who waits for that. Raises StorageUnavailable; then nothing is
        written, and it has to be tried again.
        """
        with self._committing:
            new, self._new = self._new, []
            changed, self._changed = self._changed, {}
            self._commit_due.clear()
            if not new and not changed:
                return
            rows = list(map(_row, new))
            for batch in (*new, *changed.values()):
                batch.written = batch.waiting
            try:
                with self._counters.commits.measured():
                    self._disk.run(self._file.write, rows, {batch.id: batch.waiting for batch in changed.values()})
            except Exception as error:
                self._new[:0] = new
                self._changed = changed | self._changed
                self._commit_due.set()
                self._now_failing(error)
                raise
            self._now_working(sum(BATCH_BYTES + len(batch.packets) for batch in new))
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


def _row(batch: Batch) -> Row:
    return Row(
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
