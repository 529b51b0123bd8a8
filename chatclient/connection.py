"""A client's socket: who reads from it, who writes to it, and for how long.

There is no thread of its own. A caller that waits while nobody reads becomes the reader and hands each answer to the
call that waits for it. Callers may be threads or greenlets, patched or not.
"""

import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from time import monotonic

from chatclient.dialogue import Call, Dialogue, Ending, Event
from chatclient.errors import ConnectionClosed, ConnectionFailed, explain
from chatclient.tls import RECORD_BYTES, TlsSocket, start_tls
from chatnet.address import format_address, is_loopback
from protocol import rest_of_packet

RECEIVE_BYTES = 65536
FOLLOW_SECONDS = 0.1  # how soon a blocked writer notices that the thread that read for it has left
VANISHED_SECONDS = 60  # so long after it was sent, what the other host does not acknowledge ends the connection
QUIET_SECONDS = 30.0  # without input, before the server is asked for a sign of life
OPTIONS = {  # of TCP, where the system has them
    "TCP_NODELAY": 1,
    "TCP_KEEPIDLE": 60,  # seconds
    "TCP_KEEPINTVL": 10,  # seconds
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 1000 * VANISHED_SECONDS,
}


class ClientConnection:
    """A non-blocking socket and the dialogue over it.

    A deadline is a time of monotonic(); None means never. Every waiting method raises TimeoutError at its deadline, and
    ConnectionClosed once the connection has ended.
    """

    def __init__(self, host: str, port: int, timeout: float | None, tls: ssl.SSLContext | None) -> None:
        """Connect within `timeout` seconds. Raises ConnectionFailed."""
        self._socket = _connect(host, port, timeout, tls)
        self._record = RECORD_BYTES if tls else 0  # bytes that a send may have encrypted although it found no room
        self._changed = threading.Condition()  # guards what follows, and every use of the socket
        self._dialogue = Dialogue()
        self._reading = False
        self._polling = 0
        self._probe_at = monotonic() + QUIET_SECONDS
        self._probed = False  # since something came
        self._calling = threading.Lock()  # one call at a time
        self._writing = threading.Lock()  # keeps packets whole; guards what follows
        self._rest = b""  # the rest of a packet or record that a deadline cut in two: it is sent before anything else

    @property
    def exposed(self) -> bool:
        """Whether others could read what is sent: it is not encrypted and leaves this machine."""
        if isinstance(self._socket, TlsSocket):
            return False
        try:
            return not is_loopback(self._socket.getpeername()[0])
        except OSError:  # the peer is gone
            return False

    @property
    def online(self) -> dict[str, int]:
        """The online users' ids by name, as of the last packet read; a change makes a new dict."""
        with self._changed:
            return self._dialogue.online

    @property
    def known(self) -> dict[str, int]:
        """All users seen so far, online or not; it may grow during iteration."""
        return self._dialogue.known

    @property
    def sent(self) -> int:
        """The number of the last Message sent."""
        return self._dialogue.sent

    @property
    def ending(self) -> Ending | None:
        """Why the connection has ended."""
        return self._dialogue.ending

    def ask(self, call: Call, deadline: float | None) -> None:
        """Make this call and wait until it is done."""
        with _held(self._calling, deadline):
            self._write(partial(self._dialogue.ask, call), deadline)
            with self._changed:
                self._wait(lambda: call.done, deadline)

    def tell(self, texts: Sequence[bytes], deadline: float | None) -> range:
        """Send Messages; returns their numbers.

        After a TimeoutError the first ones have been sent, and the others will not be.
        """
        last = self._write(partial(self._dialogue.tell, texts), deadline)
        return range(last - len(texts) + 1, last + 1)

    def receive(self, deadline: float | None) -> Event:
        """The next event, oldest first; events that came before the ending are still returned."""
        with self._changed:
            self._wait(lambda: self._dialogue.events, deadline)
            return self._dialogue.events.popleft()

    def close(self) -> None:
        """End the connection and every waiting call; may be called twice."""
        with self._changed:
            self._end("this side closed the connection")
            with suppress(OSError):  # no longer connected: nobody waits
                self._socket.shutdown(socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self._polling)  # a polled descriptor must not be reused
            self._socket.close()

    # Writing

    def _write(self, begin: Callable[[], bytes], deadline: float | None) -> int:
        """Send the packets that `begin` makes when their turn comes; a TimeoutError may cut one in two.

        Returns the number of the last Message sent.
        """
        with _held(self._writing, deadline):
            while self._rest:
                self._rest = self._rest[self._send_some(self._rest, deadline) :]
            with self._changed:
                packets = begin()
            sent = 0
            try:
                while sent < len(packets):
                    sent += self._send_some(memoryview(packets)[sent:], deadline)
            finally:
                taken = min(sent + self._record, len(packets))
                self._rest = packets[sent:taken] + rest_of_packet(packets, taken)
                with self._changed:
                    self._dialogue.take_back(packets[sent + len(self._rest) :])
            last = self._dialogue.sent
        with self._changed:
            self._send_due()
        return last

    def _send_some(self, data: bytes | memoryview, deadline: float | None) -> int:
        """Send as much as there is room for, at least one byte.

        Goes on reading while it waits; otherwise two clients that flood each other would wait for ever.
        """
        with self._changed:
            expired = False
            while True:
                self._raise_if_ended()
                try:
                    return self._socket.send(data)
                except BlockingIOError:
                    if expired:
                        raise TimeoutError("timed out") from None
                except OSError as error:
                    self._break(error)
                    continue
                expired = _left(deadline) == 0
                if self._reading:
                    self._poll(select.POLLOUT, min(deadline or float("inf"), monotonic() + FOLLOW_SECONDS))
                else:
                    self._poll(select.POLLIN | select.POLLOUT, deadline)

    def _send_due(self) -> None:
        """Send the due Pings and Pongs unless a packet is being written; then its writer sends them."""
        if self._dialogue.ending or not self._dialogue.due or not self._writing.acquire(blocking=False):
            return
        self._rest += self._dialogue.take_due()
        with suppress(OSError):  # no room: the next write sends them; the next read notices a broken connection
            self._rest = self._rest[self._socket.send(self._rest) :]
        self._writing.release()

    # Reading; the caller holds the lock

    def _wait(self, ready: Callable[[], object], deadline: float | None) -> None:
        """Wait until `ready()`. Checks the deadline after a try, so that a limit of 0 still takes what is there."""
        expired = False
        while not ready():
            self._raise_if_ended()
            if expired:
                raise TimeoutError("timed out")
            expired = _left(deadline) == 0
            if self._reading:
                self._changed.wait(_left(deadline))
            else:
                self._poll(select.POLLIN, deadline)

    def _poll(self, flags: int, deadline: float | None) -> None:
        """Wait for the socket without the lock. With POLLIN, the caller is the only reader meanwhile."""
        reads = bool(flags & select.POLLIN)
        self._reading |= reads
        self._polling += 1
        poll = select.poll()
        poll.register(self._socket, flags)
        left = _left(min(deadline or inf, self._probe_at) if self._dialogue.is_online else deadline)
        self._changed.release()
        try:
            poll.poll(None if left is None else left * 1000)
        finally:
            self._changed.acquire()
            self._polling -= 1
            if reads:
                self._reading = False
                taken = self._read()
                while self._record and 0 < taken < RECEIVE_BYTES and (more := self._read()):
                    taken += more  # each read returns only one TLS record, however short
                self._look_for_life(bool(taken))
            self._changed.notify_all()

    def _read(self) -> int:
        """Read what has arrived; returns the number of bytes."""
        if self._dialogue.ending:
            return 0
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._end(f"the connection broke ({explain(error)})")
            return 0
        self._dialogue.receive(data)
        self._send_due()
        return len(data)

    def _look_for_life(self, came: bool) -> None:
        """After a while without input, send a Ping: TCP reports only that what was *sent* does not arrive."""
        if not came and (monotonic() < self._probe_at or not self._dialogue.is_online):
            return
        self._probe_at = monotonic() + QUIET_SECONDS
        if came:
            self._probed = False
        elif self._probed and not hasattr(socket, "TCP_USER_TIMEOUT"):
            self._end(f"the server has not answered for {2 * QUIET_SECONDS:.0f} seconds")
        else:
            self._probed = True
            self._dialogue.probe()
            self._send_due()

    # Ending; the caller holds the lock

    def _break(self, error: OSError) -> None:
        """Sending fails; the Error that says why may still wait to be read."""
        while self._read():
            continue
        self._end(f"the connection broke ({explain(error)})")

    def _end(self, text: str) -> None:
        self._dialogue.end(text)
        self._changed.notify_all()

    def _raise_if_ended(self) -> None:
        if self._dialogue.ending:
            raise ConnectionClosed(*self._dialogue.ending)


def _connect(host: str, port: int, timeout: float | None, tls: ssl.SSLContext | None) -> socket.socket | TlsSocket:
    deadline = None if timeout is None else monotonic() + timeout
    try:
        connection = socket.create_connection((host, port), timeout)
        _set_options(connection)
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name with an empty or overlong label
        raise ConnectionFailed(f"nobody answers at {format_address(host, port)} ({explain(error)})") from error
    return start_tls(connection, tls, host, port, deadline) if tls else connection


def _set_options(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in OPTIONS.items():
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    connection.setblocking(False)


def _left(deadline: float | None) -> float | None:
    """Seconds until the deadline, at least 0."""
    return None if deadline is None else max(0.0, deadline - monotonic())


@contextmanager
def _held(lock: threading.Lock, deadline: float | None) -> Iterator[None]:
    left = _left(deadline)
    if not lock.acquire(timeout=-1 if left is None else left):
        raise TimeoutError("timed out")
    try:
        yield
    finally:
        lock.release()
