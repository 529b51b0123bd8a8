"""One pair's messages, and what became of each: a page of the ledger."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import NoReturn

from loadtest.core.balance import Fault, Line, ranges


class FaultFound(Exception):
    """A message has arrived that should not have, or not like this."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


class CameAgain(Exception):
    """A message has arrived for the second time, which it may after Ledger.crash()."""


@dataclass(slots=True)
class PairLedger:
    """One pair's messages. They are numbered from 1; from `head` on to `sent` nothing has been heard of them."""

    sender: str
    receiver: str
    steady: bool  # what is sent has to arrive: both ends are online, or the receiver is away and has a mailbox
    since: int = 0  # how many had been sent when that began or ended the last time
    sent: int = 0
    delivered: int = 0
    refused: int = 0
    head: int = 1
    latest: int = 0  # the highest number that has arrived
    passed: set[int] = field(default_factory=set)  # a later one arrived first, while both ends were online
    cut: set[int] = field(default_factory=set)  # the same, but a connection ended or began in between
    doubtful: set[int] = field(default_factory=set)  # perhaps never sent
    durable: set[int] = field(default_factory=set)  # are in the mailbox for certain
    overdue: int = 0  # up to here all should have come before the receiver went away again
    repeatable: int = 0  # the highest number that may come again
    repeated: int = 0  # the highest number that has
    faults: defaultdict[Fault, list[int]] = field(default_factory=lambda: defaultdict(list))

    @property
    def open(self) -> int:
        """How many are to be waited for."""
        unheard = self.sent - self.head + 1
        before = max(self.head - 1, self.since)
        expected = self.sent - before - sum(number > before for number in self.doubtful) if self.steady else 0
        return min(expected, max(0, unheard + len(self.passed) + len(self.cut) - self.refused))

    @property
    def missing(self) -> int:
        """How many have not arrived, for whatever reason, and were not refused."""
        return max(0, self.sent - self.delivered - self.refused)

    @property
    def recent(self) -> int:
        """How many have arrived for certain since both ends are online."""
        missing = self.refused + sum(number > self.since for number in chain(self.passed, self.cut))
        return max(0, self.head - 1 - self.since - missing) if self.steady else 0

    def change(self, steady: bool) -> None:
        self.steady, self.since = steady, self.sent

    def doubt_mail(self) -> None:
        """Of what was sent while the receiver was away only what is durable has to arrive."""
        self.doubtful.update(set(range(self.head, self.sent + 1)) - self.durable)

    def is_excused(self, number: int) -> bool:
        """Whether it may be missing: a connection has ended or begun since it was sent, or it never went out."""
        return not self.steady or number <= self.since or number in self.doubtful

    def deliver(self, number: int) -> None:
        """This message has arrived as it was sent. Raises FaultFound if it should not have, or CameAgain."""
        if number > self.sent:
            self.misdeliver(number)
        elif number >= self.head:
            self._pass(number)
            self.head = number + 1
            self.latest = number
            self.delivered += 1
        elif number in self.passed or number in self.cut:
            is_late = number in self.passed and number <= self.overdue
            self.passed.discard(number)
            self.cut.discard(number)
            if number < self.latest or is_late:  # otherwise nothing has overtaken it: it comes after settle()
                self.faults[Fault.REORDERED].append(number)
            self.latest = max(self.latest, number)
            self.delivered += 1
        elif self.repeated < number <= self.repeatable:
            self.repeated = number
            raise CameAgain
        else:
            self._fault(Fault.DUPLICATED, number)

    def corrupt(self) -> None:
        """Something has arrived that is not as it was sent: the next one that was expected."""
        if self.head <= self.sent:
            self.faults[Fault.CORRUPTED].append(self.head)
            self.head += 1
        else:
            self.faults[Fault.CORRUPTED].append(0)

    def settle(self) -> None:
        """Whatever was sent while both ends were online should have arrived by now."""
        self._pass(self.sent + 1)
        self.head = self.sent + 1

    def misdeliver(self, number: int) -> NoReturn:
        self._fault(Fault.MISDELIVERED, number)

    def recall(self, numbers: Sequence[int], is_latest: bool) -> None:
        """These are the numbers of past messages, as somebody remembers them who has been asked for the `recent` ones.

        `is_latest`: the last one that was sent has to be the last of them. Raises ValueError for what cannot be.
        """
        if any(not self.since < number <= self.sent for number in numbers):
            raise ValueError(f"of messages {self.since + 1} to {self.sent} came {_listed(numbers)}")
        if any(earlier >= later for earlier, later in pairwise(numbers)):
            raise ValueError(f"out of order: {_listed(numbers)}")
        if not numbers or self.refused or self.passed or self.cut or self.doubtful:
            return  # nobody knows which ones there have to be
        if numbers[-1] - numbers[0] >= len(numbers):
            raise ValueError(f"not all of them: {_listed(numbers)}")
        if is_latest and numbers[-1] != self.sent:
            raise ValueError(f"the last one was {self.sent}: {_listed(numbers)}")

    def line(self) -> Line:
        """Settle a copy: refusals explain what is missing, first of all what connections cut off."""
        unheard = range(self.head, self.sent + 1)
        missing = {number for number in unheard if not self.is_excused(number)}
        cut = len(self.cut) + len(unheard) - len(missing)
        lost = sorted(self.passed | missing)
        in_flight = max(0, cut - self.refused)
        left = max(0, self.refused - cut)  # refusals that explain nothing yet
        faults = {**self.faults, Fault.LOST: lost[left:]}
        return Line(
            self.sender,
            self.receiver,
            sent=self.sent,
            delivered=self.delivered,
            refused=self.refused,
            in_flight=in_flight,
            faults={str(fault): ranges(numbers) for fault, numbers in faults.items() if numbers},
        )

    def _fault(self, fault: Fault, number: int) -> NoReturn:
        self.faults[fault].append(number)
        raise FaultFound(fault)

    def _pass(self, number: int) -> None:
        """Sort those that are open before `number`: missing, or excused."""
        for earlier in range(self.head, number):
            (self.cut if self.is_excused(earlier) else self.passed).add(earlier)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
