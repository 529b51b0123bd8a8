"""One client's socket: the only place that reads it, writes it and closes it.

Below gevent's socket API on purpose (its `recv` first tries in vain, its `sendall` asks for a socket option each time):
a plain socket that does not block, one lasting watcher to wait for input (readable.py), one callback per loop turn to
send what has come together, and a writer greenlet only while a client is slow. All names are gevent's public ones:
`hub.wait`, `loop.io`, `loop.run_callback`.
"""

import fcntl
import logging
import socket
import sys
import termios
from contextlib import suppress
from functools import partial

import gevent
from gevent import Greenlet, Timeout, get_hub
from gevent.event import Event

from chatserver.counters import Counters
from chatserver.transport.outbox import Outbox
from chatserver.transport.readable import InputOver, Readable
from chatserver.transport.tls import TlsStream
from protocol import Reason, encode_error, rest_of_packet

WRITE = 2  # libev's event bit
RECV_BYTES = 16384  # 64 KiB costs a fifth more CPU per message, and keeps everyone else waiting four times as long
LINGER_SECONDS = 2.0  # section 5: how long an Error that closes is kept for a client to read

log = logging.getLogger("chat")


class NoProgress(Exception):
    """The client took nothing of what waits for it, for the whole timeout."""


class TimeIsUp(Exception):
    """The last words have taken as long as they may, progress or not."""


class Connection:
    """A client's byte stream in both directions. `outcome` says why it ended, where it was not the client that left."""

    def __init__(
        self, sock: socket.socket | TlsStream, counters: Counters, outbox_bytes: int, write_timeout: float
    ) -> None:
        """`sock` is connected and blocks nowhere; `outbox_bytes` as in Outbox; `write_timeout` in seconds."""
        self._hub = get_hub()
        self.outbox = Outbox(outbox_bytes, partial(self._hub.loop.run_callback, self._flush))
        self.outcome = ""
        self.waiting_since: float | None = None  # for input, in seconds by the loop's clock; None while it is handled
        self.at_rest = False  # its session has handled all that was read, and reads no more
        self.said_all = False  # nothing is left but to wait until the client closes, too
        self.undelivered = 0  # bytes that were queued for this client and never sent
        self._sock = sock
        self._counters = counters
        self._write_timeout = write_timeout
        self._readable = Readable(sock.fileno())
        self._at_end = False  # of the input: the client has closed
        self._is_stopped = False  # no input is wanted any more
        self._pause: Event | None = None  # that is cut short then
        self._writer: Greenlet[[], None] | None = None
        self._is_taken_over = False  # a greenlet sends, not the hub
        self._stream = b""  # taken from the outbox: whole packets ...
        self._sent = 0  # ... of which the kernel has this many bytes
        self._gave_up = False

    # Input

    def read(self, size: int = RECV_BYTES) -> bytes:
        """Wait for input and return at most `size` bytes of it; b"" when there is no more to come, or to care for."""
        self.waiting_since = self._hub.loop.now()
        try:
            data = b"" if self._is_stopped else self._receive(size)
        except InputOver:
            data = b""
        except OSError as error:
            self.end_with(error.strerror or str(error))
            data = b""
        self.waiting_since = None
        self._counters.bytes_received += len(data)
        return data

    def pause(self, seconds: float) -> None:
        """Leave input where it is for so long, or until there is nothing to wait for any more."""
        if not self._is_stopped:
            self._pause = Event()
            self._pause.wait(seconds)
            self._pause = None

    def stop_reading(self) -> None:
        """`read` returns b"" from now on; one that waits is woken. Never waits."""
        self._is_stopped = True
        if self._pause:
            self._pause.set()
        self._readable.interrupt()

    def _receive(self, size: int) -> bytes:
        """One chunk of input, b"" at its end. Raises InputOver, and OSError where the connection is broken."""
        while True:
            self._readable.wait()
            try:
                data = self._sock.recv(size)
            except BlockingIOError:
                continue
            self._at_end = not data
            return data

    # Output

    def end_with(self, outcome: str) -> None:
        """Note why this ends: the first cause is the one to tell."""
        self.outcome = self.outcome or outcome

    def close(self, reason: Reason | None, outcome: str = "") -> None:
        """End this connection from outside its session, telling the client the reason if there is one; `outcome` says
        more, or what there is no reason for. Never waits.
        """
        self.end_with(outcome or reason or "")
        self.outbox.close(encode_error(reason) if reason else b"")
        self.stop_reading()

    def _flush(self) -> None:
        """Runs in the hub, once for all that was put in a turn of the loop, and so cannot wait."""
        if not self._is_taken_over and not self._send():
            self._is_taken_over = True
            self._writer = gevent.spawn(self._write)

    def _write(self) -> None:
        """Takes over from the hub while the client is slower than those who write to it."""
        try:
            self._send_all(self._write_timeout)
        except NoProgress:
            self.close(Reason.TOO_SLOW)
            self._give_up()
            with suppress(NoProgress):  # now, as the session may still be handing over what it has read
                self._send_all(LINGER_SECONDS)
        self._is_taken_over = False

    def _send_all(self, timeout: float) -> None:
        """Send until nothing is left. Raises NoProgress once the client takes nothing for `timeout` seconds."""
        writable = self._hub.loop.io(self._sock.fileno(), WRITE)
        try:
            while not self._send():
                unacknowledged = self._unacknowledged()
                try:
                    with Timeout(timeout, NoProgress):
                        self._hub.wait(writable)
                except NoProgress:
                    if self._unacknowledged() >= unacknowledged:
                        raise
        finally:
            writable.close()

    def _unacknowledged(self) -> int:
        """Bytes that the kernel still has. It calls a socket writable only when a third of its buffer is free, so a
        client that is slow but steady shows here alone. 0 where the system does not tell (macOS).
        """
        try:
            return int.from_bytes(fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:
            return 0

    def _send(self) -> bool:
        """Send what the kernel takes without waiting; True when nothing is left."""
        while True:
            if self._sent == len(self._stream):
                self._stream, self._sent = self.outbox.take() if self.outbox.is_due else b"", 0
                if not self._stream:
                    return True
            try:
                count = self._sock.send(memoryview(self._stream)[self._sent :] if self._sent else self._stream)
            except BlockingIOError:
                return False
            except OSError as error:  # the peer is gone; what it sent before may still wait to be read
                self.end_with(error.strerror or str(error))
                self.outbox.lead_nowhere()
                self._discard(self._sent)
                continue
            self._sent += count
            self._counters.bytes_sent += count
            self.outbox.sent(count)

    def _give_up(self) -> None:
        """Drop what is queued, but finish the packet that is under way and keep the Error that closes (section 5)."""
        self._gave_up = True
        taken = self._sent + (self._sock.encrypted if isinstance(self._sock, TlsStream) else 0)
        end = taken + len(rest_of_packet(self._stream, taken))
        if end < len(self._stream) or not self.outbox.empty:
            self._discard(end, self.outbox.last_packet)

    def _discard(self, end: int, last_packet: bytes = b"") -> None:
        """Drop all that waits to be sent after the first `end` bytes of the stream, but for a last packet."""
        self.undelivered += self.outbox.drop(self._stream, end, len(last_packet))
        self._stream = self._stream[:end] + last_packet

    # The end

    @property
    def is_through(self) -> bool:
        """Whether finish() waits for nothing: the client has closed, and nothing is left that could be sent."""
        return self._at_end and self.outbox.empty and self._sent == len(self._stream)

    def finish(self, timeout: float) -> None:
        """Let go of the client, when its session is over: send what is queued, which may take `timeout` seconds,
        half-close, discard input until it closes too. Were unread input left, the kernel would reset the connection and
        destroy what we sent last. stop_reading() cuts this short once `said_all`.
        """
        self._is_taken_over = True  # by this greenlet
        if self._writer:
            self._writer.kill()  # it only ever waits for the kernel
        try:
            self._send_rest(timeout)
            self._sock.shutdown(socket.SHUT_WR)
            self.said_all = True
            if not self._at_end:
                self._linger()
        except OSError as error:
            log.debug("gone before the end: %s", error)
        finally:
            self._discard(self._sent)
            self._readable.close()
            self._sock.close()

    def _linger(self) -> None:
        with suppress(TimeIsUp, InputOver), Timeout(LINGER_SECONDS, TimeIsUp):
            while self._receive(RECV_BYTES):
                pass

    def _send_rest(self, timeout: float) -> None:
        if self._send():
            return
        if not self._gave_up:
            try:
                with Timeout(timeout, TimeIsUp):
                    self._send_all(timeout)
            except (NoProgress, TimeIsUp):
                self._give_up()
        with suppress(NoProgress, TimeIsUp), Timeout(LINGER_SECONDS, TimeIsUp):
            self._send_all(LINGER_SECONDS)
