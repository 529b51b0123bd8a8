"""Who is online, and what is on its way to each of them.

The relay moves bytes from one client's greenlet to another's. It knows nothing of sessions, sockets or passwords.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gevent.event import Event
from gevent.queue import SimpleQueue

PUT_BYTES = 64  # what each put costs besides its bytes: a bytes object's head (33), rounding (15), the queue's slot (9)


class Outbox:
    """What waits to be sent to one client: a channel bounded in bytes of memory, those in flight included.

    1. Whoever puts waits while there is no room, so that back-pressure reaches the sender and nothing is lost.
    2. A put costs its bytes and PUT_BYTES. `take` makes one stream of many puts and gives the PUT_BYTES back; the bytes
       count until the kernel has them, and `sent` gives them back.
    3. Once closed it takes nothing more, and whoever waits is told so. The same holds once it leads nowhere, as the
       client cannot be reached; but then what the client sent before is still handled.
    """

    def __init__(self, limit: int, on_put: Callable[[], None]) -> None:
        """`limit` in bytes, at least PUT_BYTES and one relayed message; `on_put` tells the writer that there is
        something to send.
        """
        self.closed = False
        self.leads_nowhere = False
        self.last_packet = b""
        self.messages_queued = 0
        self.messages_in_flight = 0
        self._channel: SimpleQueue[bytes] = SimpleQueue()
        self._limit = limit
        self._on_put = on_put
        self._size = 0
        self._room = Event()
        self._room.set()

    def put(self, packets: bytes, messages: int = 0) -> bool:
        """Queue whole packets, which hold so many Messages, waiting for room; False where the outbox takes nothing, any
        more or at all.
        """
        while self._size + PUT_BYTES + len(packets) > self._limit and self.takes:
            self._room.clear()
            self._room.wait()
        if not self.takes:
            return False
        self._append(packets, messages)
        return True

    def put_each(self, parts: Sequence[bytes], messages: int = 0) -> int:
        """Queue parts in order, each with so many Messages, waiting for room; returns how many of them went in."""
        if self._size + PUT_BYTES + sum(map(len, parts)) <= self._limit:
            return len(parts) if self.put(b"".join(parts), messages * len(parts)) else 0
        for count, part in enumerate(parts):
            if not self.put(part, messages):
                return count
        return len(parts)

    def take(self) -> bytes:
        """All that is queued, now in flight; b"" when there is nothing. Never waits."""
        self.messages_in_flight += self.messages_queued
        self.messages_queued = 0
        channel = self._channel
        puts = [channel.get_nowait() for _ in range(channel.qsize())]
        self._size -= PUT_BYTES * len(puts)
        return b"".join(puts)

    @property
    def size(self) -> int:
        """Bytes that count now, as in (2)."""
        return self._size

    @property
    def empty(self) -> bool:
        """Whether nothing is queued; something may be in flight."""
        return self._channel.empty()

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for room here."""
        return not self._room.is_set()

    def sent(self, count: int) -> None:
        """`count` bytes in flight are gone, or given up: whoever waits for room may look again."""
        self._size -= count
        if not self._room.is_set():
            self._room.set()

    def close(self, last_packet: bytes = b"") -> None:
        """Take nothing more, but for one last packet, which needs no room. The first close counts. Never waits."""
        if self.closed:
            return
        self.closed = True
        self.last_packet = last_packet
        self._room.set()
        if last_packet:
            self._append(last_packet, 0)

    def lead_nowhere(self) -> None:
        """Take nothing more, as there is nobody to send it to. Never waits."""
        self.leads_nowhere = True
        self._room.set()

    @property
    def takes(self) -> bool:
        """Whether what is put has a way to go."""
        return not (self.closed or self.leads_nowhere)

    def _append(self, packets: bytes, messages: int) -> None:
        self._size += PUT_BYTES + len(packets)
        self.messages_queued += messages
        self._channel.put(packets)
        self._on_put()


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A user who is online: its id, its entry in the list as bytes, and the way to it."""

    user_id: int
    entry: bytes
    outbox: Outbox


class Relay:
    """Who is online, by id."""

    def __init__(self) -> None:
        self._online: dict[int, Member] = {}

    def join(self, member: Member) -> None:
        """Online from here on. The caller has made sure that nobody else is this user."""
        self._online[member.user_id] = member

    def leave(self, member: Member) -> None:
        """Offline from here on; by now somebody else may be this user, and stays."""
        if self._online.get(member.user_id) is member:
            del self._online[member.user_id]

    def is_online(self, user_id: int) -> bool:
        """Whether messages to this user have a way to go."""
        member = self._online.get(user_id)
        return member is not None and member.outbox.takes

    def __len__(self) -> int:
        return sum(member.outbox.takes for member in self._online.values())

    def everyone(self) -> list[Member]:
        """All who are online, in ascending id order."""
        return [self._online[user_id] for user_id in sorted(self._online) if self.is_online(user_id)]

    def deliver(self, user_id: int, messages: Sequence[bytes]) -> int:
        """Hand messages over to a user, waiting while its outbox is full; returns how many it took, from the first."""
        member = self._online.get(user_id)
        return member.outbox.put_each(messages, messages=1) if member else 0
