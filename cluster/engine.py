"""Access to Redis for the rest of cluster/: the commands of one turn of the loop go as one pipeline."""

import time
from collections.abc import Callable, Iterator
from hashlib import sha1
from pathlib import Path
from typing import Any, TypeAlias

import gevent
import redis
from gevent.event import AsyncResult, Event
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.exceptions import ConnectionError as Ended
from redis.exceptions import NoScriptError
from redis.retry import Retry

from chatnet.backoff import backoff
from chatstorage.interface import StorageError, StorageUnavailable
from cluster.wire import Misfit, Wire

ANSWER_SECONDS = 2.0  # without an answer for so long, Redis counts as away
FIRST_PAUSE_SECONDS = 0.1  # after a failure; each further failure doubles it ...
LONGEST_PAUSE_SECONDS = 2.0  # ... up to this
PAGE = 1000  # fields of a hash read at once
SCRIPTS = Path(__file__).parent / "scripts"

Argument: TypeAlias = str | bytes | int


class BadUrl(StorageError):
    """This is not a URL of Redis."""


class Script:
    """A Lua script of the folder scripts/, which Redis runs as one step. KEYS[1] is the prefix of all keys."""

    def __init__(self, name: str) -> None:
        self.text = (SCRIPTS / "common.lua").read_text() + (SCRIPTS / f"{name}.lua").read_text()
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Engine:
    """One Redis, or Valkey, and one prefix of keys in it.

    While a pipeline is in flight, further commands gather and then go as the next one. While Redis is away, commands
    fail at once, except for one attempt after each pause. Every call raises StorageUnavailable; it is unknown then
    whether Redis executed the command.
    """

    def __init__(self, url: str, prefix: str) -> None:
        """`url` as in redis-py: redis://, rediss:// or unix://. Connects at the first command. Raises BadUrl."""
        try:
            self._client = redis.Redis.from_url(
                url,
                socket_timeout=ANSWER_SECONDS,
                socket_connect_timeout=ANSWER_SECONDS,
                retry=Retry(NoBackoff(), 0),  # a claim must not be made twice; the caller tries again
                protocol=2,
            )
        except ValueError as error:
            raise BadUrl("the URL of Redis has an option that redis-py does not know") from error
        self.prefix = prefix
        self.on_lost: Callable[[Exception], None] = lambda _: None  # called when the connection has ended
        self._asked: list[tuple[tuple[Argument, ...], AsyncResult[Any]]] = []
        self._due = Event()
        self._pauses: Iterator[float] | None = None  # while Redis is away
        self._retry_at = 0.0
        self._problem = ""
        self._wire: Wire | None = None  # for the commands
        self._worker = gevent.spawn(self._work)

    def key(self, *parts: object) -> str:
        """The key with this name, prefix included."""
        return ":".join([self.prefix, *map(str, parts)])

    def call(self, *command: Argument) -> Any:
        """Redis's answer to this command; strings are bytes."""
        if time.monotonic() < self._retry_at:
            raise StorageUnavailable(self._problem)
        answer: AsyncResult[Any] = AsyncResult()
        self._asked.append((command, answer))
        self._due.set()
        result = answer.get()
        if isinstance(result, NoScriptError):
            raise result
        if isinstance(result, Exception):
            raise StorageUnavailable(f"Redis: {result}") from result
        return result

    def run(self, script: Script, *arguments: Argument) -> Any:
        """Run a script; returns its result."""
        try:
            return self.call("EVALSHA", script.sha, 1, self.prefix, *arguments)
        except NoScriptError:  # Redis has restarted
            return self.call("EVAL", script.text, 1, self.prefix, *arguments)

    def scan(self, *name: object) -> Iterator[dict[bytes, bytes]]:
        """The fields and values of the hash with this key, page by page; what changes meanwhile may come twice."""
        cursor = b"0"
        while True:
            cursor, page = self.call("HSCAN", self.key(*name), cursor, "COUNT", PAGE)
            yield dict(zip(page[::2], page[1::2], strict=True))
            if cursor == b"0":
                return

    def connect(self, timeout: float | None = ANSWER_SECONDS) -> AbstractConnection:
        """A separate connection, whose reads wait `timeout` seconds; None waits for ever. Raises RedisError."""
        pool = self._client.connection_pool  # not from the pool, which would count it for ever
        connection: AbstractConnection = pool.connection_class(**pool.connection_kwargs)
        connection.socket_timeout = timeout
        connection.connect()
        return connection

    def close(self) -> None:
        """Close the connection; commands in flight get no answer."""
        self._worker.kill()
        self._disconnect()
        self._client.close()

    def _work(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            asked, self._asked = self._asked, []
            problem: Exception | None
            try:
                results = self._exchange([command for command, _ in asked])
                problem = next(filter(_may_have_moved, results), None)
            except Exception as error:  # noqa: BLE001 - some URLs make redis-py raise other errors
                results = [error] * len(asked)
                problem = error
            if problem:
                self._lose(problem)  # so that the next attempt looks up the name
                self._pause(problem)
            else:
                self._pauses = None
            for (_, answer), result in zip(asked, results, strict=True):
                answer.set(result)

    def _exchange(self, commands: list[tuple[Argument, ...]]) -> list[Any]:
        """Redis's answers to these commands, which may be errors."""
        if self._wire and self._wire.has_ended():
            self._lose(Ended("it closed the connection"))
        self._wire = self._wire or Wire(self.connect())
        return self._wire.ask(commands, ANSWER_SECONDS)

    def _lose(self, error: Exception) -> None:
        self._disconnect()
        self.on_lost(error)

    def _disconnect(self) -> None:
        wire, self._wire = self._wire, None
        if wire:
            wire.close()

    def _pause(self, error: Exception) -> None:
        self._problem = f"Redis is away: {error}"
        self._pauses = self._pauses or pauses()
        self._retry_at = time.monotonic() + next(self._pauses)


def _may_have_moved(result: object) -> bool:
    return isinstance(result, Misfit) and result.may_have_moved


def pauses() -> Iterator[float]:
    """Seconds to wait before each further attempt to reach Redis: with jitter, since many nodes come back at once."""
    return backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, floor=0.5)
