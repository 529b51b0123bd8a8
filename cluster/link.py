"""A node's two connections to Redis for messages between nodes: one publishes, the other is subscribed.

A publisher never waits: what Redis does not accept at once follows from a greenlet.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Self

import gevent
from gevent import Greenlet, Timeout
from gevent.event import Event
from redis import exceptions
from redis.exceptions import RedisError

from chatstorage.interface import StorageUnavailable
from cluster.engine import ANSWER_SECONDS, Engine
from cluster.wire import Wire

PUBLISH = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"


class Link:
    """Open within a `with` block; opening raises StorageUnavailable.

    `failed` is set when a connection has ended, the engine's included: all of them must lead to the same Redis.
    """

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
                self._replies = _good(self._connect(opened, "SUBSCRIBE", *self._channels).replies())
                for _ in self._channels:
                    next(self._replies)
                self._engine.on_lost = self.fail
                self._opened = opened.pop_all()
        except (RedisError, OSError) as error:
            raise StorageUnavailable(f"Redis: {error}") from error
        return self

    def _connect(self, opened: ExitStack, *command: str) -> Wire:
        """A connection on which this command has been sent."""
        wire = Wire(self._engine.connect())
        opened.callback(wire.close)
        wire.tell([command], ANSWER_SECONDS)
        return wire

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
        self._unsent = self._out.send(self._unsent)
        return not self._unsent

    def _write(self) -> None:
        """Runs while Redis is slower than this node."""
        try:
            while not self._send():
                self._out.wait_for_room(ANSWER_SECONDS)
        except (RedisError, OSError) as error:
            self.fail(error)
        finally:
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


def _good(replies: Iterator[Any]) -> Iterator[Any]:
    """Raises what Redis reports as an error."""
    for reply in replies:
        if isinstance(reply, RedisError):
            raise reply
        yield reply
