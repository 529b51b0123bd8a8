"""Arrivals and departures: the first few are told one by one; of a crowd, what has changed in the end."""

from collections.abc import Callable
from time import monotonic

ONE_BY_ONE = 5  # within
WINDOW_SECONDS = 10.0
NAMED = 3  # in a summary


class Crowd:
    """The users who have come or left, and of whom the person has not been told."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._told = 0  # in this window
        self._ends = 0.0  # the window, by the clock
        self._untold: dict[str, bool] = {}  # who has come (True) or left

    def admits(self, name: str, is_online: bool) -> bool:
        """Whether to tell of this change at once; otherwise it is kept for summary()."""
        if not self._untold and self._clock() >= self._ends:
            self._told, self._ends = 0, self._clock() + WINDOW_SECONDS
        if self._told < ONE_BY_ONE:
            self._told += 1
            return True
        if self._untold.pop(name, is_online) == is_online:  # else this undoes a change that nobody has been told
            self._untold[name] = is_online
        return False

    def seconds_left(self) -> float | None:
        """Until summary() is due; None while there is nothing to tell."""
        return max(0.0, self._ends - self._clock()) if self._untold else None

    def summary(self) -> str:
        """What has changed. As long as the crowd stays, each window ends with a summary."""
        came = [name for name, is_online in self._untold.items() if is_online]
        left = [name for name, is_online in self._untold.items() if not is_online]
        self._untold.clear()
        self._ends = self._clock() + WINDOW_SECONDS
        parts = (f"{names_of(names)} {verb}" for names, verb in ((came, "came"), (left, "left")) if names)
        return "; ".join(parts)


def names_of(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED
    return f"{', '.join(names[:NAMED])} and {more} more" if more > 0 else ", ".join(names)
