"""Lets pytest-xdist run tests that gevent has patched.

A worker of xdist receives its tests in a thread that was started before conftest.py patched anything. Its main thread
waits for the next test on an event. That event is made after the patch, so it would be gevent's: the main thread finds
no greenlet that could ever set it and raises LoopExit. So execnet, below xdist, gets events and locks of the kernel.

The time is that of the four runs which shared the tests before (six minutes of tests, two rounds: 97 and 111 s, with
xdist 102 and 109 s), and there is one report.
"""

import os
from typing import Any

from gevent import monkey

allocate_lock = monkey.get_original("_thread", "allocate_lock")


class KernelEvent:
    """threading.Event as far as execnet and xdist use it."""

    def __init__(self) -> None:
        self._is_set = False
        self._gate = allocate_lock()  # open while the event is set
        self._gate.acquire()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            self._gate.release()

    def clear(self) -> None:
        if self._is_set:
            self._is_set = False
            self._gate.acquire()

    def wait(self, timeout: float | None = None) -> bool:
        if passed := self._gate.acquire(timeout=-1 if timeout is None else timeout):
            self._gate.release()
        return bool(passed)


if "PYTEST_XDIST_WORKER" in os.environ:
    from execnet.gateway_base import ThreadExecModel

    made: dict[str, Any] = {"Event": KernelEvent, "RLock": monkey.get_original("_thread", "RLock")}
    for name, make in made.items():
        setattr(ThreadExecModel, name, staticmethod(make))
