"""Past chats and mailboxes of a node: it writes what it handed over itself, and Redis has all of it."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress

import gevent

from chatserver.counters import Counters
from chatserver.messages.archive import (
    MAIL_BYTES,
    SETTLE_SECONDS,
    Archive,
    Mail,
    patiently,
    wait_until_settled,
    waiting_mail,
)
from chatserver.messages.batch import Batch, Sender
from chatserver.messages.commits import RETRY_SECONDS, CommitQueue
from chatstorage.chats import ChatRow
from chatstorage.interface import StorageUnavailable
from cluster.chats import RedisChats
from cluster.directory import Directory
from cluster.engine import Script
from protocol import Level, Run, first_messages

SETTLING = Script("settling")


class ClusterArchive(Archive):
    """The archive of one node. Mailboxes are in Redis, where every node puts messages into them at once."""

    def __init__(
        self, chats: RedisChats, queue: CommitQueue, directory: Directory, counters: Counters, mailbox_messages: int
    ) -> None:
        """`queue` writes to `chats`; `mailbox_messages` may wait for one user."""
        self._chats = chats
        self._queue = queue
        self._directory = directory
        self._engine = directory.engine
        self._counters = counters
        self._mailbox_messages = mailbox_messages
        self._changes: dict[
            int, int
        ] = {}  # of users who leave while something of them is unwritten; a number that grows
        self._settlers: set[int] = set()  # users for whom a greenlet runs

    def wait_for_room(self) -> bool:
        return self._queue.wait_for_room()

    def has_room(self) -> bool:
        return self._queue.has_room()

    def add(self, batch: Batch) -> None:
        self._queue.add(batch)

    def settled(self, batch: Batch) -> None:
        if batch.owed:
            self._queue.settled(batch)

    def put_in_mailbox(self, sender: Sender, receiver: int, run: Run, first: int) -> int:
        """As in Archive. Raises ReceiverOnline for a user who is online, except for one who is leaving this node."""
        row = ChatRow(
            self._chats.new_id(),
            sender.user_id,
            receiver,
            int(time.time()),
            run.messages,
            run.messages,
            run.packets,
            sender.receipts.connection if sender.receipts else 0,
            first,
        )
        while row.count and (room := self._mail(row)) < row.count:
            packets, count = first_messages(Run(row.packets, row.count), room)
            row = row._replace(packets=packets, count=count, waiting=count)
        self._counters.messages_mailed += row.count
        self._counters.messages_stored += row.count
        if sender.receipts and row.count:
            sender.receipts.reach(Level.STORED, first, first + row.count - 1)
        return row.count

    def _mail(self, row: ChatRow) -> int:
        return self._chats.mail(row, self._mailbox_messages, leaving=self._directory.node)

    def has_mail(self, _: int) -> bool:
        return True  # perhaps: only Redis knows

    def take_mail(
        self, receiver: int, goes_on: Callable[[], bool], batch_again: Callable[[ChatRow], Batch]
    ) -> Iterator[Mail]:
        wait_until_settled(self._queue, receiver, goes_on)
        patiently(lambda: self.wait_until_settled(receiver, goes_on))
        after = 0
        while goes_on() and (rows := self._read_mail(receiver, after)):
            yield from waiting_mail(self._queue, rows, goes_on, batch_again)
            after = rows[-1].id

    def _read_mail(self, receiver: int, after: int) -> Sequence[ChatRow]:
        return patiently(lambda: self._queue.read(self._chats.mailbox, receiver, after, MAIL_BYTES))

    def last(self, one: int, other: int, count: int) -> Sequence[ChatRow]:
        return self._queue.read(self._chats.last, one, other, count)

    def waiting_messages(self) -> int:
        return sum(self._chats.mailbox_sizes().values())

    def close(self) -> None:
        self._queue.close()
        with suppress(StorageUnavailable):  # nobody waits for a node that has ended
            for user_id in [*self._changes]:
                self._directory.settled(user_id)

    def flush(self) -> None:
        """Write everything that waits to be written, if possible."""
        with suppress(StorageUnavailable):
            self._queue.commit()

    # Users who leave this node

    def is_settling(self, user_id: int) -> bool:
        """Whether this node may still have to write something of this user's chats."""
        return self._queue.has_in_flight(user_id) or self._queue.has_unwritten

    @property
    def settling(self) -> Collection[int]:
        """The users who have left while something of them is unwritten."""
        return self._changes.keys()

    def has_changed(self, user_id: int) -> None:
        """This user is leaving: what has been reported about it does not count any more."""
        self._changes[user_id] = self._changes.get(user_id, 0) + 1

    def settle(self, user_id: int) -> None:
        """This user has left. A greenlet writes what is unwritten, and reports it: one, however often a user leaves."""
        self.has_changed(user_id)
        if user_id not in self._settlers:
            self._settlers.add(user_id)
            gevent.spawn(self._settle, user_id)

    def _settle(self, user_id: int) -> None:
        reported = 0  # the change after which Redis knows that nothing is unwritten
        while reported < (change := self._changes[user_id]):
            wait_until_settled(self._queue, user_id, lambda: True)
            try:
                self._queue.commit()
                if change == self._changes[user_id]:
                    self._directory.settled(user_id)  # before a later release, which is asked for after this
                    reported = change
            except StorageUnavailable:
                gevent.sleep(RETRY_SECONDS)
        del self._changes[user_id]
        self._settlers.remove(user_id)

    # Users who come to this node

    def wait_until_settled(self, user_id: int, goes_on: Callable[[], bool]) -> None:
        """Wait, as long as it `goes_on`, for the node that this user has left. Raises StorageUnavailable."""
        while goes_on() and self._engine.run(SETTLING, user_id):
            gevent.sleep(SETTLE_SECONDS)
