"""Ids that follow the order of events on all nodes: a clock that never falls behind a clock it has heard of."""

import time

NUMBER_BITS = 11  # of an id, at its end: the node's number
NUMBERS = 1 << NUMBER_BITS


class Clock:
    """A hybrid logical clock in microseconds (Kulkarni et al. 2014): an effect has a greater id than its cause."""

    def __init__(self) -> None:
        self.number = 0  # of the node, so that ids of different nodes differ
        self.now = 0  # microseconds of Unix time, or the highest clock heard of

    def new_id(self) -> int:
        """A new id of 63 bits, greater than all before."""
        self.now = max(self.now + 1, time.time_ns() // 1000)
        return self.now << NUMBER_BITS | self.number % NUMBERS

    def hear(self, other: int) -> None:
        """Take note of another node's clock."""
        self.now = max(self.now, other)
