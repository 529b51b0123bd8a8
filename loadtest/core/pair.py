"""The ledger of one pair of sender and receiver: what became of each message."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import NoReturn

from loadtest.core.balance import Fault, PairBalance, ranges


class FaultFound(Exception):
    """A message has arrived that should not have arrived, or not like this."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


class AllowedRepeat(Exception):
    """A message has arrived for the second time, which is allowed after Ledger.crash()."""


@dataclass(slots=True)
class PairLedger:
    """One pair's messages, numbered from 1. Nothing has been heard yet of those from `head` to `sent`."""

    sender: str
    receiver: str
    guaranteed: bool  # what is sent must arrive: both are online, or the receiver is offline and has a mailbox
    since: int = 0  # how many had been sent when `guaranteed` was set the last time
    sent: int = 0
    delivered: int = 0
    refused: int = 0
    head: int = 1
    latest: int = 0  # the highest number that has arrived
    overdue: set[int] = field(default_factory=set)  # missing without excuse: a later one arrived first, or settle()
    excused: set[int] = field(default_factory=set)  # missing, but a connection ended or began in between
    doubtful: set[int] = field(default_factory=set)  # perhaps never sent
    durable: set[int] = field(default_factory=set)  # in the mailbox for certain
    mail_due: int = 0  # up to this number all should have arrived before the receiver went offline again
    repeatable: int = 0  # the highest number that may arrive again
    repeated: int = 0  # the highest number that has arrived again
    faults: defaultdict[Fault, list[int]] = field(default_factory=lambda: defaultdict(list))

    @property
    def pending(self) -> int:
        """How many messages must still arrive."""
        unheard = self.sent - self.head + 1
        before = max(self.head - 1, self.since)
        expected = self.sent - before - sum(number > before for number in self.doubtful) if self.guaranteed else 0
        return min(expected, max(0, unheard + len(self.overdue) + len(self.excused) - self.refused))

    @property
    def missing(self) -> int:
        """How many messages have not arrived, for whatever reason, and were not refused."""
        return max(0, self.sent - self.delivered - self.refused)

    @property
    def recent(self) -> int:
        """How many messages have arrived for certain since both ends are online."""
        missing = self.refused + sum(number > self.since for number in chain(self.overdue, self.excused))
        return max(0, self.head - 1 - self.since - missing) if self.guaranteed else 0

    def set_guaranteed(self, guaranteed: bool) -> None:
        """From now on what is sent must arrive, or need not; what was sent before and is missing is excused."""
        self.guaranteed, self.since = guaranteed, self.sent

    def doubt_mail(self) -> None:
        """Of the messages in the receiver's mailbox only the durable ones must arrive."""
        self.doubtful.update(set(range(self.head, self.sent + 1)) - self.durable)

    def is_excused(self, number: int) -> bool:
        """Whether this message may be missing: perhaps it was never sent, or a connection has ended or begun since."""
        return not self.guaranteed or number <= self.since or number in self.doubtful

    def deliver(self, number: int) -> None:
        """This message has arrived unchanged. Raises FaultFound if it should not have arrived, or AllowedRepeat."""
        if number > self.sent:
            self.misdeliver(number)
        elif number >= self.head:
            self._skip_to(number)
            self.head = number + 1
            self.latest = number
            self.delivered += 1
        elif number in self.overdue or number in self.excused:
            is_late = number in self.overdue and number <= self.mail_due
            self.overdue.discard(number)
            self.excused.discard(number)
            if number < self.latest or is_late:  # otherwise no message has overtaken it: it arrives after settle()
                self.faults[Fault.REORDERED].append(number)
            self.latest = max(self.latest, number)
            self.delivered += 1
        elif self.repeated < number <= self.repeatable:
            self.repeated = number
            raise AllowedRepeat
        else:
            self._fault(Fault.DUPLICATED, number)

    def corrupt(self) -> None:
        """A text has arrived that was not sent like this: it counts as the next expected message."""
        if self.head <= self.sent:
            self.faults[Fault.CORRUPTED].append(self.head)
            self.head += 1
        else:
            self.faults[Fault.CORRUPTED].append(0)

    def settle(self) -> None:
        """All messages that must arrive should have arrived by now."""
        self._skip_to(self.sent + 1)
        self.head = self.sent + 1

    def misdeliver(self, number: int) -> NoReturn:
        """A message with this number was meant for another receiver. Raises FaultFound."""
        self._fault(Fault.MISDELIVERED, number)

    def check_history(self, numbers: Sequence[int], is_latest: bool) -> None:
        """Check the server's answer to a request for at most `recent` past messages: their numbers, oldest first.

        With `is_latest` the answer has to end with the last message that was sent. Raises ValueError if it is wrong.
        """
        if any(not self.since < number <= self.sent for number in numbers):
            raise ValueError(f"of messages {self.since + 1} to {self.sent} came {_joined(numbers)}")
        if any(earlier >= later for earlier, later in pairwise(numbers)):
            raise ValueError(f"out of order: {_joined(numbers)}")
        if not numbers or self.refused or self.overdue or self.excused or self.doubtful:
            return  # which messages the server remembers is unknown
        if numbers[-1] - numbers[0] >= len(numbers):
            raise ValueError(f"not all of them: {_joined(numbers)}")
        if is_latest and numbers[-1] != self.sent:
            raise ValueError(f"the last one was {self.sent}: {_joined(numbers)}")

    def balance(self) -> PairBalance:
        """The balance as if this ledger were settled now.

        Which messages were refused is unknown. Refusals account for missing messages, the excused ones first.
        """
        unheard = range(self.head, self.sent + 1)
        missing = {number for number in unheard if not self.is_excused(number)}
        excused = len(self.excused) + len(unheard) - len(missing)
        lost = sorted(self.overdue | missing)
        in_flight = max(0, excused - self.refused)
        left = max(0, self.refused - excused)  # refusals that account for nothing yet
        faults = {**self.faults, Fault.LOST: lost[left:]}
        return PairBalance(
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

    def _skip_to(self, number: int) -> None:
        """Everything before `number` that nothing has been heard of is missing: sort it into overdue and excused."""
        for earlier in range(self.head, number):
            (self.excused if self.is_excused(earlier) else self.overdue).add(earlier)


def _joined(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
