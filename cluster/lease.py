"""Whether this node still is what it takes itself for: a process that stood still may long be taken for dead."""

import time

from gevent.event import Event


class Lease:
    """Certain for a time after each look at Redis, whatever that has said; in between `hold` waits for the next one.

    The time is measured from before the look and as long as the lease, so that nobody else has ended it meanwhile.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.certain_until = 0.0  # by time.monotonic(), which goes on while the process stands still
        self._looked = Event()

    def looked(self, at: float) -> None:
        """Redis was asked at this moment, by time.monotonic(): it has confirmed the lease, or it cannot be reached."""
        self.certain_until = at + self.seconds
        self._looked.set()
        self._looked.clear()

    def hold(self) -> None:
        """Wait until it is certain."""
        while time.monotonic() >= self.certain_until:
            self._looked.wait()
