"""What waits to be sent to one client."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeAlias

from gevent.event import Event
from gevent.queue import SimpleQueue

from protocol import Run, each_message, whole_packets

PUT_BYTES = 64  # what each put costs besides its bytes: a bytes object's head (33), rounding (15), the queue's slot (9)
MARK_BYTES = 112  # ... and one with Messages: a tuple of four (96), two numbers' rounding, the queue's slot


class Fate(Protocol):
    """Who wants to know what has become of the Messages of a put."""

    def delivered(self, count: int) -> None:
        """So many of them, the next ones in order, are with the kernel. Never waits."""

    def dropped(self, count: int) -> None:
        """So many of them, the last ones, will never be sent. Never waits."""


Mark: TypeAlias = tuple[int, int, int, Fate]  # where in the stream Messages begin and end, how many, who wants to know


class Outbox:
    """What waits to be sent to one client: a channel bounded in bytes of memory, those in flight included.

    1. Whoever puts waits while there is no room, so that back-pressure reaches the sender and nothing is lost.
    2. A put costs its bytes, PUT_BYTES, and MARK_BYTES if it has a fate. `take` makes one stream of many puts and gives
       the PUT_BYTES back; the bytes and the marks count until the kernel has them, and `sent` gives them back.
    3. Once closed it takes nothing more, and whoever waits is told so. The same holds once it leads nowhere, as the
       client cannot be reached; but then what the client sent before is still handled.
    4. While it is reserved only its owner, the client's own session, may put; `deliver`, for all others, waits.
    5. Notices need no room: each source keeps what it has to say, in bounded memory, until it is taken.
    """

    def __init__(self, limit: int, on_due: Callable[[], object]) -> None:
        """`limit` in bytes, enough for one relayed message and its cost; `on_due` tells the writer that there is
        something to take, once until it is taken.
        """
        self.takes = True  # what is put has a way to go: it is neither closed nor leads nowhere
        self.closed = False
        self.leads_nowhere = False
        self.is_reserved = False
        self.is_due = False  # there may be something to take
        self.last_packet = b""
        self.notices: list[Callable[[], bytes]] = []  # each gives the packets that it has to say, and forgets them
        self._channel: SimpleQueue[bytes] = SimpleQueue()
        self._limit = limit
        self._on_due = on_due
        self._size = 0
        self._room: Event | None = None  # that somebody waits for
        self._marks: list[Mark] = []  # few, and an empty deque is larger
        self._length = 0  # of the stream up to now, in bytes
        self._out = 0  # how much of it is with the kernel

    # For the owner

    def put(self, packets: bytes) -> bool:
        """Queue whole packets, waiting for room; False where the outbox takes nothing, any more or at all."""
        while not self._has_room(PUT_BYTES + len(packets)) and self.takes:
            self._wait()
        if not self.takes:
            return False
        self._append(packets)
        return True

    def put_each(self, parts: Sequence[bytes], fate: Fate | None = None) -> int:
        """Queue parts in order, waiting for room; returns how many of them went in. With a fate each is one Message."""
        packets = b"".join(parts)
        if self.takes and self._has_room((PUT_BYTES + MARK_BYTES if fate else PUT_BYTES) + len(packets)):
            self._append(packets, len(parts), fate)
            return len(parts)
        return self._put_some(parts, fate, self._has_room)

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Nothing of others comes in between what the owner puts in this block, nor a notice."""
        self.reserve()
        try:
            yield
        finally:
            self.free()

    def reserve(self) -> None:
        """As reserved(), up to free()."""
        self.is_reserved = True

    def free(self) -> None:
        """It is everyone's again. Never waits."""
        self.is_reserved = False
        self._wake()
        self.announce()  # what there was to say has waited

    # For others

    def deliver(self, run: Run, fate: Fate) -> int:
        """Queue Messages, in order, waiting for room; returns how many of them went in."""
        packets, count = run
        if self._size + PUT_BYTES + MARK_BYTES + len(packets) <= self._limit and self.takes and not self.is_reserved:
            self._append(packets, count, fate)
            return count
        return self._put_some(each_message(run), fate, self._admits)

    def wait_while(self, condition: Callable[[], bool]) -> None:
        """Wait for something that changes when this is sent, closed or no longer reserved."""
        while condition() and self.takes:
            self._wait()

    def has_room_for(self, run: Run) -> bool:
        """Whether deliver() would not wait."""
        packets, _ = run
        return not self.takes or self._admits(PUT_BYTES + MARK_BYTES + len(packets))

    def wait_until_free(self) -> None:
        """Wait while it is reserved."""
        self.wait_while(lambda: self.is_reserved)

    def announce(self) -> None:
        """A source of notices may have something to say. Never waits."""
        if self.notices and self.takes and not self.is_due:
            self.is_due = True
            self._on_due()

    # For the writer

    def take(self) -> bytes:
        """What is queued, and notices, now in flight; there is more while it `is_due`. Never waits."""
        self.is_due = False
        channel = self._channel
        count = channel.qsize()
        self._size -= PUT_BYTES * count
        stream = channel.get_nowait() if count == 1 else b"".join([channel.get_nowait() for _ in range(count)])
        if self.notices and self.takes and not self.is_reserved:
            said = b"".join([say() for say in self.notices])
            self._size += len(said)
            self._length += len(said)
            self.is_due = bool(said)  # a source may not have said all
            stream += said
        return stream

    def sent(self, count: int) -> None:
        """`count` bytes in flight are with the kernel: whoever waits for room may look again."""
        self._size -= count
        self._out += count
        marks, settled = self._marks, 0
        while settled < len(marks) and marks[settled][1] <= self._out:
            settled += 1
        if settled:
            gone, self._marks = marks[:settled], marks[settled:]
            self._size -= MARK_BYTES * settled
            for _, _, messages, fate in gone:
                fate.delivered(messages)
        if self._room:
            self._wake()

    def drop(self, stream: bytes, end: int, keep: int = 0) -> int:
        """Of all that waits only the first `end` bytes of `stream`, the part in flight, will be sent, and `keep` bytes
        of a last packet; the number of bytes lost.
        """
        queued = len(self.take())
        start = self._length - queued - len(stream)
        last = start + end
        while self._marks and self._marks[-1][1] > last:
            begin, _, count, fate = self._marks.pop()
            kept = size = 0
            if count > 1 and begin < last:  # a single one, in however many packets, is not complete
                kept, size = whole_packets(stream[begin - start : end])
            if kept:
                self._marks.append((begin, begin + size, kept, fate))
            else:
                self._size -= MARK_BYTES
            fate.dropped(count - kept)
        self.sent(0)
        self._length = last + keep
        lost = len(stream) - end + queued - keep
        self._size -= lost
        self._wake()
        return lost

    # For all

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
        return self._room is not None

    def close(self, last_packet: bytes = b"") -> None:
        """Take nothing more, but for one last packet, which needs no room. The first close counts. Never waits."""
        if self.closed:
            return
        self.takes, self.closed = False, True
        self.last_packet = last_packet
        self._wake()
        if last_packet:
            self._append(last_packet)

    def lead_nowhere(self) -> None:
        """Take nothing more, as there is nobody to send it to. Never waits."""
        self.takes, self.leads_nowhere = False, True
        self._wake()

    def _has_room(self, cost: int) -> bool:
        return self._size + cost <= self._limit

    def _admits(self, cost: int) -> bool:
        return self._size + cost <= self._limit and not self.is_reserved

    def _wait(self) -> None:
        self._room = self._room or Event()
        self._room.wait()

    def _wake(self) -> None:
        """Whoever waits may look again."""
        room, self._room = self._room, None
        if room:
            room.set()

    def _put_some(self, parts: Sequence[bytes], fate: Fate | None, admits: Callable[[int], bool]) -> int:
        """One by one, as room is made."""
        cost = PUT_BYTES + MARK_BYTES if fate else PUT_BYTES
        for count, part in enumerate(parts):
            while not admits(cost + len(part)) and self.takes:
                self._wait()
            if not self.takes:
                return count
            self._append(part, 1, fate)
        return len(parts)

    def _append(self, packets: bytes, messages: int = 0, fate: Fate | None = None) -> None:
        start = self._length
        self._length += len(packets)
        self._size += PUT_BYTES + len(packets)
        if fate:
            self._size += MARK_BYTES
            self._marks.append((start, self._length, messages, fate))
        self._channel.put(packets)
        if not self.is_due:
            self.is_due = True
            self._on_due()
