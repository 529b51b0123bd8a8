"""Waiting for a socket's input as cheaply as gevent can.

gevent's `recv` first tries in vain, and `hub.wait` makes an object for each wait, starts the watcher and stops it.
Here the socket is the standard library's, and one watcher stays started and switches straight to the waiting greenlet.
This uses only public names of gevent: `get_original`, `loop.io`, `loop.run_callback`, `Hub.switch`.
"""

import socket
from collections.abc import Callable

from gevent import get_hub, getcurrent
from gevent.monkey import get_original
from greenlet import greenlet

READ = 1  # libev's event bit
PlainSocket: type[socket.socket] = get_original("socket", "socket")


class Interrupted(Exception):
    """interrupt() ended the wait."""


def plain_socket(like: socket.socket, fileno: int) -> socket.socket:
    """A plain non-blocking socket for this descriptor, of the same kind as `like`."""
    plain = PlainSocket(like.family, like.type, like.proto, fileno)
    plain.setblocking(False)
    return plain


class Readable:
    """Wakes a greenlet when a socket has input.

    1. One greenlet at a time waits. Input that arrives while none does costs one call.
    2. `interrupt` ends the wait of the greenlet that waits now, and has no effect where none does.
    3. Killing the greenlet or a timeout in it ends the wait like any other wait.
    4. `on_input` replaces `wake` as what the loop calls, in the hub. It may read the input itself, while a greenlet
       waits, or call `wake`; it must not wait.
    """

    __slots__ = ("_hub", "_is_watched", "_on_input", "_waiter", "_watcher")

    def __init__(self, fileno: int, on_input: Callable[[], object] | None = None) -> None:
        self._hub = get_hub()
        self._on_input = on_input or self.wake
        self._watcher = self._hub.loop.io(fileno, READ)
        self._is_watched = False
        self._waiter: greenlet | None = None

    def wait(self) -> None:
        """Wait until there is input, its end, or an error that reading will raise. Raises Interrupted."""
        if not self._is_watched:
            self._is_watched = True
            self._watcher.start(self._on_input)
        self._waiter = getcurrent()
        try:
            greenlet.switch(self._hub)
        finally:
            self._waiter = None

    def interrupt(self) -> None:
        """End the wait with Interrupted. Never waits."""
        if self._waiter:
            self._hub.loop.run_callback(self._throw, self._waiter)

    def close(self) -> None:
        """Stop watching. The socket must be closed after this: closing it under a watcher can abort the process."""
        self._watcher.close()

    def wake(self) -> None:
        """Switch to the greenlet that waits; without one, stop watching. Call this in the hub."""
        if self._waiter:
            self._waiter.switch()
        else:
            self._is_watched = False
            self._watcher.stop()  # or the loop would find it readable again and again

    def _throw(self, waiter: greenlet) -> None:
        if waiter is self._waiter:  # it may have been woken meanwhile
            waiter.throw(Interrupted())
