"""One connection as stress/model.py sees it, and what is due to it: packets in order, and notices in any order."""

from collections import deque
from collections.abc import Set
from dataclasses import dataclass, field

from protocol import PacketType
from stress import wire

PRESENCE, RECEIPTS, HISTORY, MAILBOX, BRIEF = 1, 2, 4, 8, 16  # features
STORED, DELIVERED = 1, 2  # levels

Numbered = tuple[int, int]  # the level that a Message has reached, and its number


@dataclass(eq=False, repr=False, slots=True)
class ModelClient:
    """`user_id` and `partner` are 0 until the login and the first Chat Init."""

    name: str = ""
    user_id: int = 0
    partner: int = 0
    features: int = 0
    wrong_passwords: int = 0
    numbered: int = 0  # Messages that it has sent
    closed: bool = False
    unreachable: bool = False
    rest: bytes = b""
    put: int = 0  # bytes, of all that has been due
    room: int | None = None  # ... and of what there was room for when it was dropped, which is still to be told
    begun: bool = False  # ... in the middle of a packet that is due
    lost_in: int = 0  # ... while this run of Messages was handed over
    due: deque[tuple[bytes, "Message | None"]] = field(default_factory=deque)  # with the last packet of each Message it
    heard: list["Message"] = field(default_factory=list)  # lately
    receipts: set[Numbered] = field(default_factory=set)  # that are due
    early: set[Numbered] = field(default_factory=set)  # that may come already
    presence: dict[int, list[bytes]] = field(default_factory=dict)  # the same by user, in order
    stale_receipts: set[Numbered] = field(default_factory=set)  # that may come, and need not
    stale_presence: set[bytes] = field(default_factory=set)  # the same
    asking: object | None = None  # for receipts: a new object for each request

    def __str__(self) -> str:
        return f"{self.name or 'who has not logged in'} ({self.user_id})"

    @property
    def takes(self) -> bool:
        """Whether packets can still reach this client."""
        return not (self.closed or self.unreachable)

    @property
    def accepted(self) -> Set[int]:
        """The packet types that this client may send."""
        return wire.WITH_HISTORY if self.features & HISTORY else wire.CORE

    def ask(self, features: int) -> None:
        """The client asks for these features, in place of those before (section 7)."""
        self.forget(self.features & ~features)
        self.features = features
        if features & RECEIPTS:
            self.asking = self.asking or object()

    def forget(self, features: int = PRESENCE | RECEIPTS) -> None:
        """Notices of these features are no longer due; some may be in flight."""
        if features & RECEIPTS:
            self.stale_receipts |= self.receipts | self.early
            self.receipts.clear()
            self.early.clear()
            self.asking = None
        if features & PRESENCE:
            self.stale_presence.update(notice for events in self.presence.values() for notice in events)
            self.presence.clear()

    def hear(self) -> bytes:
        """It has got the next packet that it is due; b"" if none is. With its last packet it has a Message. That those
        who wrote to it are told so before it has all is open.
        """
        packet, message = self.due.popleft() if self.due else (b"", None)
        if message:
            message.reach(DELIVERED)
            self.heard.append(message)
        if not self.due:
            self.has_all()
        return packet

    def has_all(self) -> None:
        """Nothing is in flight to this client."""
        for message in self.heard:
            message.reach(DELIVERED, surely=True)
        self.heard.clear()

    def allows(self, notice: bytes) -> bool:
        """Whether it may be told this, which then is not due any more.

        The page leaves open how receipts come together in ranges, and what more than the last a slow reader is told.
        """
        if notice[0] == PacketType.RECEIPT:
            level, first, last = wire.receipt(notice)
            numbers = {(level, number) for number in range(first, min(last, self.numbered) + 1)}
            may_come = self.receipts | self.early | self.stale_receipts
            for some in (self.receipts, self.early, self.stale_receipts):
                some -= numbers
            return len(numbers) == last - first + 1 > 0 and numbers <= may_come
        events = self.presence.get(notice[-1], [])
        if notice not in events:
            return notice in self.stale_presence
        while notice in events:
            events.pop(0)
        if not events:
            del self.presence[notice[-1]]
        return True


@dataclass(eq=False, slots=True)
class Message:
    """A Message that was handed over, or waits in the mailbox. Sender and receiver are ids; `of` is the sender's
    connection.
    """

    of: ModelClient
    sender: int
    receiver: int
    packets: list[bytes]
    number: int  # of those of its connection
    place: int  # in the order of all
    asking: object | None  # for receipts, when it was sent
    owed: bool  # where it cannot be delivered, it is for the mailbox
    waits: bool = False
    is_stored: bool = False

    def reach(self, level: int, surely: bool = False) -> None:
        """It has come so far (7.2), so its sender may be told; or `surely` is told now, if not before.

        Open is whether a client is told what was sent before it asked anew, or has come about while it did not ask, or
        just before it is closed.
        """
        peer, told = self.of, (level, self.number)
        if not self.asking or peer.unreachable:
            return
        if not surely:
            (peer.early if self.asking is peer.asking else peer.stale_receipts).add(told)
        elif told in peer.early:
            peer.early.remove(told)
            peer.receipts.add(told)
