"""How far the messages of one connection have come, by the receipts for them."""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

KEPT = 4096  # messages that are waited for at once, at each level; of those before them nothing is said

L = TypeVar("L", bound=Hashable)
T = TypeVar("T")


class WrongReceipt(Exception):
    """A receipt that cannot be true."""


class ReceiptLedger(Generic[L, T]):
    """Messages are numbered from 1; each comes to each level once, unless it is refused. `T`: what is known of one."""

    def __init__(self, levels: Iterable[L]) -> None:
        self._waiting: dict[L, dict[int, T]] = {level: {} for level in levels}
        self._reached = dict.fromkeys(self._waiting, 0)
        self._excess = dict.fromkeys(self._waiting, 0)
        self._sent = 0
        self._refused = 0

    def expect(self, number: int, message: T) -> None:
        """This message, the next one, is about to be sent."""
        self._sent = number
        for waiting in self._waiting.values():
            waiting[number] = message
            waiting.pop(number - KEPT, None)

    def refuse(self) -> list[L]:
        """One of them was refused, nobody knows which; the levels that too many have come to for that to be true."""
        self._refused += 1
        return [level for level in self._waiting if self._exceeds(level)]

    def reach(self, level: L, first: int, last: int) -> tuple[list[T], str]:
        """Those of numbers first to last have come to this level: which of them that are waited for; and what is wrong
        with that, "" if nothing is.
        """
        waiting, forgotten = self._waiting[level], self._sent - KEPT
        known = range(max(first, forgotten + 1), min(last, self._sent) + 1)
        found = [waiting.pop(number) for number in known if number in waiting]
        self._reached[level] += len(found) + max(0, min(last, forgotten) - first + 1)
        if last > self._sent:
            return found, f"for message {last}, when {self._sent} had been sent"
        if len(found) < len(known):
            return found, f"for messages {first} to {last}, some of which had one before"
        if self._exceeds(level):
            return found, f"for messages {first} to {last}, although {self._refused} were refused"
        return found, ""

    def _exceeds(self, level: L) -> bool:
        """Whether more have come to this level than were not refused, and more than the last time."""
        excess = self._reached[level] + self._refused - self._sent
        grows = excess > self._excess[level]
        self._excess[level] = max(excess, self._excess[level])
        return grows
