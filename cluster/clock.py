"""Ids in the order in which things happen, on all nodes: a clock that runs ahead of whatever it has heard of."""

import time

NUMBER_BITS = 11  # of an id, at its end: the node's number
NUMBERS = 1 << NUMBER_BITS


class Clock:
    """A hybrid logical clock in microseconds (Kulkarni et al. 2014): what follows from something has a greater id."""

    def __init__(self) -> None:
        self.number = 0  # tells the ids of one node from another's
        self.now = 0  # in microseconds of Unix time, or what others are ahead of it

    def new_id(self) -> int:
        """63 bits."""
        self.now = max(self.now + 1, time.time_ns() // 1000)
        return self.now << NUMBER_BITS | self.number % NUMBERS

    def hear(self, other: int) -> None:
        """Another node's clock says so."""
        self.now = max(self.now, other)
