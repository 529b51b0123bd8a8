"""How many wrong passwords an account, and an address, may give in a minute."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from gevent import get_hub
from gevent.event import Event

WINDOW_SECONDS = 60.0


class TooManyAttempts(Exception):
    """No password is looked at now, not even the right one: or else guessing would go on."""


class Attempts:
    """Wrong passwords of the last minute. Right ones never count."""

    def __init__(self, limit: float) -> None:
        """`limit`: how many, infinity for no limit."""
        self._limit = limit
        self._wrong: Counter[Hashable] = Counter()
        self._checking: dict[Hashable, list[Event]] = {}

    @contextmanager
    def attempt(self, *keys: Hashable) -> Iterator[Callable[[], None]]:
        """Check a password in this block, for an account and an address; call what it gives when it was wrong.

        Raises TooManyAttempts. Where those under way could reach the limit, this waits for one of them: a hundred
        guesses at once are no way around it, and a hundred people who come at once are not taken for guesses.
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
        """Addresses come and go: nothing is kept of the ones that have done nothing wrong."""
        if self._checking.get(key) == []:
            del self._checking[key]
        if not self._wrong[key]:
            del self._wrong[key]
