"""What waits to be sent to one client."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from gevent.event import Event
from gevent.queue import SimpleQueue

from chatserver.transport.marks import Fate, Marks
from chatserver.transport.states import OUTPUT, Output, OutputEvent
from chatserver.transport.turns import PIECE_BYTES, Line, Turn
from protocol import Run, each_message

PUT_BYTES = 64  # what each put costs besides its bytes: a bytes object's head (33), rounding (15), the queue's slot (9)
MARK_BYTES = 112  # ... and one with Messages: a tuple of four (96), two numbers' rounding, the queue's slot


class Outbox:
    """What waits to be sent to one client: a channel bounded in bytes of memory, including those in flight.

    1. A put waits until there is room. This is the back-pressure that reaches the sender; nothing is lost. Others than
       the owner wait in line, and are served in turn (turns.py).
    2. A put costs its bytes, PUT_BYTES, and MARK_BYTES if it has a fate. `take` joins many puts into one stream and
       gives back their PUT_BYTES. The bytes and the marks count until the kernel has them; `sent` gives them back.
    3. Once closed or unreachable (states.py) it takes nothing more, and pending puts return at once.
    4. While it is reserved only its owner, the client's own session, may put; `deliver`, for all others, waits.
    5. Notices need no room: each source keeps its notices in bounded memory until they are taken.
    6. Where nothing waits before it, what is offered goes out at once and needs no queue.
    """

    def __init__(
        self,
        limit: int,
        on_due: Callable[[], object],
        send_now: Callable[[bytes], int] = lambda _: 0,
        has_left: Callable[[], bool] = lambda: False,
    ) -> None:
        """`limit` in bytes: enough for one relayed message and its cost. `on_due` is called when there is something to
        take, once until it is taken. `send_now` returns how many bytes the kernel took, perhaps none; if it took only
        some, then all are in flight, as if they had been taken. `has_left`: whether the client has closed its side. No
        call may wait.
        """
        self.state = Output.OPEN
        self.takes = True  # it is OPEN; this and `closed` are set only in advance(), for the hot path
        self.closed = False  # close() was called
        self.is_reserved = False
        self.is_due = False  # there may be something to take
        self.last_packet = b""
        self.other_bytes = 0  # of the stream so far: notices and Pongs, which are no sign of a chat
        self.notices: list[Callable[[], bytes]] = []  # each source returns the packets of its notices and forgets them
        self._channel: SimpleQueue[bytes] | None = None  # while something waits in it, since it takes two kilobytes
        self._limit = limit
        self._on_due = on_due
        self._send_now = send_now
        self._has_left = has_left
        self._turn: Turn | None = None  # in other outboxes, once the owner's session has waited there
        self._line: Line | None = None  # of others, while some wait for room here
        self._size = 0
        self._room: Event | None = None  # set when a waiting put should look again
        self._marks = Marks()

    # For the owner

    def put(self, packets: bytes) -> bool:
        """Queue whole packets, waiting for room; False where the outbox takes nothing more."""
        while not self._has_room(PUT_BYTES + len(packets)) and self.takes:
            self.wait()
        if not self.takes:
            return False
        self._queue(packets)
        return True

    def put_each(self, parts: Sequence[bytes], fate: Fate | None = None) -> int:
        """Queue parts in order, waiting for room; returns how many were queued. With a fate each is one Message."""
        packets = b"".join(parts)
        if self.takes and self._has_room((PUT_BYTES + MARK_BYTES if fate else PUT_BYTES) + len(packets)):
            self._queue(packets, len(parts), fate)
            return len(parts)
        return self._put_some(parts, fate)

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Neither others' packets nor notices come between the owner's puts in this block."""
        self.reserve()
        try:
            yield
        finally:
            self.free()

    def reserve(self) -> None:
        """Begin what reserved() does, until free()."""
        self.is_reserved = True

    def free(self) -> None:
        """Open it to others again. Never waits."""
        self.is_reserved = False
        self._wake()
        self.announce()  # notices have waited

    # For others

    def offer(self, packets: bytes, messages: int, fate: Fate) -> bool:
        """Send Messages at once, or queue them if there is room for all; False: nothing has happened. Never waits."""
        if (
            self._size + PUT_BYTES + MARK_BYTES + len(packets) > self._limit
            or not self.takes
            or self.is_reserved
            or self._line
        ):
            return False
        if self._size == 0 and not self.is_due and (sent := self._send_now(packets)):  # nothing waits before it
            if sent == len(packets):
                fate.delivered(messages)
            else:
                self._mark(packets, messages, fate)
                self.sent(sent)
        else:
            self._queue(packets, messages, fate)
        return True

    def deliver(self, run: Run, fate: Fate, turn: Turn) -> int:
        """Queue Messages in order, waiting in line for room; returns how many were queued, before `turn` gave up."""
        packets = run.packets
        if (
            self._size + PUT_BYTES + MARK_BYTES + len(packets) <= self._limit
            and self.takes
            and not self.is_reserved
            and not self._line
        ):
            self._queue(packets, run.messages, fate)
            return run.messages
        if self._line is None:
            self._line = Line()
        return self._put_in_turn(self._line, each_message(run), fate, turn)

    def _put_in_turn(self, line: Line, messages: Sequence[bytes], fate: Fate, turn: Turn) -> int:
        piece = 0
        line.join(turn)
        try:
            for count, message in enumerate(messages):
                if piece >= PIECE_BYTES:
                    piece = 0
                    line.pass_on()
                while self.takes and not (line.is_first(turn) and self._admits(PUT_BYTES + MARK_BYTES + len(message))):
                    if turn.gives_up():
                        return count
                    self.wait_in_line(turn)
                if not self.takes:
                    return count
                self._queue(message, 1, fate)
                piece += len(message)
            return len(messages)
        finally:
            line.leave(turn)
            if line.is_empty:
                self._line = None

    def wait_in_line(self, turn: Turn) -> None:
        """Wait until this sender should look again."""
        turn.wait()

    def wait(self) -> None:
        """Wait for the next time that bytes are sent, or that this is closed or freed."""
        self._room = self._room or Event()
        self._room.wait()

    def wait_while(self, condition: Callable[[], bool]) -> None:
        """Wait for something that changes when bytes are sent, or when this is closed or freed."""
        while condition() and self.takes:
            self.wait()

    def has_room_for(self, run: Run) -> bool:
        """Whether deliver() would return without waiting."""
        return not self.takes or (not self._line and self._admits(PUT_BYTES + MARK_BYTES + len(run.packets)))

    def wait_until_free(self) -> None:
        """Wait while it is reserved."""
        self.wait_while(lambda: self.is_reserved)

    def announce(self) -> None:
        """A source may have notices to take. Never waits."""
        if self.notices and self.takes and not self.is_due:
            self.is_due = True
            self._on_due()

    # For the writer

    def take(self) -> bytes:
        """Take what is queued, then notices: now in flight. There may be more while `is_due`. Never waits."""
        self.is_due = False
        stream = b""
        if channel := self._channel:
            self._channel = None
            count = channel.qsize()
            self._size -= PUT_BYTES * count
            stream = channel.get_nowait() if count == 1 else b"".join([channel.get_nowait() for _ in range(count)])
        if self.notices and self.takes and not self.is_reserved:
            notices = b"".join([take() for take in self.notices])
            self._size += len(notices)
            self.other_bytes += len(notices)
            self._marks.length += len(notices)
            self.is_due = bool(notices)  # a source may have more
            stream += notices
        return stream

    def sent(self, count: int) -> None:
        """The kernel has the next `count` bytes in flight. Waiting puts look for room again."""
        self._size -= count
        if done := self._marks.sent(count):
            self._size -= MARK_BYTES * done
        if self._room or self._line:
            self._wake()

    def drop(self, stream: bytes, end: int, keep: int = 0) -> int:
        """Drop all but the first `end` bytes of `stream`, the part in flight, and the `keep` bytes of a last packet.

        Returns the number of bytes dropped.
        """
        queued = len(self.take())
        start = self._marks.length - queued - len(stream)
        self._size -= MARK_BYTES * self._marks.drop(stream, start, end)
        self.sent(0)  # a cut mark may end where the kernel already is
        self._marks.length += keep
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
    def stream_bytes(self) -> int:
        """Length of the stream so far: of all that was queued and all notices taken."""
        return self._marks.length

    @property
    def empty(self) -> bool:
        """Whether nothing is queued; bytes may be in flight."""
        return self._channel is None

    @property
    def awaited(self) -> bool:
        """Whether a put waits here for room."""
        return self._room is not None or self._line is not None

    @property
    def turn(self) -> Turn:
        """The owner's, to wait in line before another client's outbox."""
        if self._turn is None:
            self._turn = Turn(lambda: not self.takes or self._has_left())
        return self._turn

    def stop_waiting(self) -> None:
        """The owner's session shall not wait for room anywhere any more. Never waits."""
        self.turn.end()

    def advance(self, event: OutputEvent) -> bool:
        """Enter the state that `event` leads to (states.OUTPUT); False where it leads nowhere. Never waits."""
        state = OUTPUT.get((self.state, event))
        if state is None:
            return False
        self.state = state
        self.takes = state is Output.OPEN
        self.closed = state not in (Output.OPEN, Output.UNREACHABLE)
        self._wake()
        return True

    def close(self, last_packet: bytes = b"") -> None:
        """Take nothing more except one last packet, which needs no room. Only the first close counts. Never waits."""
        if self.advance(OutputEvent.CLOSE):
            self.last_packet = last_packet
            if last_packet:
                self._queue(last_packet)

    def _has_room(self, cost: int) -> bool:
        return self._size + cost <= self._limit

    def _admits(self, cost: int) -> bool:
        return self._size + cost <= self._limit and not self.is_reserved

    def _wake(self) -> None:
        room, self._room = self._room, None
        if room:
            room.set()
        if self._line:
            self._line.call()

    def _put_some(self, parts: Sequence[bytes], fate: Fate | None) -> int:
        """Queue parts one by one, each as soon as there is room for it."""
        cost = PUT_BYTES + MARK_BYTES if fate else PUT_BYTES
        for count, part in enumerate(parts):
            while not self._has_room(cost + len(part)) and self.takes:
                self.wait()
            if not self.takes:
                return count
            self._queue(part, 1, fate)
        return len(parts)

    def _queue(self, packets: bytes, messages: int = 0, fate: Fate | None = None) -> None:
        self._mark(packets, messages, fate)
        self._size += PUT_BYTES
        if self._channel is None:
            self._channel = SimpleQueue()
        self._channel.put(packets)
        if not self.is_due:
            self.is_due = True
            self._on_due()

    def _mark(self, packets: bytes, messages: int, fate: Fate | None) -> None:
        """Count packets that become the end of the stream."""
        marks = self._marks
        begin = marks.length
        marks.length = begin + len(packets)
        self._size += len(packets)
        if fate:
            self._size += MARK_BYTES
            marks.append((begin, marks.length, messages, fate))
