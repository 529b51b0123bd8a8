"""The delivery ledger: who sent what to whom, and what became of it.

It balances, for each pair of sender and receiver, when

    sent = delivered + refused + in flight when a connection ended

and names what is missing (lost) or wrong (duplicated, reordered, corrupted, misdelivered) by its number. It relies on
what it tests: that messages of one pair arrive in order.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple
from zlib import crc32

from loadtest.core.balance import Balance, Fault
from loadtest.core.pair import FaultFound, PairLedger

STAMP_BYTES = 40  # the most that a stamp takes of its message
PADDING = "."


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


class Ledger:
    """The accounts of all pairs whose both ends are in this process, so that one clock times both.

    A name is online from `come` to `end`, and away from `leave` to the next `come`: then messages wait for it in a
    mailbox, and have to arrive as if it were online. In between nobody knows. `clock` gives seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._epoch = clock()
        self._known: set[str] = set()
        self._online: set[str] = set()
        self._away: set[str] = set()
        self._accounts: dict[tuple[str, str], PairLedger] = {}
        self._of: defaultdict[str, list[PairLedger]] = defaultdict(list)  # by either name

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
        """This name is online now. Who was away has to say so before messages can come."""
        self._known.add(name)
        self._away.discard(name)
        self._online.add(name)
        for account in self._of[name]:
            if not account.steady:
                account.change(self._is_steady(account))

    def end(self, name: str, in_order: bool = False) -> None:
        """This name's connection has ended. What is still under way from it or to it may arrive, or not.

        What it has written to somebody who is away still has to arrive if it went `in_order`, that is, if all it had
        sent was handled before; or if it is durable.
        """
        self._online.discard(name)
        self._away.discard(name)
        for account in self._of[name]:
            if account.receiver not in self._away:
                account.change(False)
            elif not in_order:
                account.doubt_mail()

    def leave(self, name: str) -> None:
        """The server knows that this name's connection has ended: what is sent to it from now on waits in a mailbox."""
        self._away.add(name)
        for account in self._of[name]:
            if account.receiver == name:
                account.change(account.sender in self._online)
                account.overdue = account.sent
                account.durable.clear()  # it would grow for ever

    def crash(self) -> None:
        """The server may have been killed: what waits in a mailbox may be gone unless it is durable, and what somebody
        has got who is not online now may come again: each message once, in order.
        """
        for account in self._accounts.values():
            if account.receiver in self._away:
                account.doubt_mail()
            if account.receiver not in self._online:
                account.repeatable, account.repeated = account.latest, 0

    def settle(self, name: str | None = None) -> None:
        """This name, or everybody, has waited long enough: what is still missing is lost, unless it may still wait."""
        for account in self._accounts_of(name):
            account.settle()

    def open(self, name: str | None = None) -> int:
        """How many messages, of all or from and to this name, nothing has been heard of and that cannot wait."""
        return sum(account.open for account in self._accounts_of(name))

    def balance(self) -> "Balance":
        """What became of all that was sent up to now."""
        return Balance([account.line() for account in self._accounts.values()])

    # Mailboxes

    def is_new(self, name: str) -> bool:
        """Whether this name has never been online: what it gets at first is left over from an earlier run."""
        return name not in self._known

    def is_away(self, name: str) -> bool:
        """Whether what is sent to this name waits in a mailbox."""
        return name in self._away

    def awaited(self) -> list[str]:
        """For whom something may still wait."""
        return sorted({account.receiver for account in self._accounts.values() if account.missing})

    # What the server tells about messages

    def last(self, sender: str, receiver: str) -> int:
        """The number of the last message."""
        return self._account(sender, receiver).sent

    def keep(self, sender: str, receiver: str, number: int) -> None:
        """This message is durable: it has to arrive even if the sender's connection ends, or the server is killed."""
        self._account(sender, receiver).durable.add(number)

    def has_yet_to_come(self, sender: str, receiver: str, number: int) -> bool:
        """Whether this message cannot have been delivered yet: it waits for somebody who is away."""
        return receiver in self._away and not self._account(sender, receiver).is_excused(number)

    def recent(self, one: str, other: str) -> int:
        """How many messages between these two, in both directions, have arrived since both are online."""
        accounts = {pair: self._account(*pair) for pair in ((one, other), (other, one))}
        return sum(account.recent for account in accounts.values())

    def recall(self, sender: str, receiver: str, texts: Sequence[str], is_latest: bool = False) -> None:
        """These are the last ones of the `recent` messages of this pair, as the server remembers them, oldest first.

        `is_latest`: they have to end with the last one that was sent. Raises ValueError for what cannot be.
        """
        stamps = [decode_stamp(text, receiver) for text in texts]
        if any(stamp.sender != sender for stamp in stamps):
            raise ValueError(f"not all of these are by {sender}: {texts}")
        self._account(sender, receiver).recall([stamp.number for stamp in stamps], is_latest)

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

    def _accounts_of(self, name: str | None) -> Iterator[PairLedger]:
        """Those of which something can be said now."""
        accounts: Iterable[PairLedger] = self._accounts.values() if name is None else self._of[name]
        return (account for account in accounts if account.receiver not in self._away)

    def _account(self, sender: str, receiver: str) -> PairLedger:
        account = self._accounts.get((sender, receiver))
        if account is None:
            account = self._accounts[sender, receiver] = PairLedger(sender, receiver, steady=False)
            account.steady = self._is_steady(account)
            for name in {sender, receiver}:
                self._of[name].append(account)
        return account

    def _is_steady(self, account: PairLedger) -> bool:
        return account.sender in self._online and (account.receiver in self._online or account.receiver in self._away)
