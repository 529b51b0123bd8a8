"""Watches for a blocked loop: nothing may block it, since it serves every client."""

import logging
from sys import _current_frames  # documented, in spite of its name
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

    A timer of the loop beats; everything else in the loop is as late as the beat. A thread, which runs while the loop
    is blocked, records the stack of the code that blocks it, for the log. Code that holds the interpreter's lock leaves
    no stack: faulthandler's watchdog needs no lock, but it reads frames that may be gone and can crash the server. If
    the thread was late too and no processor time was used, no code blocked the loop: the system did not run the server.
    """

    def __init__(self) -> None:
        self.blocked = 0  # how often the loop was blocked
        self._worst = self._worst_before = 0.0  # longest delay in this window and in the previous one, in seconds
        self._beats = 0
        self._due = 0.0  # when the next beat should fire
        self._caught = (0.0, "")  # the `_due` of a late beat, and the stack of what made it late
        self._look_due = 0.0  # when the thread should look next
        self._missed = 0.0  # seconds by which the thread was late, since the last beat
        self._used = 0.0  # processor time up to the last beat, in seconds

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
        """The longest delay of the last ten to twenty seconds, in seconds."""
        return max(self._worst, self._worst_before)

    def _beat(self) -> None:
        now, used = monotonic(), process_time()
        late = now - self._due
        self._worst = max(self._worst, late)
        if late > BLOCKED_SECONDS:
            self.blocked += 1
            missed = self._missed + max(0.0, now - self._look_due)  # the thread may not have looked yet
            self._log(late, min(missed, late - (used - self._used)))
        self._missed, self._used = 0.0, used
        self._beats += 1
        if self._beats % WINDOW_BEATS == 0:
            self._worst, self._worst_before = 0.0, self._worst
        self._due = monotonic() + BEAT_SECONDS

    def _log(self, late: float, not_run: float) -> None:
        due, stack = self._caught
        found = stack if due == self._due else "(no stack)"
        why = ", since the system did not run the server" if not_run > late / 2 else f"\n{found}"
        log.warning("the loop was blocked for %.2f s%s", late, why)

    def _watch(self, loop_thread: int) -> None:
        """Run in a thread, where gevent's patched functions must not be used."""
        while self._watching:
            self._look_due = monotonic() + BEAT_SECONDS
            _sleep(BEAT_SECONDS)
            now, due = monotonic(), self._due
            missed = now - self._look_due
            self._missed += missed
            is_new = due != self._caught[0]
            if missed < BLOCKED_SECONDS / 2 < now - due and is_new:  # a late sample would blame the wrong code
                self._caught = due, "".join(format_stack(_current_frames()[loop_thread]))
