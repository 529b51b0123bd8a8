"""Whether the loop is held up: nothing may block it, since it serves everyone."""

import logging
import sys
from time import monotonic, process_time
from traceback import format_stack
from typing import Self

from gevent import get_hub
from gevent.monkey import get_original

BEAT_SECONDS = 0.05
BLOCKED_SECONDS = 0.1
WINDOW_BEATS = 200  # ten seconds

log = logging.getLogger("chat")

_sleep = get_original("time", "sleep")
_start_thread = get_original("_thread", "start_new_thread")
_thread_id = get_original("_thread", "get_ident")


class LoopLag:
    """Measures how late the loop is, within a `with` block.

    A timer of the loop beats; how late it comes is how late everything is. A thread, which goes on while the loop does
    not, takes the stack of whoever blocks it, for the log. What holds the interpreter's lock meanwhile leaves no stack:
    faulthandler's watchdog needs no lock, but reads frames that may be gone, and can crash the server. Where the thread
    was late as well, and no processor was used, nobody blocked the loop: the system did not run the server.
    """

    def __init__(self) -> None:
        self.blocked = 0  # how often
        self._worst = self._worst_before = 0.0  # of this window, and of the one before it
        self._beats = 0
        self._due = 0.0  # when the next beat should come
        self._caught = (0.0, "")  # the stack of a loop that was late, and which beat it was late for
        self._look_due = 0.0  # when the thread should look next
        self._missed = 0.0  # seconds that it was late by, since the last beat
        self._used = 0.0  # of a processor, up to the last beat

    def __enter__(self) -> Self:
        self._due = self._look_due = monotonic() + BEAT_SECONDS
        self._used = process_time()
        self._timer = get_hub().loop.timer(BEAT_SECONDS, BEAT_SECONDS)
        self._timer.start(self._beat)
        self._watching = True
        _start_thread(self._watch, (_thread_id(),))
        return self

    def __exit__(self, *_: object) -> None:
        self._watching = False
        self._timer.close()

    @property
    def worst(self) -> float:
        """The longest of the last ten to twenty seconds, in seconds."""
        return max(self._worst, self._worst_before)

    def _beat(self) -> None:
        now, used = monotonic(), process_time()
        late = now - self._due
        self._worst = max(self._worst, late)
        if late > BLOCKED_SECONDS:
            self.blocked += 1
            missed = self._missed + max(0.0, now - self._look_due)  # and the thread may be about to look
            self._tell(late, min(missed, late - (used - self._used)))
        self._missed, self._used = 0.0, used
        self._beats += 1
        if self._beats % WINDOW_BEATS == 0:
            self._worst, self._worst_before = 0.0, self._worst
        self._due = monotonic() + BEAT_SECONDS

    def _tell(self, late: float, not_run: float) -> None:
        due, stack = self._caught
        found = stack if due == self._due else "(no stack)"
        why = ", since the system did not run the server" if not_run > late / 2 else f"\n{found}"
        log.warning("the loop was blocked for %.2f s%s", late, why)

    def _watch(self, loop_thread: int) -> None:
        """Runs in a thread of its own, where gevent's own names must not be used."""
        while self._watching:
            self._look_due = monotonic() + BEAT_SECONDS
            _sleep(BEAT_SECONDS)
            now, due = monotonic(), self._due
            missed = now - self._look_due
            self._missed += missed
            if missed < BLOCKED_SECONDS / 2 < now - due and due != self._caught[0]:  # who comes late sees somebody else
                self._caught = due, "".join(format_stack(sys._current_frames()[loop_thread]))
