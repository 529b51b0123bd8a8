"""The commit queue: batches on their way to the database, many in one transaction.

One greenlet commits, in a thread of `disk`. A reader commits first, so that it reads everything there is. The queue
knows a batch from the moment when it is handed over, and so it knows what its receiver still has to get.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

import gevent
from gevent.event import Event
from gevent.lock import Semaphore

from chatserver.counters import Counters
from chatserver.messages.batch import Batch
from chatserver.workers import Workers
from chatstorage.chats import ChatRow, Chats
from storage import StorageUnavailable

PENDING_BYTES = 4 * 1024 * 1024  # that wait to be written before senders are throttled
BATCH_BYTES = 400  # memory of a batch besides its packets
RETRY_SECONDS = 1.0  # between attempts while nothing can be written
LAST_TRIES = 3  # at the end of the server

T = TypeVar("T")

log = logging.getLogger("chat")


class CommitQueue:
    """The batches that are not in the database as they are now, or whose Messages are still in flight."""

    def __init__(self, chats: Chats, counters: Counters, interval: float, disk: Workers) -> None:
        """`interval`: seconds that a commit waits for further batches; 0 commits as soon as the last commit is done."""
        self.is_failing = False  # the last commit failed
        self._chats = chats
        self._counters = counters
        self._interval = interval
        self._disk = disk
        self._unwritten: dict[int, Batch] = {}  # by id; new ones in the order of their ids
        self._pending_bytes = 0  # of those that are not in the database at all
        self._in_flight: Counter[int] = Counter()  # owed batches that a connection may still deliver, by receiver
        self._commit_due = Event()
        self._room = Event()
        self._committing = Semaphore()
        self._writer = gevent.spawn(self._write)

    def add(self, batch: Batch) -> None:
        """Keep a new batch, which gets its id. Never waits; call wait_for_room() before."""
        batch.id = self._chats.new_id()
        self._unwritten[batch.id] = batch
        self._pending_bytes += _size(batch)
        if batch.owed:
            self._in_flight[batch.receiver] += 1
        self._commit_due.set()

    def wait_for_room(self) -> bool:
        """Wait while PENDING_BYTES wait to be written; False at once if nothing can be written now."""
        while self._pending_bytes > PENDING_BYTES and not self.is_failing:
            self._room.clear()
            self._room.wait()
        return not self.is_failing

    def has_room(self) -> bool:
        """Whether wait_for_room() would return True at once."""
        return self._pending_bytes <= PENDING_BYTES and not self.is_failing

    def settled(self, batch: Batch) -> None:
        """Nothing of this owed batch is in flight any more. Never waits."""
        self._in_flight[batch.receiver] -= 1
        if batch.written != batch.waiting:
            self._unwritten[batch.id] = batch
            self._commit_due.set()

    def take_up(self, batch: Batch) -> None:
        """What waits of this batch in the mailbox is in flight again. Never waits."""
        batch.go_again()
        self._in_flight[batch.receiver] += 1

    def has_in_flight(self, receiver: int) -> bool:
        """Whether a connection may still deliver owed batches to this user."""
        return self._in_flight[receiver] > 0

    @property
    def has_unwritten(self) -> bool:
        """Whether anything is still to be written."""
        return bool(self._unwritten)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to write or in flight."""
        return not self._unwritten and not +self._in_flight and not self._pending_bytes

    def find(self, batch_id: int) -> Batch | None:
        """The batch with this id, if it is still to be written."""
        return self._unwritten.get(batch_id)

    def new_for(self, receiver: int, after: int) -> Iterator[ChatRow]:
        """The batches for this user, with ids above `after`, that are not in the database at all."""
        return (
            row_of(batch)
            for batch in self._unwritten.values()
            if batch.receiver == receiver and batch.id > after and batch.written is None
        )

    def read(self, operation: Callable[..., T], *arguments: object) -> T:
        """Commit if possible, then read from the database. Raises StorageUnavailable."""
        if not self.is_failing:  # else the writer tries again, and readers need not wait for that
            with suppress(StorageUnavailable):  # it is in the log; what the database has can perhaps be read
                self.commit()
        return self._disk.run(operation, *arguments)

    def commit(self) -> None:
        """Write everything that waits, and notify senders that asked for receipts. Raises StorageUnavailable; then
        nothing is written, and it has to be tried again.
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
                    self._disk.run(self._chats.write, [*map(row_of, new)], changed)
            except Exception as error:
                self._commit_due.set()
                self._now_failing(error)
                raise
            self._now_working(sum(map(_size, new)))
            for batch, waiting in batches:
                batch.written = waiting
                if batch.waiting == waiting:
                    del self._unwritten[batch.id]
                else:  # some of it was delivered meanwhile
                    self._commit_due.set()
        for batch in new:
            batch.stored()

    def close(self) -> None:
        """Write what is left; what cannot be written is counted in the log."""
        with self._committing:  # not in the middle of a commit
            self._writer.kill()
        for _ in range(LAST_TRIES):
            with suppress(StorageUnavailable):
                self.commit()
                break
            gevent.sleep(RETRY_SECONDS)
        lost = [batch for batch in self._unwritten.values() if batch.written is None]
        if self._unwritten:
            log.error(
                "the database cannot be written: %d messages are lost to history, %d of them to mailboxes; "
                "%d batches that were delivered in part will be delivered again",
                sum(batch.count for batch in lost),
                sum(batch.waiting for batch in lost),
                len(self._unwritten) - len(lost),
            )
        self._disk.join()

    def _write(self) -> None:
        """The writer's greenlet."""
        while True:
            self._commit_due.wait()
            gevent.sleep(RETRY_SECONDS if self.is_failing else self._interval)
            try:
                self.commit()
            except StorageUnavailable:
                continue
            except Exception:
                log.exception("internal error: messages cannot be written")

    def _now_failing(self, error: Exception) -> None:
        if not self.is_failing:
            log.error("the database cannot be written: %s", error)
        self.is_failing = True
        self._room.set()

    def _now_working(self, written_bytes: int) -> None:
        if self.is_failing:
            log.info("the database can be written again")
        self.is_failing = False
        self._pending_bytes -= written_bytes
        self._room.set()


def _size(batch: Batch) -> int:
    return BATCH_BYTES + len(batch.packets)


def row_of(batch: Batch) -> ChatRow:
    """A batch as it is stored."""
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
