"""Who writes to whom. Users are numbers; those who are here come and go."""

from bisect import bisect, insort
from collections.abc import Callable


def _pairs(user: int, here: list[int]) -> int:
    """0 and 1, 2 and 3, and so on; who is alone writes to itself."""
    other = user ^ 1
    place = bisect(here, other)
    return other if place and here[place - 1] == other else user


def _ring(user: int, here: list[int]) -> int:
    """Each writes to the next, the last to the first."""
    place = bisect(here, user)
    return here[place % len(here)] if here else user


PAIRINGS: dict[str, Callable[[int, list[int]], int]] = {"pairs": _pairs, "ring": _ring}


class Pairing:
    """The users of one process that can be written to. `version` changes whenever one comes or goes."""

    def __init__(self, kind: str) -> None:
        self._partner = PAIRINGS[kind]
        self.here: list[int] = []  # ascending
        self.version = 0

    def come(self, user: int) -> None:
        """May be called for a user who is here."""
        if user not in self.here:
            insort(self.here, user)
            self.version += 1

    def go(self, user: int) -> None:
        """May be called for a user who is not here."""
        if user in self.here:
            self.here.remove(user)
            self.version += 1

    def partner(self, user: int) -> int:
        """Whom this user writes to now."""
        return self._partner(user, self.here)
