"""A node's two connections to Redis for messages between nodes: one publishes, the other is subscribed.

redis-py opens them. From then on this module writes and reads them as transport/connection.py does a client's: no
waiting unless it is necessary, one lasting watcher, and all messages of a chunk at once.
"""

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Self

import gevent
import hiredis
from gevent import Greenlet, Timeout, get_hub
from gevent.event import Event
from redis import exceptions
from redis.exceptions import RedisError

from chatserver.transport.connection import WRITE
from chatserver.transport.readable import Readable
from chatstorage.interface import StorageUnavailable
from cluster.engine import ANSWER_SECONDS, Engine

READ_BYTES = 65536
PUBLISH = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"


class Link:
    """Open within a `with` block; opening raises StorageUnavailable. `failed` is set when a connection has ended."""

    def __init__(self, engine: Engine, channels: Sequence[str]) -> None:
        self.failed = Event()
        self.problem = ""
        self._engine = engine
        self._channels = channels
        self._unsent = b""
        self._writer: Greenlet[[], None] | None = None

    def __enter__(self) -> Self:
        try:
            with ExitStack() as opened, Timeout(2 * ANSWER_SECONDS, exceptions.TimeoutError("no answer")):
                self._out = self._connect(opened, "CLIENT", "REPLY", "OFF")  # the other node answers, not Redis
                source = self._connect(opened, "SUBSCRIBE", *self._channels)
                self._readable = Readable(source.fileno())
                opened.callback(self._readable.close)
                self._replies = self._read(source)
                for _ in self._channels:
                    next(self._replies)
                self._opened = opened.pop_all()
        except (RedisError, OSError) as error:
            raise StorageUnavailable(f"Redis: {error}") from error
        return self

    def _connect(self, opened: ExitStack, *command: str) -> socket.socket:
        """A non-blocking socket on which redis-py has sent this command as its last one."""
        connection = self._engine.connect()
        opened.callback(connection.disconnect)
        connection.send_command(*command)
        sock: socket.socket = connection._sock  # type: ignore[assignment]  # noqa: SLF001  # it has no public name
        sock.setblocking(False)
        return sock

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.kill()
        self._opened.close()

    def fail(self, error: Exception) -> None:
        """Report that this link is broken and must be replaced."""
        self.problem = self.problem or f"Redis: {error}"
        self.failed.set()

    # Publishing

    def publish(self, messages: list[tuple[str, bytes]]) -> None:
        """Send these (channel, message) pairs in one write. Never waits."""
        channels = [(channel.encode(), message) for channel, message in messages]
        self._unsent += b"".join([PUBLISH % (len(name), name, len(text), text) for name, text in channels])
        if self._writer or self.failed.is_set():
            return
        try:
            if not self._send():
                self._writer = gevent.spawn(self._write)
        except OSError as error:
            self.fail(error)

    def _send(self) -> bool:
        """Send what the kernel takes without waiting; True when nothing is left."""
        data, sent = self._unsent, 0
        with suppress(BlockingIOError):
            while sent < len(data) and (count := self._out.send(memoryview(data)[sent:] if sent else data)):
                sent += count  # with TLS, 0 means what a plain socket reports by raising
        self._unsent = data[sent:]
        return not self._unsent

    def _write(self) -> None:
        """Runs while Redis is slower than this node."""
        hub = get_hub()
        writable = hub.loop.io(self._out.fileno(), WRITE)
        try:
            while not self._send():
                with Timeout(ANSWER_SECONDS, exceptions.TimeoutError("it accepts no more data")):
                    hub.wait(writable)
        except (RedisError, OSError) as error:
            self.fail(error)
        finally:
            writable.close()
            self._writer = None

    # Subscription

    def messages(self) -> Iterator[tuple[str, bytes]]:
        """(channel, message) pairs as they arrive, until the connection ends."""
        try:
            for kind, channel, message in self._replies:
                if kind == b"message":
                    yield channel.decode(), message
        except (RedisError, OSError) as error:
            self.fail(error)

    def _read(self, source: socket.socket) -> Iterator[Any]:
        """Redis's replies as they arrive. Raises RedisError and OSError."""
        reader = hiredis.Reader(protocolError=exceptions.InvalidResponse, replyError=exceptions.ResponseError)
        while True:
            self._readable.wait()
            try:
                chunk = source.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            if not chunk:
                raise exceptions.ConnectionError("it closed the connection")
            reader.feed(chunk)
            while (reply := reader.gets()) is not False:
                if isinstance(reply, RedisError):
                    raise reply
                yield reply
