"""The limit of wrong passwords a minute, for one account and from one address.

An address from which the right password has come is known for that account: what others guess does not lock it out.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from gevent import get_hub
from gevent.event import Event

WINDOW_SECONDS = 60.0
MOST_KNOWN = 1024  # pairs of an account and an address; those used last are kept


class TooManyAttempts(Exception):
    """The limit is reached: no password is checked now, not even the right one, or guessing would go on."""


class Recent:
    """How often something has happened in the last `seconds`, by key. Nothing is kept of keys without it."""

    def __init__(self, seconds: float) -> None:
        self.counts: Counter[Hashable] = Counter()
        self._seconds = seconds

    def add(self, *keys: Hashable) -> None:
        """It has happened to each of these keys."""
        self.counts.update(keys)
        timer = get_hub().loop.timer(self._seconds)
        timer.start(self._expire, timer, keys)

    def _expire(self, timer: Any, keys: tuple[Hashable, ...]) -> None:
        timer.close()
        self.counts.subtract(keys)
        for key in keys:
            if not self.counts[key]:
                del self.counts[key]


class Attempts:
    """The wrong passwords of the last minute. Right ones never count, and are remembered."""

    def __init__(self, limit: float) -> None:
        """`limit`: wrong passwords a minute; infinity for no limit."""
        self._limit = limit
        self._wrong = Recent(WINDOW_SECONDS)
        self._checking: dict[Hashable, list[Event]] = {}
        self._known: OrderedDict[Hashable, None] = OrderedDict()  # where right passwords came from, the latest last

    @contextmanager
    def attempt(self, account: Hashable, address: Hashable) -> Iterator[Callable[[], None]]:
        """Check a password within this block, for an account and an address; call the yielded function if it was wrong.

        If the checks in progress could reach the limit, waits for one of them: a hundred simultaneous guesses do not
        get around the limit, and a hundred simultaneous logins do not count as guesses. Raises TooManyAttempts.
        A known address has a limit of its own for that account.
        """
        pair = (account, address)
        keys: tuple[Hashable, ...] = (pair,) if pair in self._known else pair
        wrong_so_far = self._wrong.counts
        while full := [key for key in keys if wrong_so_far[key] + len(self._checking.get(key, ())) >= self._limit]:
            if any(wrong_so_far[key] >= self._limit for key in full):
                raise TooManyAttempts
            self._checking[full[0]][0].wait()
        done = Event()
        for key in keys:
            self._checking.setdefault(key, []).append(done)
        wrong: list[Hashable] = []  # the keys, if the password was
        try:
            yield lambda: wrong.extend(keys)
            if not wrong:
                self._remember(pair)
        finally:
            if wrong:
                self._wrong.add(*keys)
            for key in keys:
                self._checking[key].remove(done)
                if not self._checking[key]:
                    del self._checking[key]
            done.set()

    def _remember(self, pair: Hashable) -> None:
        self._known[pair] = None
        self._known.move_to_end(pair)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
