"""One client's socket: the only place that reads it, writes it and closes it. states.py has the life of a connection.

This works below gevent's socket API, for speed: gevent's `recv` first tries in vain, and its `sendall` asks for a
socket option each time. Here a plain non-blocking socket has one lasting watcher for input (readable.py), one callback
per loop turn that sends what was queued in it, and a writer greenlet only while a client is slow. This uses only public
names of gevent: `hub.wait`, `loop.io`, `loop.run_callback`.
"""

import fcntl
import logging
import socket
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import gevent
from gevent import Greenlet, Timeout, get_hub
from gevent.event import Event

from chatserver.counters import Counters
from chatserver.transport.outbox import Outbox
from chatserver.transport.readable import Interrupted, Readable
from chatserver.transport.states import INPUT, Input, InputEvent, Output, OutputEvent
from chatserver.transport.tls import TlsStream
from protocol import MAX_PACKET_BYTES, Reason, encode_error, rest_of_packet

WRITE = 2  # libev's event bit
ESTABLISHED = b"\1"  # the first byte of struct tcp_info, linux/tcp.h: neither side has closed
RECV_BYTES = 16384  # 64 KiB costs a fifth more CPU per message and keeps the other clients waiting four times as long
FEW_BYTES = 464  # the largest chunk that Python allocates in its own pool: a tenth of a microsecond less
LOOKS = 5  # for progress, within the time that a client may take nothing
LINGER_SECONDS = 2.0  # section 5: how long a closing connection waits for its client to read the Error and close
INPUT_OPEN = Input.OPEN  # looking a member up in its enum costs a call for each read

log = logging.getLogger("chat")


class NoProgress(Exception):
    """The client took none of the bytes in flight for the whole timeout."""


class DeadlinePassed(Exception):
    """The deadline for the last bytes has passed, with progress or without."""


class Connection:
    """A client's byte stream in both directions.

    `input` and `outbox.state` say where its life stands (states.py), `outcome` why it ended, unless the client left.
    """

    __slots__ = (
        "_chunk",
        "_chunk_bytes",
        "_counters",
        "_hub_sends",
        "_loop",
        "_pause",
        "_readable",
        "_sent",
        "_sock",
        "_stream",
        "_turn",
        "_write_timeout",
        "_writer",
        "input",
        "offer",
        "outbox",
        "outcome",
        "undelivered",
        "waiting_since",
    )

    def __init__(
        self, sock: socket.socket | TlsStream, counters: Counters, outbox_bytes: int, write_timeout: float
    ) -> None:
        """`sock` is connected and non-blocking; `outbox_bytes` as in Outbox; `write_timeout` in seconds."""
        self._loop = get_hub().loop
        self.outbox = Outbox(outbox_bytes, self._flush_soon, self._send_now, self._client_has_closed)
        self.input = Input.OPEN
        self.outcome = ""
        self.waiting_since: float | None = None  # for input, in seconds of monotonic(); None while it is handled
        self.offer: Callable[[bytes], bool] | None = None  # handles a chunk where it arrives, or does nothing: False
        self.undelivered = 0  # bytes that were queued for this client and never sent
        self._sock = sock
        self._counters = counters
        self._write_timeout = write_timeout
        self._readable = Readable(sock.fileno(), self._arrived)
        self._chunk: bytes | Exception | None = None  # what the hub has read for the greenlet
        self._chunk_bytes = FEW_BYTES  # that the hub reads at once
        self._pause: Event | None = None  # set by stop_reading() to end a pause
        self._turn = 0.0  # of the loop, in which something was sent at once, by its clock
        self._hub_sends = True  # False while a greenlet sends instead: the writer, or finish()
        self._writer: Greenlet[[], None] | None = None
        self._stream = b""  # taken from the outbox: whole packets ...
        self._sent = 0  # ... of which the kernel has this many bytes

    # Input

    def read(self, size: int = RECV_BYTES) -> bytes:
        """Wait for input and return at most `size` bytes of it; b"" once the input is no longer OPEN, or broken."""
        self.waiting_since = monotonic()
        try:
            data = self._receive(size) if self.input is INPUT_OPEN else b""
        except Interrupted:
            data = b""
        except OSError as error:
            self.end_with(error.strerror or str(error))
            data = b""
        finally:
            self.waiting_since = None  # from now on the hub offers nothing
        self._counters.bytes_received += len(data)
        return data

    def _arrived(self) -> None:
        """There is input: read a chunk and offer it to the session here, in the hub, or wake the greenlet.

        Most chunks are one Message, and a switch to the greenlet and back costs more than relaying it.
        """
        if self.offer and self.waiting_since is not None:
            try:
                data = self._sock.recv(self._chunk_bytes)
                if len(data) <= MAX_PACKET_BYTES and self.offer(data):
                    self.waiting_since = monotonic()
                    self._counters.bytes_received += len(data)
                    return
            except BlockingIOError:
                return
            except Exception as error:  # noqa: BLE001 (the greenlet raises it)
                self._chunk = error
            else:
                self._chunk = self._all_of(data)
        self._readable.wake()

    def _all_of(self, data: bytes) -> bytes:
        """The chunk of which `data` is the beginning. After a large one the next one is read at once."""
        if self._chunk_bytes == FEW_BYTES == len(data):
            with suppress(BlockingIOError):
                try:
                    data += self._sock.recv(RECV_BYTES - FEW_BYTES)
                except ConnectionError as error:  # the next read finds the end
                    self.end_with(error.strerror or str(error))
        self._chunk_bytes = RECV_BYTES if len(data) > FEW_BYTES else FEW_BYTES
        return data

    def pause(self, seconds: float) -> None:
        """Leave input unread for so many seconds, or until stop_reading()."""
        if self.input is INPUT_OPEN:
            self._pause = Event()
            self._pause.wait(seconds)
            self._pause = None

    def stop_reading(self) -> None:
        """Make `read` return b"" from now on, and wake whatever waits for input, finish() included. Never waits."""
        self.offer = None
        self._advance(InputEvent.STOP)
        if self._pause:
            self._pause.set()
        self._readable.interrupt()

    def _client_has_closed(self) -> bool:
        """Whether the client has closed its side, even if input before that is unread; False where nobody can tell."""
        if sys.platform != "linux":
            return False
        try:
            return self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != ESTABLISHED
        except OSError:
            return True

    def set_handled(self) -> None:
        """The session has handled all that was read, and reads no more."""
        self._advance(InputEvent.HANDLED)

    @property
    def is_handled(self) -> bool:
        """Whether the session has nothing left to handle."""
        return self.input in (Input.UNREAD, Input.ENDED)

    def _advance(self, event: InputEvent) -> None:
        self.input = INPUT.get((self.input, event), self.input)

    def _receive(self, size: int) -> bytes:
        """Wait for a chunk of input; b"" at its end. Raises Interrupted, and OSError where the connection is broken."""
        while True:
            self._readable.wait()
            data, self._chunk = self._chunk, None
            if isinstance(data, Exception):
                raise data
            if data is None:
                try:
                    data = self._sock.recv(size)
                except BlockingIOError:
                    continue
            if not data:
                self._advance(InputEvent.CLIENT_CLOSED)
            return data

    # Output

    @property
    def messages_mark(self) -> tuple[float, int]:
        """Something that changes whenever a Message is sent to the client."""
        return self._turn, self.outbox.stream_bytes - self.outbox.other_bytes

    def end_with(self, outcome: str) -> None:
        """Note why this connection ends. The first cause counts."""
        self.outcome = self.outcome or outcome

    def close(self, reason: Reason | None, outcome: str = "") -> None:
        """End this connection from outside its session, with an Error packet if there is a reason. `outcome` is for the
        log, in place of the reason. Never waits.
        """
        self.end_with(outcome or reason or "")
        self.outbox.close(encode_error(reason) if reason else b"")
        self.stop_reading()

    def _flush_soon(self) -> None:
        self._loop.run_callback(self._flush)

    def _flush(self) -> None:
        """Send what was put in one turn of the loop. Runs in the hub, and so cannot wait."""
        if self._hub_sends and not self._send():
            self._hub_sends = False
            self._writer = gevent.spawn(self._write)

    def _send_now(self, packets: bytes) -> int:
        """Send the first packets of a turn of the loop; returns how many bytes the kernel took. Never waits.

        Further ones of the same turn share a `send` at its end.
        """
        turn = self._loop.now()
        if turn == self._turn:
            return 0
        self._turn = turn
        try:
            count = self._sock.send(packets)
        except BlockingIOError:
            return 0
        except OSError as error:  # the next send fails, too
            self.end_with(error.strerror or str(error))
            return 0
        self._counters.bytes_sent += count
        if count < len(packets):
            self._stream, self._sent = packets, count
            self._flush_soon()
        return count

    def _write(self) -> None:
        """Send in place of the hub while the client reads more slowly than others write to it."""
        try:
            self._send_all(self._write_timeout)
        except NoProgress:
            self.close(Reason.TOO_SLOW)
            self._truncate()
            with suppress(NoProgress):  # now, since the session may still be handling what it has read
                self._send_all(LINGER_SECONDS)
        self._hub_sends = True

    def _send_all(self, timeout: float) -> None:
        """Send until nothing is left. Raises NoProgress once the client takes nothing for `timeout` seconds.

        For twice as long if it has been seen to read: its kernel tells of a slow reader's progress in large steps only.
        """
        writable = self._loop.io(self._sock.fileno(), WRITE)
        try:
            with self._without_kernel_timeout():
                self._send_while_writable(writable, timeout)
        finally:
            writable.close()

    def _send_while_writable(self, writable: Any, timeout: float) -> None:
        began = progress = monotonic()
        patience = timeout
        while not self._send():
            unacknowledged = self._unacknowledged()
            is_writable = False
            with suppress(NoProgress), Timeout(timeout / LOOKS, NoProgress):
                get_hub().wait(writable)
                is_writable = True
            if is_writable or self._unacknowledged() < unacknowledged:
                progress = monotonic()
                if progress - began > timeout / LOOKS:  # else the client's kernel has only filled its buffer
                    patience = 2 * timeout
            elif monotonic() - progress >= patience:
                raise NoProgress

    @contextmanager
    def _without_kernel_timeout(self) -> Iterator[None]:
        """Within this block the kernel does not end the connection of a client that reads slowly, without an Error.

        Its TCP_USER_TIMEOUT goes on while a small window opens, and the client takes a part of what is due.
        """
        before = None
        with suppress(OSError, AttributeError):  # not TCP, as in tests; or not Linux
            before = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 4)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
        try:
            yield
        finally:
            if before is not None:
                with suppress(OSError):  # the socket is broken
                    self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, before)

    def _unacknowledged(self) -> int:
        """Bytes in the kernel that the client has not acknowledged; 0 where the system does not tell (macOS).

        The kernel calls a socket writable only when a third of its buffer is free, so only this shows that a client is
        slow but steady.
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
            except OSError as error:  # the client is gone, but what it sent before may still wait to be read
                self.end_with(error.strerror or str(error))
                self.outbox.advance(OutputEvent.SEND_FAILED)
                self._discard(self._sent)
                continue
            self._sent += count
            self._counters.bytes_sent += count
            self.outbox.sent(count)

    def _truncate(self) -> None:
        """Drop what is queued, except the rest of the packet in flight and the Error that closes (section 5)."""
        self.outbox.advance(OutputEvent.NO_PROGRESS)
        taken = self._sent + (self._sock.encrypted if isinstance(self._sock, TlsStream) else 0)
        end = taken + len(rest_of_packet(self._stream, taken))
        if end < len(self._stream) or not self.outbox.empty:
            self._discard(end, self.outbox.last_packet)

    def _discard(self, end: int, last_packet: bytes = b"") -> None:
        """Drop all that waits to be sent after the first `end` bytes of the stream, except a last packet."""
        self.undelivered += self.outbox.drop(self._stream, end, len(last_packet))
        self._stream = self._stream[:end] + last_packet

    # The end

    @property
    def is_finished(self) -> bool:
        """Whether finish() would not wait: the client has closed, and nothing is left to send."""
        return self.input is Input.ENDED and self.outbox.empty and self._sent == len(self._stream)

    def finish(self, timeout: float) -> None:
        """End the connection when its session is over: send what is queued, for at most `timeout` seconds, half-close,
        discard input until the client closes too or LINGER_SECONDS have passed, and close the socket.

        If input were left unread, the kernel would reset the connection and destroy what was sent last. Once the output
        is HALF_CLOSED, stop_reading() ends the wait early.
        """
        self.offer = None
        self.outbox.close()
        self._hub_sends = False
        if self._writer:
            self._writer.kill()  # it only ever waits for the kernel
        try:
            self._send_rest(timeout)
            self._sock.shutdown(socket.SHUT_WR)
            self.outbox.advance(OutputEvent.HALF_CLOSE)
            if self.input is not Input.ENDED:
                self._linger()
        except OSError as error:
            log.debug("connection broke before its end: %s", error)
        finally:
            self._discard(self._sent)
            self._readable.close()
            self._sock.close()
            self.outbox.advance(OutputEvent.SOCKET_CLOSED)

    def _linger(self) -> None:
        """Discard input until the client closes."""
        with suppress(DeadlinePassed, Interrupted), Timeout(LINGER_SECONDS, DeadlinePassed):
            while self._receive(RECV_BYTES):
                pass

    def _send_rest(self, timeout: float) -> None:
        """Send what is queued within `timeout` seconds, then what is left of it after truncating."""
        if self._send():
            return
        if self.outbox.state is not Output.TRUNCATED:
            try:
                with Timeout(timeout, DeadlinePassed):
                    self._send_all(timeout)
            except (NoProgress, DeadlinePassed):
                self._truncate()
        with suppress(NoProgress, DeadlinePassed), Timeout(LINGER_SECONDS, DeadlinePassed):
            self._send_all(LINGER_SECONDS)
