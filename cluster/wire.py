"""A connection to Redis that redis-py has opened, and that is then used without it, as cheaply as a client's.

As in chatserver/transport/connection.py: nothing waits unless it has to, one watcher lasts, and all replies of a chunk
are read at once.
"""

import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import hiredis
from gevent import Timeout, get_hub
from redis.connection import AbstractConnection
from redis.exceptions import ConnectionError as Ended
from redis.exceptions import InvalidResponse, NoScriptError, ResponseError
from redis.exceptions import TimeoutError as NoAnswer

from chatserver.transport.connection import WRITE
from chatserver.transport.readable import Readable

READ_BYTES = 65536
NOTHING_YET = (BlockingIOError, ssl.SSLWantReadError)

MISFIT = re.compile(r"(?:^|-)(READONLY|LOADING|MASTERDOWN|OOM|MISCONF)\b")  # after "-": within a script, before Redis 7
EXPLAINED = {
    "READONLY": "it is a read-only replica",
    "LOADING": "it is still loading its data",
    "MASTERDOWN": "it is a replica that has lost its primary",
    "OOM": "its memory is full (maxmemory)",
    "MISCONF": "it cannot save to its disk, and so accepts no writes",
}
MOVABLE = frozenset({"READONLY", "LOADING", "MASTERDOWN"})

Command: TypeAlias = tuple[str | bytes | int, ...]


class Misfit(ResponseError):
    """Redis answers, and cannot do what it should. `may_have_moved`: by now its name may lead to one that can."""

    def __init__(self, code: str) -> None:
        super().__init__(f"{EXPLAINED[code]} ({code})")
        self.may_have_moved = code in MOVABLE


class Wire:
    """Sends commands and reads replies. Its methods raise RedisError and OSError."""

    def __init__(self, connection: AbstractConnection) -> None:
        """`connection` is open, and nothing in it waits to be read."""
        self._connection = connection
        self._sock: socket.socket = connection._sock  # type: ignore[assignment]  # noqa: SLF001  # it has no public name
        self._sock.setblocking(False)
        self._readable = Readable(self._sock.fileno())
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=_error)

    def close(self) -> None:
        """Close the connection."""
        self._readable.close()
        self._connection.disconnect()

    def has_ended(self) -> bool:
        """Whether Redis has closed the connection. Only where no reply is due."""
        try:
            self._sock.recv(1)
        except NOTHING_YET:
            return False
        except OSError:
            return True
        return True

    def tell(self, commands: Sequence[Command], seconds: float) -> None:
        """Send these commands. Waits at most so many seconds for each step."""
        rest = b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]  # of any length
        while rest := self.send(rest):
            self.wait_for_room(seconds)

    def ask(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        """The replies to these commands, errors included. Waits at most so many seconds for each step."""
        self.tell(commands, seconds)
        replies = self.replies()
        found = []
        for _ in commands:
            with Timeout(seconds, NoAnswer("no answer")):
                found.append(next(replies))
        return found

    def send(self, data: bytes) -> bytes:
        """Send what the kernel takes now; returns the rest. Never waits."""
        sent = 0
        with suppress(BlockingIOError):
            while sent < len(data) and (count := self._sock.send(memoryview(data)[sent:] if sent else data)):
                sent += count  # with TLS, 0 means what a plain socket reports by raising
        return data[sent:]

    def wait_for_room(self, seconds: float) -> None:
        """Wait until the kernel takes more, for at most so many seconds."""
        hub = get_hub()
        writable = hub.loop.io(self._sock.fileno(), WRITE)
        try:
            with Timeout(seconds, NoAnswer("it accepts no more data")):
                hub.wait(writable)
        finally:
            writable.close()

    def replies(self) -> Iterator[Any]:
        """Redis's replies as they arrive, errors included."""
        while True:
            while (reply := self._reader.gets()) is not False:
                yield reply
            self._readable.wait()
            try:
                chunk = self._sock.recv(READ_BYTES)
            except NOTHING_YET:
                continue
            if not chunk:
                raise Ended("it closed the connection")
            self._reader.feed(chunk)


def _error(text: str) -> ResponseError:
    if found := MISFIT.search(text):
        return Misfit(found[1])
    return NoScriptError(text) if text.startswith("NOSCRIPT") else ResponseError(text)
