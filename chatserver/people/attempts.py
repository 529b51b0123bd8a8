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


class Attempts:
    """The wrong passwords of the last minute. Right ones never count, and are remembered."""

    def __init__(self, limit: float) -> None:
        """`limit`: wrong passwords a minute; infinity for no limit."""
        self._limit = limit
        self._wrong: Counter[Hashable] = Counter()
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
        while full := [key for key in keys if self._wrong[key] + len(self._checking.get(key, ())) >= self._limit]:
            if any(self._wrong[key] >= self._limit for key in full):
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
                self._count(keys)
            for key in keys:
                self._checking[key].remove(done)
                self._forget_empty(key)
            done.set()

    def _remember(self, pair: Hashable) -> None:
        self._known[pair] = None
        self._known.move_to_end(pair)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)

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
