"""The delivery ledger: who sent what to whom, and what became of it.

It balances, for each pair of sender and receiver, when

    sent = delivered + refused + in flight when a connection ended

and names what is missing (lost) or wrong (duplicated, reordered, corrupted, misdelivered) by its number. It relies on
what it tests: that messages of one pair arrive in order.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple, NoReturn
from zlib import crc32

from loadtest.balance import Balance, Fault, Line, ranges

STAMP_BYTES = 40  # the most that a stamp takes of its message
PADDING = "."


class FaultFound(Exception):
    """A message has arrived that should not have, or not like this."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


class Stamp(NamedTuple):
    """What a message says about itself; a name has no space."""

    sender: str
    number: int  # of the sender's messages to this receiver, from 1
    due: int  # microseconds of the ledger's clock


def encode_stamp(stamp: Stamp, receiver: str, size: int) -> str:
    """A text of `size` bytes that carries the stamp, and a checksum over all of it and the receiver's name.

    Raises ValueError if it cannot.
    """
    head = f"{stamp.sender} {stamp.number} {stamp.due:x} "
    padding = PADDING * (size - len(head.encode()) - 8)
    text = f"{head}{_checksum(receiver, head + padding)}{padding}"
    if len(text.encode()) > size or head.count(" ") != 3:
        raise ValueError(f"{head!r} and a checksum do not fit {size} bytes, or the name has a space")
    return text


def decode_stamp(text: str, receiver: str) -> Stamp:
    """The stamp of a text that is as it was sent to this receiver. Raises ValueError for any other."""
    stamp, rest = _parse(text)
    if rest[:8] != _checksum(receiver, text.removesuffix(rest) + rest[8:]):
        raise ValueError(f"{text!r} is not as it was sent to {receiver!r}")
    return stamp


def _parse(text: str) -> tuple[Stamp, str]:
    try:
        sender, number, due, rest = text.split(" ")
        return Stamp(sender, int(number), int(due, 16)), rest
    except ValueError:
        raise ValueError(f"{text!r} has no stamp") from None


def _checksum(receiver: str, text: str) -> str:
    return f"{crc32(f'{receiver} {text}'.encode()):08x}"


@dataclass(slots=True)
class Account:
    """One pair's messages. They are numbered from 1; from `head` on to `sent` nothing has been heard of them."""

    names: frozenset[str]  # of both ends
    steady: bool  # both ends are online
    since: int = 0  # how many had been sent when that changed the last time
    sent: int = 0
    delivered: int = 0
    refused: int = 0
    head: int = 1
    latest: int = 0  # the highest number that has arrived
    passed: set[int] = field(default_factory=set)  # a later one arrived first, while both ends were online
    cut: set[int] = field(default_factory=set)  # the same, but a connection ended or began in between
    doubtful: set[int] = field(default_factory=set)  # perhaps never sent
    faults: defaultdict[Fault, list[int]] = field(default_factory=lambda: defaultdict(list))

    @property
    def open(self) -> int:
        """How many are to be waited for."""
        unheard = self.sent - self.head + 1
        before = max(self.head - 1, self.since)
        expected = self.sent - before - sum(number > before for number in self.doubtful) if self.steady else 0
        return min(expected, max(0, unheard + len(self.passed) + len(self.cut) - self.refused))

    def change(self, steady: bool) -> None:
        self.steady, self.since = steady, self.sent

    def is_excused(self, number: int) -> bool:
        """Whether it may be missing: a connection has ended or begun since it was sent, or it never went out."""
        return not self.steady or number <= self.since or number in self.doubtful

    def deliver(self, number: int) -> None:
        """This message has arrived as it was sent. Raises FaultFound if it should not have."""
        if number > self.sent:
            self.misdeliver(number)
        elif number >= self.head:
            self._pass(number)
            self.head = number + 1
            self.latest = number
            self.delivered += 1
        elif number in self.passed or number in self.cut:
            self.passed.discard(number)
            self.cut.discard(number)
            if number < self.latest:  # otherwise nothing has overtaken it: it comes after settle()
                self.faults[Fault.REORDERED].append(number)
            self.latest = max(self.latest, number)
            self.delivered += 1
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

    def _fault(self, fault: Fault, number: int) -> NoReturn:
        self.faults[fault].append(number)
        raise FaultFound(fault)

    def _pass(self, number: int) -> None:
        """Sort those that are open before `number`: missing, or excused."""
        for earlier in range(self.head, number):
            (self.cut if self.is_excused(earlier) else self.passed).add(earlier)


class Ledger:
    """The accounts of all pairs whose both ends are in this process, so that one clock times both.

    A name is online from `come` to `end`. `clock` gives seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._epoch = clock()
        self._online: set[str] = set()
        self._accounts: dict[tuple[str, str], Account] = {}
        self._of: defaultdict[str, list[Account]] = defaultdict(list)  # by either name

    def send(self, sender: str, receiver: str, due: float, size: int = STAMP_BYTES) -> str:
        """The text of the next message, `size` bytes long, which counts as sent from now on. Raises ValueError."""
        account = self._account(sender, receiver)
        stamp = Stamp(sender, account.sent + 1, max(0, round((due - self._epoch) * 1e6)))
        text = encode_stamp(stamp, receiver, size)
        account.sent += 1
        return text

    def doubt(self, sender: str, receiver: str) -> None:
        """Nobody knows whether the last message went out: it may arrive, or not."""
        account = self._account(sender, receiver)
        account.doubtful.add(account.sent)

    def refuse(self, sender: str, receiver: str) -> None:
        """The sender was told that one of these messages will not arrive."""
        self._account(sender, receiver).refused += 1

    def receive(self, sender: str, receiver: str, text: str) -> float:
        """A text has arrived, by all that is known from `sender`, at `receiver`; the seconds since it was due.

        Raises FaultFound for one that should not have arrived like this.
        """
        now = self._clock()
        try:
            stamp, addressee = self._read(sender, receiver, text)
        except ValueError:
            self._account(sender, receiver).corrupt()
            raise FaultFound(Fault.CORRUPTED) from None
        account = self._account(sender, receiver)
        if addressee != receiver:
            account.misdeliver(stamp.number)
        account.deliver(stamp.number)
        return now - self._epoch - stamp.due / 1e6

    def come(self, name: str) -> None:
        """This name is online now."""
        self._change(name, self._online.add)

    def end(self, name: str) -> None:
        """This name's connection has ended. What is still under way from it or to it may arrive, or not."""
        self._change(name, self._online.discard)

    def settle(self, name: str | None = None) -> None:
        """This name, or everybody, has waited long enough: what is still missing is lost."""
        for account in self._accounts_of(name):
            account.settle()

    def open(self, name: str | None = None) -> int:
        """How many messages, of all or from and to this name, nothing has been heard of."""
        return sum(account.open for account in self._accounts_of(name))

    def balance(self) -> "Balance":
        """What became of all that was sent up to now."""
        return Balance([_line(*names, account) for names, account in self._accounts.items()])

    def _read(self, sender: str, receiver: str, text: str) -> tuple[Stamp, str]:
        """The stamp, and for whom the text was, which is nearly always the one who has got it. Raises ValueError.

        Who is not of this process does not write to anybody here: then all that is known is that it was for another.
        """
        if sender not in self._of and sender not in self._online:
            return _parse(text)[0], ""
        for addressee in chain((receiver,), (other for name, other in self._accounts if name == sender)):
            try:
                stamp = decode_stamp(text, addressee)
            except ValueError:
                continue
            if stamp.sender == sender:
                return stamp, addressee
        raise ValueError(f"{text!r} is not as {sender!r} has sent it to anybody")

    def _accounts_of(self, name: str | None) -> Iterable[Account]:
        return self._accounts.values() if name is None else self._of[name]

    def _account(self, sender: str, receiver: str) -> Account:
        account = self._accounts.get((sender, receiver))
        if account is None:
            names = frozenset((sender, receiver))
            account = self._accounts[sender, receiver] = Account(names, names <= self._online)
            for name in names:
                self._of[name].append(account)
        return account

    def _change(self, name: str, change: Callable[[str], None]) -> None:
        change(name)
        for account in self._of[name]:
            account.change(account.names <= self._online)


def _line(sender: str, receiver: str, account: Account) -> Line:
    """Settle a copy of the account: refusals explain what is missing, first of all what connections cut off."""
    unheard = range(account.head, account.sent + 1)
    missing = {number for number in unheard if not account.is_excused(number)}
    cut = len(account.cut) + len(unheard) - len(missing)
    lost = sorted(account.passed | missing)
    in_flight = max(0, cut - account.refused)
    left = max(0, account.refused - cut)  # refusals that explain nothing yet
    faults = {**account.faults, Fault.LOST: lost[left:]}
    return Line(
        sender,
        receiver,
        sent=account.sent,
        delivered=account.delivered,
        refused=account.refused,
        in_flight=in_flight,
        faults={str(fault): ranges(numbers) for fault, numbers in faults.items() if numbers},
    )
