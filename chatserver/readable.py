"""Waiting for a socket's input at the lowest price that gevent has.

`hub.wait` makes an object for each wait, starts the watcher and stops it again. Here the watcher goes on, and switches
straight to the greenlet that waits. Public names of gevent alone: `loop.io`, `loop.run_callback`, `Hub.switch`.
"""

from gevent import get_hub, getcurrent
from greenlet import greenlet

READ = 1  # libev's event bit


class InputOver(Exception):
    """There is nothing to wait for any more."""


class Readable:
    """Wakes a greenlet when a socket has input.

    1. One greenlet at a time waits; while none does, input may come, and costs one call.
    2. `interrupt` is for who waits now, and is without effect where nobody does.
    3. What kills or times out the greenlet ends its wait as any other.
    """

    def __init__(self, fileno: int) -> None:
        self._hub = get_hub()
        self._watcher = self._hub.loop.io(fileno, READ)
        self._is_watched = False
        self._waiter: greenlet | None = None

    def wait(self) -> None:
        """Until there is input, or its end, or an error that reading tells. Raises InputOver."""
        if not self._is_watched:
            self._is_watched = True
            self._watcher.start(self._wake)
        self._waiter = getcurrent()
        try:
            self._hub.switch()
        finally:
            self._waiter = None

    def interrupt(self) -> None:
        """End the wait with InputOver. Never waits."""
        if self._waiter:
            self._hub.loop.run_callback(self._throw, self._waiter)

    def close(self) -> None:
        """To be called before the socket is closed."""
        self._watcher.close()

    def _wake(self) -> None:
        if self._waiter:
            self._waiter.switch()
        else:
            self._is_watched = False
            self._watcher.stop()  # or the loop would find it readable again and again

    def _throw(self, waiter: greenlet) -> None:
        if waiter is self._waiter:  # it may have been woken meanwhile
            waiter.throw(InputOver())
