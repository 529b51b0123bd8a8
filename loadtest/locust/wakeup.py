"""Waking up on time: an event loop's timers count whole milliseconds, which is longer than the latency to be measured.

On Linux a timerfd (timerfd_create(2)) wakes the loop up some 50 microseconds late. Elsewhere the loop's timers must do.
"""

import ctypes
import os
from time import monotonic

import gevent

CLOCK_MONOTONIC = 1
TFD_TIMER_ABSTIME = 1
READ = 1  # the event for which a loop's io watcher waits

libc = ctypes.CDLL(None, use_errno=True)


class Timespec(ctypes.Structure):
    """struct timespec."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Itimerspec(ctypes.Structure):
    """struct itimerspec."""

    _fields_ = (("interval", Timespec), ("value", Timespec))


class LoopWakeup:
    """Uses the timers of the event loop, which exist on every system."""

    def wait_until(self, moment: float) -> None:
        """Sleep until this moment of monotonic(), while other greenlets run."""
        gevent.sleep(max(0.0, moment - monotonic()))

    def close(self) -> None:
        """Free what the system provides; nothing here."""


class KernelWakeup(LoopWakeup):
    """Uses a timerfd, for one greenlet. Raises OSError when no descriptors are left."""

    def __init__(self) -> None:
        self._fd = _checked(libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        self._hub = gevent.get_hub()
        self._watcher = self._hub.loop.io(self._fd, READ)
        self._spec = Itimerspec()

    def wait_until(self, moment: float) -> None:
        if moment <= monotonic():
            return
        seconds, fraction = divmod(moment, 1)
        self._spec.value = Timespec(int(seconds), int(fraction * 1e9))
        _checked(libc.timerfd_settime(self._fd, TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None))
        self._hub.wait(self._watcher)
        os.read(self._fd, 8)  # the number of expirations; the descriptor stays readable until it is read

    def close(self) -> None:
        self._watcher.close()
        os.close(self._fd)


def _checked(result: int) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


Wakeup = KernelWakeup if hasattr(libc, "timerfd_create") else LoopWakeup
