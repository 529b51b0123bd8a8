"""Whether this node still is what it takes itself for: a process that stood still may long be taken for dead."""

import time

from gevent.event import Event

ALONE_SECONDS = 8.0  # between two looks whether Redis is back, at most
CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # the first goes on while the machine sleeps


def now() -> float:
    """In seconds; it goes on while the process stands still."""
    return time.clock_gettime(CLOCK)


class Lease:
    """Certain for a time after each look at Redis, whatever that has said; in between `hold` waits for the next one.

    The time is measured from before the look and as long as the lease, so that nobody else has ended it meanwhile.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.certain_until = 0.0  # by now()
        self._looked = Event()

    def confirm(self, asked: float) -> None:
        """Redis, which was asked at this moment, has renewed it."""
        self._certain(asked + self.seconds)

    def go_on_alone(self) -> None:
        """Redis cannot be reached, so that nobody here can know better before the next look."""
        self._certain(now() + ALONE_SECONDS)

    def _certain(self, until: float) -> None:
        self.certain_until = until
        self._looked.set()
        self._looked.clear()

    def hold(self) -> None:
        """Wait until it is certain."""
        while now() >= self.certain_until:
            self._looked.wait()
