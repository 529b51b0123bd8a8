"""What a ledger comes to: a line for each pair, that adds up across processes and can be read by people."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

COLUMNS = ("sent", "delivered", "refused", "in_flight", "unbalanced")
LISTED = 5  # ranges of numbers that are named for each pair and fault; the file has all


class Fault(StrEnum):
    """What must not happen to a message."""

    LOST = "lost"
    DUPLICATED = "duplicated"
    REORDERED = "reordered"
    CORRUPTED = "corrupted"
    MISDELIVERED = "misdelivered"  # as it was sent, but to someone else


Ranges = Sequence[Sequence[int]]  # first and last number of each, both included


@dataclass(frozen=True, slots=True)
class Line:
    """One pair's balance: sent = delivered + refused + in flight, unless there are faults."""

    sender: str
    receiver: str
    sent: int
    delivered: int
    refused: int
    in_flight: int
    faults: dict[str, Ranges]  # the numbers of the messages, by fault

    def count(self, fault: Fault) -> int:
        return sum(last - first + 1 for first, last in self.faults.get(fault, ()))

    @property
    def unbalanced(self) -> int:
        """How many were refused and delivered all the same: what is known of is more than what was sent."""
        corrupted = sum(last - max(first, 1) + 1 for first, last in self.faults.get(Fault.CORRUPTED, ()))  # 0 is extra
        known = self.delivered + self.refused + self.in_flight + self.count(Fault.LOST) + corrupted
        return known - self.sent


@dataclass(frozen=True, slots=True)
class Balance:
    """The lines of all pairs. Pairs belong to one process each, so balances add up by joining their lines."""

    lines: list[Line]

    @classmethod
    def decode(cls, encoded: Iterable[dict[str, Any]]) -> "Balance":
        return cls([Line(**line) for line in encoded])

    def encode(self) -> list[dict[str, Any]]:
        """Plain lists, dictionaries, strings and numbers, for any serialization."""
        return [asdict(line) for line in self.lines]

    def __add__(self, other: "Balance") -> "Balance":
        return Balance(self.lines + other.lines)

    def totals(self) -> dict[str, int]:
        """Every column summed up, under the name that a condition uses for it."""
        counts = {column: sum(getattr(line, column) for line in self.lines) for column in COLUMNS}
        return counts | {str(fault): sum(line.count(fault) for line in self.lines) for fault in Fault}

    def findings(self) -> list[str]:
        """Each fault of each pair, with the numbers of the messages: "lost: load-1 -> load-2: 50, 100-120"."""
        named = [
            f"{fault}: {line.sender} -> {line.receiver}: {_listed(line.faults[fault])}"
            for fault in Fault
            for line in self.lines
            if fault in line.faults
        ]
        return named + [
            f"unbalanced: {line.sender} -> {line.receiver}: {line.unbalanced} refused, and delivered all the same"
            for line in self.lines
            if line.unbalanced
        ]

    def write(self, file: Path) -> None:
        """Write a line for each pair, as CSV, with all numbers. Raises OSError."""
        with file.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["sender", "receiver", *COLUMNS, *Fault])
            for line in sorted(self.lines, key=lambda line: (line.sender, line.receiver)):
                counts = [getattr(line, column) for column in COLUMNS]
                numbers = [_text(line.faults.get(fault, ())) for fault in Fault]
                writer.writerow([line.sender, line.receiver, *counts, *numbers])


def ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Numbers as ranges, in ascending order; one that comes twice counts twice."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def _text(numbers: Ranges) -> str:
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in numbers)


def _listed(numbers: Ranges) -> str:
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    return _text(numbers[:LISTED]) + more
