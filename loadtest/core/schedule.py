"""When to send: at fixed times (open arrival), so that a server that stalls cannot slow down the tester."""

import random
from math import inf


class Schedule:
    """When one user's messages are due: `rate` a second, from `start` until `end`, in seconds of one clock.

    A missed time is not skipped, and those after it do not move: the message is sent late, and its latency counts from
    when it was due. Each schedule begins at a random time within its first period, so that users do not send in step.
    """

    def __init__(self, rate: float, start: float, end: float = inf) -> None:
        self._period = 1 / rate if rate else inf
        self._start = start + random.random() * self._period if rate else inf
        self._end = end
        self._taken = 0
        self.due = self._moment()  # when the next message is due; infinity if there is none

    def take(self) -> float:
        """Return when the next message is due, and go on to the one after it."""
        due = self.due
        self._taken += 1
        self.due = self._moment()
        return due

    def is_due(self, now: float) -> bool:
        """Whether a message should have been sent by now."""
        return self.due <= now

    def _moment(self) -> float:
        """Computed from the start: adding a period to the last moment would add up rounding errors."""
        moment = self._start + self._taken * self._period if self._start < inf else inf
        return moment if moment < self._end else inf
