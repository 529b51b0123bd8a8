"""The limit of wrong passwords a minute, for one account and from one address."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from gevent import get_hub
from gevent.event import Event

WINDOW_SECONDS = 60.0


class TooManyAttempts(Exception):
    """The limit is reached: no password is checked now, not even the right one, or guessing would go on."""


class Attempts:
    """The wrong passwords of the last minute. Right ones never count."""

    def __init__(self, limit: float) -> None:
        """`limit`: wrong passwords a minute; infinity for no limit."""
        self._limit = limit
        self._wrong: Counter[Hashable] = Counter()
        self._checking: dict[Hashable, list[Event]] = {}

    @contextmanager
    def attempt(self, *keys: Hashable) -> Iterator[Callable[[], None]]:
        """Check a password within this block, for an account and an address; call the yielded function if it was wrong.

        If the checks in progress could reach the limit, waits for one of them: a hundred simultaneous guesses do not
        get around the limit, and a hundred simultaneous logins do not count as guesses. Raises TooManyAttempts.
        """
        while full := [key for key in keys if self._wrong[key] + len(self._checking.get(key, ())) >= self._limit]:
            if any(self._wrong[key] >= self._limit for key in full):
                raise TooManyAttempts
            self._checking[full[0]][0].wait()
        done = Event()
        for key in keys:
            self._checking.setdefault(key, []).append(done)
        try:
            yield lambda: self._count(keys)
        finally:
            for key in keys:
                self._checking[key].remove(done)
                self._forget_empty(key)
            done.set()

    def _count(self, keys: tuple[Hashable, ...]) -> None:
        self._wrong.update(keys)
        timer = get_hub().loop.timer(WINDOW_SECONDS)
        timer.start(self._expire, timer, keys)

    def _expire(self, timer: Any, keys: tuple[Hashable, ...]) -> None:
        timer.close()
        self._wrong.subtract(keys)
        for key in keys:
            self._forget_empty(key)

    def _forget_empty(self, key: Hashable) -> None:
        """Keep nothing of accounts and addresses without wrong passwords."""
        if self._checking.get(key) == []:
            del self._checking[key]
        if not self._wrong[key]:
            del self._wrong[key]
