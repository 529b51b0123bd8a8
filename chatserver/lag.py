"""Whether the loop is held up: nothing may block it, since it serves everyone."""

import faulthandler
import logging
from tempfile import TemporaryFile
from time import monotonic
from typing import Self

from gevent import get_hub

BEAT_SECONDS = 0.05
BLOCKED_SECONDS = 0.1
WINDOW_BEATS = 200  # ten seconds

log = logging.getLogger("chat")


class LoopLag:
    """Measures how late the loop is, within a `with` block.

    A timer of the loop beats; how late it comes is how late everything is. Once it is late by BLOCKED_SECONDS, a
    watchdog that needs no lock of Python's takes the stack of whoever blocks it, for the log.
    """

    def __init__(self) -> None:
        self.blocked = 0  # how often
        self._worst = self._worst_before = 0.0  # of this window, and of the one before it
        self._beats = 0

    def __enter__(self) -> Self:
        self._stack = TemporaryFile("w+", prefix="chat-stack-")
        self._timer = get_hub().loop.timer(BEAT_SECONDS, BEAT_SECONDS)
        self._due = monotonic() + BEAT_SECONDS
        self._timer.start(self._beat)
        self._watch()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.close()
        faulthandler.cancel_dump_traceback_later()
        self._stack.close()

    @property
    def worst(self) -> float:
        """The longest of the last ten to twenty seconds, in seconds."""
        return max(self._worst, self._worst_before)

    def _beat(self) -> None:
        late = monotonic() - self._due
        self._worst = max(self._worst, late)
        if late > BLOCKED_SECONDS:
            self.blocked += 1
            log.warning("the loop was blocked for %.2f s\n%s", late, self._take_stack())
        self._beats += 1
        if self._beats % WINDOW_BEATS == 0:
            self._worst, self._worst_before = 0.0, self._worst
        self._due = monotonic() + BEAT_SECONDS
        self._watch()

    def _watch(self) -> None:
        faulthandler.dump_traceback_later(BEAT_SECONDS + BLOCKED_SECONDS, file=self._stack)

    def _take_stack(self) -> str:
        self._stack.seek(0)
        stack = self._stack.read()
        self._stack.seek(0)
        self._stack.truncate()
        return stack
