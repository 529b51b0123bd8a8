"""Which receipts for the messages of one connection can be true."""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

KEPT = 4096  # the latest messages, which are remembered at each level; receipts for earlier ones are not checked

L = TypeVar("L", bound=Hashable)
T = TypeVar("T")


class WrongReceipt(Exception):
    """A receipt that cannot be true."""


class ReceiptLedger(Generic[L, T]):
    """Messages are numbered from 1. Each one reaches each level once, unless it is refused.

    `L` is the type of a level, and `T` of what the caller wants back about a message.
    """

    def __init__(self, levels: Iterable[L]) -> None:
        self._waiting: dict[L, dict[int, T]] = {level: {} for level in levels}
        self._reached = dict.fromkeys(self._waiting, 0)
        self._excess = dict.fromkeys(self._waiting, 0)
        self._sent = 0
        self._refused = 0

    def expect(self, number: int, message: T) -> None:
        """Note that the next message, with this number, is about to be sent."""
        self._sent = number
        for waiting in self._waiting.values():
            waiting[number] = message
            waiting.pop(number - KEPT, None)

    def refuse(self) -> list[L]:
        """Note that a message was refused; which one is unknown.

        Returns the levels that more messages have reached than can be if that is true.
        """
        self._refused += 1
        return [level for level in self._waiting if self._exceeds(level)]

    def reach(self, level: L, first: int, last: int) -> tuple[list[T], str]:
        """Note a receipt: messages `first` to `last` have reached this level.

        Returns what is known of those that are new to it, and what is wrong with the receipt ("" if nothing).
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
        """Whether more messages have reached this level than were not refused, and by more than at the last check."""
        excess = self._reached[level] + self._refused - self._sent
        grows = excess > self._excess[level]
        self._excess[level] = max(excess, self._excess[level])
        return grows
