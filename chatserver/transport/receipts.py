"""How far the Messages of one connection have come (section 7.2)."""

import random
from bisect import bisect_left
from collections.abc import Callable

from protocol import Level, encode_receipt

MAX_RANGES = 1000  # that wait to be told, before the one who sends is made to wait; and told at once
MAX_NUMBER = 2**32 - 1


class Receipts:
    """What one client has to be told, as ranges of its Messages' numbers. No number over MAX_NUMBER can be told."""

    def __init__(self, announce: Callable[[], None]) -> None:
        """`announce` says that there is something to take."""
        self.connection = random.getrandbits(62) + 1  # tells what this connection has sent from what others have
        self._announce = announce
        self._ranges: dict[Level, list[tuple[int, int]]] = {level: [] for level in Level}

    def reach(self, level: Level, first: int, last: int) -> None:
        """The Messages of these numbers have come so far. Never waits."""
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
        """The packets that are due, or MAX_RANGES of each level, what is stored first; then these are not any more."""
        said = [
            encode_receipt(level, *numbers) for level, ranges in self._ranges.items() for numbers in ranges[:MAX_RANGES]
        ]
        for ranges in self._ranges.values():
            del ranges[:MAX_RANGES]
        return b"".join(said)

    def is_full(self) -> bool:
        """Whether so many wait to be told that no more should come about."""
        return any(len(ranges) > MAX_RANGES for ranges in self._ranges.values())
