"""Chooses who writes to whom. Users are numbers, and join and leave during a run."""

from bisect import bisect, insort
from collections.abc import Callable


def _pairs(user: int, present: list[int]) -> int:
    """Users 0 and 1 write to each other, 2 and 3, and so on; a user without a partner writes to itself."""
    other = user ^ 1
    index = bisect(present, other)
    return other if index and present[index - 1] == other else user


def _ring(user: int, present: list[int]) -> int:
    """Each user writes to the next one, and the last to the first."""
    index = bisect(present, user)
    return present[index % len(present)] if present else user


PAIRINGS: dict[str, Callable[[int, list[int]], int]] = {"pairs": _pairs, "ring": _ring}


class Pairing:
    """The users of one process to whom others can write. `version` changes whenever a user is added or removed."""

    def __init__(self, kind: str) -> None:
        self._partner = PAIRINGS[kind]
        self.present: list[int] = []  # ascending
        self.version = 0

    def add(self, user: int) -> None:
        """Add a user; does nothing if it is present."""
        if user not in self.present:
            insort(self.present, user)
            self.version += 1

    def remove(self, user: int) -> None:
        """Remove a user; does nothing if it is not present."""
        if user in self.present:
            self.present.remove(user)
            self.version += 1

    def partner(self, user: int) -> int:
        """Return to whom this user, who need not be present, writes now."""
        return self._partner(user, self.present)
