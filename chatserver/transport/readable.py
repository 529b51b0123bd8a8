"""Waiting for a socket's input at the lowest price that gevent has.

gevent's `recv` first tries in vain, and `hub.wait` makes an object for each wait, starts the watcher and stops it.
Here the socket is the kernel's own, and the watcher goes on and switches straight to the greenlet that waits. Public
names of gevent alone: `get_original`, `loop.io`, `loop.run_callback`, `Hub.switch`.
"""

import socket

from gevent import get_hub, getcurrent
from gevent.monkey import get_original
from greenlet import greenlet

READ = 1  # libev's event bit
PlainSocket: type[socket.socket] = get_original("socket", "socket")


class InputOver(Exception):
    """There is nothing to wait for any more."""


def plain_socket(sock: socket.socket) -> socket.socket:
    """The connection of gevent's socket, which is of no use any more, in one that neither waits nor blocks."""
    plain = PlainSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    plain.setblocking(False)
    return plain


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
