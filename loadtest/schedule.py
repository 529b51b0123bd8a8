"""When to send: open arrival, so that a server that stalls cannot slow down what measures it."""

import random


class Schedule:
    """The moments at which one user's messages are due: `rate` a second from `start` on, in seconds of one clock.

    A moment that was missed is not skipped, and the next one does not move: what was late is sent late, and its latency
    counts from when it was due. Each schedule begins somewhere in its first period, so that users do not march in step.
    """

    def __init__(self, rate: float, start: float, end: float = float("inf")) -> None:
        self._period = 1 / rate if rate else float("inf")
        self._start = start + random.random() * self._period if rate else float("inf")
        self._end = end
        self._taken = 0
        self.due = self._start  # the next message's moment

    def take(self) -> float:
        """The moment at which this message was due; on to the next one."""
        due = self.due
        self._taken += 1
        self.due = self._start + self._taken * self._period  # not a sum: its rounding errors would add up
        return due

    def is_due(self, now: float) -> bool:
        """Whether a message should be on its way by now."""
        return self.due <= now and not self.is_over()

    def is_over(self) -> bool:
        """Whether every message that falls before the end has been taken."""
        return self.due >= self._end
