"""The delivery ledger: who sent what to whom, and what became of it.

It balances if for each pair of sender and receiver

    sent = delivered + refused + in flight when a connection ended

and it names what is missing (lost) or wrong (duplicated, reordered, corrupted, misdelivered) by the message's number.
The ledger relies on one property of the protocol, and tests it: the messages of one pair arrive in order.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple
from zlib import crc32

from loadtest.core.balance import Balance, Fault
from loadtest.core.pair import FaultFound, PairLedger

STAMP_BYTES = 40  # the most bytes of its message that a stamp takes
PADDING = "."


class Stamp(NamedTuple):
    """What the text of a message says about itself; a name has no space."""

    sender: str
    number: int  # of the sender's messages to this receiver, from 1
    due: int  # microseconds since the ledger was created


def encode_stamp(stamp: Stamp, receiver: str, size: int) -> str:
    """Return a text of `size` bytes with the stamp and a checksum, which covers the text and the receiver's name.

    Raises ValueError if the stamp does not fit, or if the sender's name has a space.
    """
    head = f"{stamp.sender} {stamp.number} {stamp.due:x} "
    padding = PADDING * (size - len(head.encode()) - 8)
    text = f"{head}{_checksum(receiver, head + padding)}{padding}"
    if len(text.encode()) > size or head.count(" ") != 3:
        raise ValueError(f"{head!r} and a checksum do not fit {size} bytes, or the name has a space")
    return text


def decode_stamp(text: str, receiver: str) -> Stamp:
    """Return the stamp of a text that was sent to this receiver and is unchanged. Raises ValueError for any other."""
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
    """The messages of all pairs of which both users are in this process, so that one clock times both ends.

    A user is online from connect() to disconnect(). From open_mailbox() to the next connect() it is offline: messages
    to it wait in its mailbox, and must arrive as if it were online. Between disconnect() and open_mailbox() its state
    is unknown, and a message may be missing. `clock` returns seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._epoch = clock()
        self._known: set[str] = set()
        self._online: set[str] = set()
        self._offline: set[str] = set()
        self._pairs: dict[tuple[str, str], PairLedger] = {}  # by sender and receiver
        self._pairs_of: defaultdict[str, list[PairLedger]] = defaultdict(list)  # by either name

    def send(self, sender: str, receiver: str, due: float, size: int = STAMP_BYTES) -> str:
        """Return the text of the next message, `size` bytes long, which counts as sent from now on.

        `due` is when it was due, in seconds of the clock. Raises ValueError like encode_stamp().
        """
        pair = self._pair(sender, receiver)
        stamp = Stamp(sender, pair.sent + 1, max(0, round((due - self._epoch) * 1e6)))
        text = encode_stamp(stamp, receiver, size)
        pair.sent += 1
        return text

    def doubt(self, sender: str, receiver: str) -> None:
        """It is unknown whether the last message was sent: it may arrive, or not."""
        pair = self._pair(sender, receiver)
        pair.doubtful.add(pair.sent)

    def refuse(self, sender: str, receiver: str) -> None:
        """The server has refused one of these messages; which one is unknown."""
        self._pair(sender, receiver).refused += 1

    def receive(self, sender: str, receiver: str, text: str) -> float:
        """A text has arrived at `receiver`, apparently from `sender`. Returns the seconds since it was due.

        Raises FaultFound if it should not have arrived like this, and AllowedRepeat if it may arrive twice.
        """
        now = self._clock()
        try:
            stamp, addressee = self._read(sender, receiver, text)
        except ValueError:
            self._pair(sender, receiver).corrupt()
            raise FaultFound(Fault.CORRUPTED) from None
        pair = self._pair(sender, receiver)
        if addressee != receiver:
            pair.misdeliver(stamp.number)
        pair.deliver(stamp.number)
        return now - self._epoch - stamp.due / 1e6

    def connect(self, name: str) -> None:
        """This user is online from now on. An offline user has to call this before its messages can arrive."""
        self._known.add(name)
        self._offline.discard(name)
        self._online.add(name)
        for pair in self._pairs_of[name]:
            if not pair.guaranteed:
                pair.set_guaranteed(self._is_guaranteed(pair))

    def disconnect(self, name: str, in_order: bool = False) -> None:
        """This user's connection has ended. What is still in flight from it or to it may arrive, or not.

        What it has sent to offline users must still arrive if it disconnected `in_order`, that is, after the server
        had handled everything it had sent; otherwise only what is durable must.
        """
        self._online.discard(name)
        self._offline.discard(name)
        for pair in self._pairs_of[name]:
            if pair.receiver not in self._offline:
                pair.set_guaranteed(False)
            elif not in_order:
                pair.doubt_mail()

    def open_mailbox(self, name: str) -> None:
        """The server knows that this user is offline: what is sent to it from now on waits in its mailbox."""
        self._offline.add(name)
        for pair in self._pairs_of[name]:
            if pair.receiver == name:
                pair.set_guaranteed(pair.sender in self._online)
                pair.mail_due = pair.sent
                pair.durable.clear()  # otherwise it would grow without bound

    def crash(self) -> None:
        """The server may have been killed.

        Messages in mailboxes may be gone unless they are durable. What a user has received who is not online now may
        arrive again: each message once, and in order.
        """
        for pair in self._pairs.values():
            if pair.receiver in self._offline:
                pair.doubt_mail()
            if pair.receiver not in self._online:
                pair.repeatable, pair.repeated = pair.latest, 0

    def settle(self, name: str | None = None) -> None:
        """This user, or everybody, has waited long enough: what is missing now is lost, except for mail."""
        for pair in self._settleable(name):
            pair.settle()

    def pending(self, name: str | None = None) -> int:
        """Return how many messages, of all or from and to this user, must still arrive; mail does not count."""
        return sum(pair.pending for pair in self._settleable(name))

    def balance(self) -> "Balance":
        """Return what became of all messages sent up to now."""
        return Balance([pair.balance() for pair in self._pairs.values()])

    # Mailboxes

    def is_new(self, name: str) -> bool:
        """Whether this user has never been online: messages at its first login are left over from an earlier run."""
        return name not in self._known

    def is_offline(self, name: str) -> bool:
        """Whether messages to this user wait in its mailbox."""
        return name in self._offline

    def receivers_with_mail(self) -> list[str]:
        """Return the users for whom messages may still wait in a mailbox."""
        return sorted({pair.receiver for pair in self._pairs.values() if pair.missing})

    # What the server says about messages

    def last_number(self, sender: str, receiver: str) -> int:
        """Return the number of the last message."""
        return self._pair(sender, receiver).sent

    def mark_durable(self, sender: str, receiver: str, number: int) -> None:
        """This message must arrive even if the sender's connection ends, or if the server is killed."""
        self._pair(sender, receiver).durable.add(number)

    def is_in_mailbox(self, sender: str, receiver: str, number: int) -> bool:
        """Whether this message cannot have been delivered yet: it waits for an offline user."""
        return receiver in self._offline and not self._pair(sender, receiver).is_excused(number)

    def recent(self, one: str, other: str) -> int:
        """Return how many messages between these two, in both directions, have arrived since both are online."""
        pairs = {names: self._pair(*names) for names in ((one, other), (other, one))}
        return sum(pair.recent for pair in pairs.values())

    def check_history(self, sender: str, receiver: str, texts: Sequence[str], is_latest: bool = False) -> None:
        """Check the last texts of this pair, at most `recent` ones, as the server remembers them, oldest first.

        With `is_latest` they have to end with the last message that was sent. Raises ValueError if they are wrong.
        """
        stamps = [decode_stamp(text, receiver) for text in texts]
        if any(stamp.sender != sender for stamp in stamps):
            raise ValueError(f"not all of these are by {sender}: {texts}")
        self._pair(sender, receiver).check_history([stamp.number for stamp in stamps], is_latest)

    def _read(self, sender: str, receiver: str, text: str) -> tuple[Stamp, str]:
        """Return the stamp, and to whom the text was sent: nearly always to `receiver`. Raises ValueError.

        A sender of another process writes to nobody in this one, so the text must have been meant for somebody else.
        """
        if sender not in self._pairs_of and sender not in self._online:
            return _parse(text)[0], ""
        for addressee in chain((receiver,), (other for name, other in self._pairs if name == sender)):
            try:
                stamp = decode_stamp(text, addressee)
            except ValueError:
                continue
            if stamp.sender == sender:
                return stamp, addressee
        raise ValueError(f"{text!r} is not as {sender!r} has sent it to anybody")

    def _settleable(self, name: str | None) -> Iterator[PairLedger]:
        """All pairs, or those of this user, except for those with an offline receiver, whose messages can wait."""
        pairs: Iterable[PairLedger] = self._pairs.values() if name is None else self._pairs_of[name]
        return (pair for pair in pairs if pair.receiver not in self._offline)

    def _pair(self, sender: str, receiver: str) -> PairLedger:
        pair = self._pairs.get((sender, receiver))
        if pair is None:
            pair = self._pairs[sender, receiver] = PairLedger(sender, receiver, guaranteed=False)
            pair.guaranteed = self._is_guaranteed(pair)
            for name in {sender, receiver}:
                self._pairs_of[name].append(pair)
        return pair

    def _is_guaranteed(self, pair: PairLedger) -> bool:
        return pair.sender in self._online and (pair.receiver in self._online or pair.receiver in self._offline)
