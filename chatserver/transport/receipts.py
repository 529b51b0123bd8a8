"""Receipts for the Messages of one connection (section 7.2)."""

import random
from bisect import bisect_left
from collections.abc import Callable

from protocol import Level, encode_receipt

MAX_RANGES = 1000  # pending ranges before the sender is throttled; also the most that take() returns for a level
MAX_NUMBER = 2**32 - 1


class Receipts:
    """A client's pending receipts, as ranges of its Messages' numbers; none above MAX_NUMBER."""

    def __init__(self, announce: Callable[[], None]) -> None:
        """`announce` is called when there are receipts to take."""
        self.connection = random.getrandbits(62) + 1  # identifies this connection's Messages in the archive
        self._announce = announce
        self._ranges: dict[Level, list[tuple[int, int]]] = {level: [] for level in Level}

    def reach(self, level: Level, first: int, last: int) -> None:
        """Messages `first` to `last` have reached this level. Never waits."""
        if last > MAX_NUMBER:
            return
        ranges = self._ranges[level]
        place = bisect_left(ranges, (first, last))
        if place < len(ranges) and ranges[place][0] == last + 1:
            last = ranges.pop(place)[1]
        if place and ranges[place - 1][1] == first - 1:
            place -= 1
            first = ranges.pop(place)[0]
        ranges.insert(place, (first, last))
        self._announce()

    def take(self) -> bytes:
        """Remove and return the pending Receipt packets, at most MAX_RANGES of each level, STORED before DELIVERED."""
        packets = [
            encode_receipt(level, *numbers) for level, ranges in self._ranges.items() for numbers in ranges[:MAX_RANGES]
        ]
        for ranges in self._ranges.values():
            del ranges[:MAX_RANGES]
        return b"".join(packets)

    @property
    def pending_ranges(self) -> int:
        """How many ranges are pending, of all levels."""
        return sum(map(len, self._ranges.values()))

    def is_full(self) -> bool:
        """Whether so many ranges are pending that the sender must be throttled."""
        return any(len(ranges) > MAX_RANGES for ranges in self._ranges.values())
