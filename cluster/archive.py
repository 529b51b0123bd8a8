"""Past chats and mailboxes of a group: each node writes what it has handed over itself, and all of it is in Redis."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import gevent

from chatserver.counters import Counters
from chatserver.messages.archive import MAIL_BYTES, RETRY_SECONDS, SETTLE_SECONDS, Archive, Mail
from chatserver.messages.batch import Batch
from chatstorage.chats import ChatRow, messages
from chatstorage.interface import StorageUnavailable
from cluster.chats import RedisChats
from cluster.directory import Directory
from cluster.engine import Script

SETTLING = Script("settling")


class ClusterArchive(Archive):
    """`mail` counts what this node alone has seen of mailboxes, and decides nothing here."""

    def __init__(
        self, chats: RedisChats, directory: Directory, counters: Counters, interval: float, mailbox_messages: int
    ) -> None:
        """`interval` as in Archive."""
        super().__init__(chats, counters, interval, mailbox_messages)
        self.chats = chats
        self._directory = directory
        self._engine = directory.engine
        self._settling: Counter[int] = Counter()  # how often a user has left, and not all of it is written

    def flush(self) -> None:
        """Write all that waits to be written, if it can be."""
        with suppress(StorageUnavailable):
            self._commit()

    def waiting_messages(self) -> int:
        return sum(self.chats.mailbox_sizes().values())

    def mail_now(self, row: ChatRow) -> int:
        """As in RedisChats.mail; a user who is online here, and to whom nothing can be said any more, is leaving."""
        return self.chats.mail(row, self.mailbox_messages, leaving=self._directory.node)

    # Users who leave this node

    def is_settling(self, user_id: int) -> bool:
        """Whether something of this user's chats is still to be written by this node."""
        return bool(self._under_way[user_id] or self._unwritten)

    def settle(self, user_id: int) -> None:
        """Write it, and say that it is written. Waits until the connection has let go of what was queued for it."""
        self._settling[user_id] += 1
        while self._under_way[user_id]:
            gevent.sleep(SETTLE_SECONDS)
        _until_done(self._commit)
        self._settling[user_id] -= 1
        if not self._settling[user_id]:
            _until_done(lambda: self._say_settled(user_id))

    def close(self) -> None:
        super().close()
        with suppress(StorageUnavailable):  # nobody waits for a node that is gone
            for user_id in [*self._settling]:
                self._say_settled(user_id)

    def _say_settled(self, user_id: int) -> None:
        self._engine.call("SREM", self._engine.key("settling", user_id), self._directory.node)
        self._settling.pop(user_id, None)

    # Users who come

    def wait_until_settled(self, user_id: int, goes_on: Callable[[], bool]) -> None:
        """Wait for the node that this user has left, as long as it `goes_on`. Raises StorageUnavailable."""
        while goes_on() and self._engine.run(SETTLING, user_id):
            gevent.sleep(SETTLE_SECONDS)

    def has_mail(self, _: int) -> bool:
        return True  # perhaps

    def take_mail(
        self, receiver: int, goes_on: Callable[[], bool], batch_again: Callable[[ChatRow], Batch]
    ) -> Iterator[Mail]:
        while self._under_way[receiver] and goes_on():
            gevent.sleep(SETTLE_SECONDS)
        self.wait_until_settled(receiver, goes_on)
        after = 0
        while goes_on() and (rows := self._read(self._file.mailbox, receiver, after, MAIL_BYTES)):
            for row in rows:
                batch = self._unwritten.get(row.id) or batch_again(row)
                if batch.waiting and goes_on():
                    yield self._again(batch, messages(row))
            after = rows[-1].id


def _until_done(work: Callable[[], None]) -> None:
    """However long Redis is away."""
    while True:
        with suppress(StorageUnavailable):
            work()
            return
        gevent.sleep(RETRY_SECONDS)
