"""Which Messages lie where in an outbox's stream, and who is notified of their fate."""

from typing import Protocol, TypeAlias

from protocol import whole_packets


class Fate(Protocol):
    """Is notified of what becomes of the Messages of one put. Both methods return without waiting."""

    def delivered(self, count: int) -> None:
        """The kernel has the next `count` Messages, in order."""

    def dropped(self, count: int) -> None:
        """The last `count` Messages will never be sent."""


Mark: TypeAlias = tuple[int, int, int, Fate]  # begin and end in the stream (bytes), number of Messages, their fate


class Marks(list[Mark]):
    """The marks of the Messages that the kernel does not have yet, in stream order; `append` adds one.

    A list, since a deque is larger and there are few; and a subclass, since a method of our own would add a call to
    every put.
    """

    __slots__ = ("_sent", "length")

    def __init__(self) -> None:
        super().__init__()
        self.length = 0  # of the stream so far, in bytes; the outbox adds to it with each put
        self._sent = 0  # how many of these bytes the kernel has

    def sent(self, count: int) -> int:
        """The kernel has the next `count` bytes. Notify the fates; return how many marks are done with."""
        self._sent += count
        done = 0
        while done < len(self) and self[done][1] <= self._sent:
            done += 1
        if done:
            reached = self[:done]
            del self[:done]
            for _, _, messages, fate in reached:
                fate.delivered(messages)
        return done

    def drop(self, stream: bytes, start: int, end: int) -> int:
        """Of what lies behind the first `end` bytes of `stream`, which begins at position `start`, nothing will be
        sent. Notify the fates; return how many marks are done with.
        """
        last = start + end
        done = 0
        while self and self[-1][1] > last:
            begin, _, count, fate = self.pop()
            kept = size = 0
            if count > 1 and begin < last:  # a single Message, in however many packets, is not complete
                kept, size = whole_packets(stream[begin - start : end])
            if kept:
                self.append((begin, begin + size, kept, fate))
            else:
                done += 1
            fate.dropped(count - kept)
        self.length = last
        return done
