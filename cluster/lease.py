"""Whether this node still holds its lease: after a pause, the group may have declared it failed."""

import time

from gevent.event import Event

ALONE_SECONDS = 8.0  # at most between two attempts to reach Redis
CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # CLOCK_BOOTTIME goes on while the machine sleeps


def now() -> float:
    """Monotonic seconds, which go on while the process is paused."""
    return time.clock_gettime(CLOCK)


class Lease:
    """Certain for a time after each renewal; after that time, `hold` waits for the next renewal.

    The time counts from before the request and lasts as long as the lease: no other node can have ended it meanwhile.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.certain_until = 0.0  # by now()
        self._looked = Event()

    def confirm(self, asked: float) -> None:
        """Redis has renewed the lease; `asked` is when it was asked, by now()."""
        self._certain(asked + self.seconds)

    def go_on_alone(self) -> None:
        """Redis cannot be reached: nobody can end this node before the next attempt."""
        self._certain(now() + ALONE_SECONDS)

    def _certain(self, until: float) -> None:
        self.certain_until = until
        self._looked.set()
        self._looked.clear()

    def hold(self) -> None:
        """Wait until the lease is certain."""
        while now() >= self.certain_until:
            self._looked.wait()
