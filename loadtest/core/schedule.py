"""When to send: open arrival, so that a server that stalls cannot slow down what measures it."""

import random
from math import inf


class Schedule:
    """The moments at which one user's messages are due: `rate` a second from `start` on, in seconds of one clock.

    A moment that was missed is not skipped, and the next one does not move: what was late is sent late, and its latency
    counts from when it was due. Each schedule begins somewhere in its first period, so that users do not march in step.
    """

    def __init__(self, rate: float, start: float, end: float = inf) -> None:
        self._period = 1 / rate if rate else inf
        self._start = start + random.random() * self._period if rate else inf
        self._end = end
        self._taken = 0
        self.due = self._moment()  # the next message's moment; infinity where none is to come

    def take(self) -> float:
        """The moment at which this message was due; on to the next one."""
        due = self.due
        self._taken += 1
        self.due = self._moment()
        return due

    def is_due(self, now: float) -> bool:
        """Whether a message should be on its way by now."""
        return self.due <= now

    def _moment(self) -> float:
        """Not the last one plus a period: the rounding errors would add up."""
        moment = self._start + self._taken * self._period if self._start < inf else inf
        return moment if moment < self._end else inf
