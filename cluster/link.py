"""A node's two connections to Redis for what nodes say to each other: one publishes, one is subscribed."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Self

import gevent
from gevent import Greenlet
from gevent.event import Event
from redis import exceptions
from redis.connection import AbstractConnection
from redis.exceptions import RedisError

from chatstorage.interface import StorageUnavailable
from cluster.engine import Engine


class Link:
    """Open within a `with` block; opening raises StorageUnavailable. `failed` tells that one of them has ended."""

    def __init__(self, engine: Engine, channels: Sequence[str]) -> None:
        self.failed = Event()
        self.problem = ""
        self._engine = engine
        self._channels = channels
        self._messages: list[tuple[str, bytes]] = []
        self._due = Event()
        self._publisher: Greenlet[[], None]

    def __enter__(self) -> Self:
        try:
            with ExitStack() as opened:
                self._out = self._connect(opened)
                self._out.send_command("CLIENT", "REPLY", "OFF")  # it is the other node that answers
                self._in = self._connect(opened)
                self._in.send_command("SUBSCRIBE", *self._channels)
                for _ in self._channels:
                    self._in.read_response()
                self._opened = opened.pop_all()
        except (RedisError, OSError) as error:
            raise StorageUnavailable(f"Redis: {error}") from error
        self._publisher = gevent.spawn(self._publish)
        return self

    def _connect(self, opened: ExitStack) -> AbstractConnection:
        connection = self._engine.connect()
        opened.callback(connection.disconnect)
        return connection

    def __exit__(self, *_: object) -> None:
        self._publisher.kill()
        self._opened.close()

    def fail(self, error: Exception) -> None:
        """There has to be another link."""
        self.problem = self.problem or f"Redis: {error}"
        self.failed.set()

    def publish(self, messages: list[tuple[str, bytes]]) -> None:
        """Send these, (channel, message), together with all others of this turn of the loop. Never waits."""
        self._messages += messages
        self._due.set()

    def messages(self) -> Iterator[tuple[str, bytes]]:
        """(channel, message) as they come, until the connection ends."""
        while True:
            try:
                kind, channel, message = self._in.read_response(disconnect_on_error=False)
            except exceptions.TimeoutError:  # nothing was said for a while
                continue
            except (RedisError, OSError) as error:
                self.fail(error)
                return
            if kind == b"message":
                yield channel.decode(), message

    def _publish(self) -> None:
        try:
            while True:
                self._due.wait()
                self._due.clear()
                messages, self._messages = self._messages, []
                commands = [("PUBLISH", *message) for message in messages]
                self._out.send_packed_command(self._out.pack_commands(commands), check_health=False)
        except (RedisError, OSError) as error:
            self.fail(error)
