"""The result of a ledger: one balance for each pair. Balances of several processes add up."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

COLUMNS = ("sent", "delivered", "refused", "in_flight", "unbalanced")
NAMED_RANGES = 5  # how many ranges of numbers a finding names; the file has all of them


class Fault(StrEnum):
    """What can go wrong with a message."""

    LOST = "lost"
    DUPLICATED = "duplicated"
    REORDERED = "reordered"
    CORRUPTED = "corrupted"
    MISDELIVERED = "misdelivered"  # unchanged, but at the wrong receiver


Ranges = Sequence[Sequence[int]]  # the first and last number of each range, both included


@dataclass(frozen=True, slots=True)
class PairBalance:
    """One pair's balance: sent = delivered + refused + in flight, unless there are faults."""

    sender: str
    receiver: str
    sent: int
    delivered: int
    refused: int
    in_flight: int
    faults: dict[str, Ranges]  # the numbers of the affected messages, by fault

    def count(self, fault: Fault) -> int:
        return sum(last - first + 1 for first, last in self.faults.get(fault, ()))

    @property
    def unbalanced(self) -> int:
        """By how much the known outcomes exceed `sent`: so many messages were delivered although they were refused."""
        corrupted = sum(last - max(first, 1) + 1 for first, last in self.faults.get(Fault.CORRUPTED, ()))  # 0 is extra
        known = self.delivered + self.refused + self.in_flight + self.count(Fault.LOST) + corrupted
        return known - self.sent


@dataclass(frozen=True, slots=True)
class Balance:
    """The balances of all pairs. Each pair belongs to one process, so two processes' balances are simply joined."""

    pairs: list[PairBalance]

    @classmethod
    def decode(cls, encoded: Iterable[dict[str, Any]]) -> "Balance":
        """Read what encode() returned."""
        return cls([PairBalance(**pair) for pair in encoded])

    def encode(self) -> list[dict[str, Any]]:
        """Return plain lists, dictionaries, strings and numbers, which any serialization takes."""
        return [asdict(pair) for pair in self.pairs]

    def __add__(self, other: "Balance") -> "Balance":
        return Balance(self.pairs + other.pairs)

    def totals(self) -> dict[str, int]:
        """Return the sum of every column, under the name that a condition uses for it."""
        counts = {column: sum(getattr(pair, column) for pair in self.pairs) for column in COLUMNS}
        return counts | {str(fault): sum(pair.count(fault) for pair in self.pairs) for fault in Fault}

    def findings(self) -> list[str]:
        """Describe each fault of each pair with its messages' numbers: "lost: load-1 -> load-2: 50, 100-120"."""
        named = [
            f"{fault}: {pair.sender} -> {pair.receiver}: {_shortened(pair.faults[fault])}"
            for fault in Fault
            for pair in self.pairs
            if fault in pair.faults
        ]
        return named + [
            f"unbalanced: {pair.sender} -> {pair.receiver}: {pair.unbalanced} refused, and delivered all the same"
            for pair in self.pairs
            if pair.unbalanced
        ]

    def write(self, file: Path) -> None:
        """Write one CSV line for each pair, with the numbers of all its faulty messages. Raises OSError."""
        with file.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["sender", "receiver", *COLUMNS, *Fault])
            for pair in sorted(self.pairs, key=lambda pair: (pair.sender, pair.receiver)):
                counts = [getattr(pair, column) for column in COLUMNS]
                numbers = [_text(pair.faults.get(fault, ())) for fault in Fault]
                writer.writerow([pair.sender, pair.receiver, *counts, *numbers])


def ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Group numbers into ascending ranges; a number that occurs twice is in two of them."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def _text(numbers: Ranges) -> str:
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in numbers)


def _shortened(numbers: Ranges) -> str:
    more = f" and {len(numbers) - NAMED_RANGES} more" if len(numbers) > NAMED_RANGES else ""
    return _text(numbers[:NAMED_RANGES]) + more
