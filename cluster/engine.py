"""Redis, as the rest of cluster/ asks it: what greenlets want in one turn of the loop goes there and back together."""

import time
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path
from typing import Any, TypeAlias

import gevent
import redis
from gevent.event import AsyncResult, Event
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.exceptions import NoScriptError
from redis.retry import Retry

from chatnet.backoff import backoff
from chatstorage.interface import StorageError, StorageUnavailable

ANSWER_SECONDS = 2.0  # without one Redis counts as away
FIRST_PAUSE_SECONDS = 0.1  # after a failure; each further one doubles it ...
LONGEST_PAUSE_SECONDS = 2.0  # ... up to this
SCRIPTS = Path(__file__).parent / "scripts"

Argument: TypeAlias = str | bytes | int


class BadUrl(StorageError):
    """Not a URL of Redis."""


class Script:
    """A Lua script of the folder scripts/, which Redis runs as one step. KEYS[1] is the prefix of all keys."""

    def __init__(self, name: str) -> None:
        self.text = (SCRIPTS / "common.lua").read_text() + (SCRIPTS / f"{name}.lua").read_text()
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Engine:
    """One Redis, or Valkey, and one prefix of keys in it.

    Commands wait for each other, never for the loop: while some are under way others gather, and go as one pipeline.
    While Redis is away they fail at once, but for a try after each pause. Every call raises StorageUnavailable, after
    which it is not known whether Redis has done it.
    """

    def __init__(self, url: str, prefix: str) -> None:
        """`url` as redis-py has it: redis://, rediss:// or unix://. Raises BadUrl. Nothing is connected yet."""
        try:
            self._client = redis.Redis.from_url(
                url,
                socket_timeout=ANSWER_SECONDS,
                socket_connect_timeout=ANSWER_SECONDS,
                retry=Retry(NoBackoff(), 0),  # a claim is not to be made twice; whoever asked tries again
                protocol=2,
            )
        except ValueError as error:
            raise BadUrl(f"the URL of Redis: {error}") from error
        self.prefix = prefix
        self._asked: list[tuple[tuple[Argument, ...], AsyncResult[Any]]] = []
        self._due = Event()
        self._pauses: Iterator[float] | None = None  # while Redis is away
        self._retry_at = 0.0
        self._problem = ""
        self._worker = gevent.spawn(self._work)

    def key(self, *parts: object) -> str:
        """The key of this name."""
        return ":".join([self.prefix, *map(str, parts)])

    def call(self, *command: Argument) -> Any:
        """What Redis answers to this command, in bytes."""
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
        """What this script returns."""
        try:
            return self.call("EVALSHA", script.sha, 1, self.prefix, *arguments)
        except NoScriptError:  # Redis has started anew
            return self.call("EVAL", script.text, 1, self.prefix, *arguments)

    def connect(self, timeout: float | None = ANSWER_SECONDS) -> AbstractConnection:
        """A connection of one's own, whose reads wait `timeout` seconds, or for ever. Raises RedisError."""
        pool = self._client.connection_pool  # which would count this one for ever
        connection: AbstractConnection = pool.connection_class(**pool.connection_kwargs)
        connection.socket_timeout = timeout
        connection.connect()
        return connection

    def close(self) -> None:
        """Whoever still waits gets no answer."""
        self._worker.kill()
        self._client.close()

    def _work(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            asked, self._asked = self._asked, []
            try:
                pipeline = self._client.pipeline(transaction=False)
                for command, _ in asked:
                    pipeline.execute_command(*command)
                results = pipeline.execute(raise_on_error=False)
            except Exception as error:  # noqa: BLE001 - also what a URL can make redis-py raise
                self._pause(error)
                results = [error] * len(asked)
            else:
                self._pauses = None
            for (_, answer), result in zip(asked, results, strict=True):
                answer.set(result)

    def _pause(self, error: Exception) -> None:
        self._problem = f"Redis is away: {error}"
        self._pauses = self._pauses or pauses()
        self._retry_at = time.monotonic() + next(self._pauses)


def pauses() -> Iterator[float]:
    """Seconds to wait before each further attempt to reach Redis: with jitter, since many nodes come back at once."""
    return backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, floor=0.5)
