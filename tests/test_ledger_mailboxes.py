"""The ledger where messages wait in mailboxes: a truthful server, killed or not, never makes it find a fault."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from loadtest.core.ledger import Ledger
from loadtest.core.pair import AllowedRepeat

USERS = ("ann", "bob", "cat")
WHO = st.sampled_from(USERS)


class Packet(NamedTuple):
    """`mailed` is its number if its receiver was away when it was sent, else 0."""

    sender: str
    receiver: str
    text: str
    mailed: int


class Stored(NamedTuple):
    """A receipt."""

    packet: Packet


@dataclass
class Link:
    """One user's connection: what is on its way to the server, in its outbox, and on the way back. None is the list."""

    up: deque[Packet] = field(default_factory=deque)
    out: deque[Packet | Stored | None] = field(default_factory=deque)
    down: deque[Packet | Stored | None] = field(default_factory=deque)
    served: bool = True  # the server takes it for open
    open: bool = True  # so does the user
    is_in: bool = False  # the user has read the list
    is_told: bool = True  # the user will learn why it ends

    @property
    def is_over(self) -> bool:
        return not (self.open or self.served)


class TruthfulPost(RuleBasedStateMachine):
    """Users come and go, in order or not, and the server is killed now and then: then it forgets what was not on disk,
    and delivers again what it had not noted there.
    """

    @initialize()
    def start(self) -> None:
        self._ledger = Ledger(lambda: 0.0)
        self._links = {who: Link(served=False, open=False) for who in USERS}
        self._waiting: list[Packet] = []  # in mailboxes, or in an outbox
        self._on_disk: list[Packet] = []
        self._sent: Counter[tuple[str, str]] = Counter()
        self._delivered: Counter[tuple[str, str]] = Counter()
        for who in USERS:
            self.connect(who)
            self.flow()

    # What users do

    @rule(who=WHO)
    def connect(self, who: str) -> None:
        if self._links[who].is_over:
            if self._ledger.is_offline(who):
                self._ledger.connect(who)
            mail = (packet for packet in self._waiting if packet.receiver == who)
            self._links[who] = Link(out=deque([None, *mail]))

    @rule(who=WHO, to=WHO, count=st.integers(1, 3), fails=st.booleans())
    def say(self, who: str, to: str, count: int, fails: bool) -> None:
        link = self._links[who]
        for _ in range(count if link.is_in and link.open else 0):
            text = self._ledger.send(who, to, 0.0)
            self._sent[who, to] += 1
            if link.served:
                link.up.append(Packet(who, to, text, self._sent[who, to] if self._ledger.is_offline(to) else 0))
        if fails and link.is_in and link.open:
            self._ledger.doubt(who, to)
            self.hang_up(who)

    @rule(who=WHO, count=st.integers(1, 5))
    def read(self, who: str, count: int) -> None:
        """Also what has come before the user hung up."""
        link = self._links[who]
        for _ in range(count):
            if link.down:
                self._take(who, link, link.down.popleft())
            elif link.open and not link.served:
                self._end(link, who)
                if not link.is_told:
                    self._ledger.crash()

    def _take(self, who: str, link: Link, packet: Packet | Stored | None) -> None:
        match packet:
            case None if link.open:
                link.is_in = True
                self._ledger.connect(who)
            case Stored(stored) if stored.mailed and link.open:
                self._ledger.mark_durable(stored.sender, stored.receiver, stored.mailed)
            case Packet(sender, receiver, text):
                try:
                    self._ledger.receive(sender, who, text)
                    self._delivered[sender, receiver] += 1
                except AllowedRepeat:
                    pass

    @rule(who=WHO)
    def hang_up(self, who: str) -> None:
        if self._links[who].open:
            self._end(self._links[who], who)

    def _end(self, link: Link, who: str) -> None:
        link.open = link.is_in = False
        link.down.clear()
        self._ledger.disconnect(who)

    @rule(who=WHO)
    def leave(self, who: str) -> None:
        """In order: everything sent is handled, and nothing is in flight any more."""
        link = self._links[who]
        if link.is_in and link.served and not (link.up or link.out or link.down or self._ledger.pending(who)):
            self._ledger.settle(who)
            link.open = link.is_in = False
            self._ledger.disconnect(who, in_order=True)

    @rule(who=WHO)
    def see_off(self, who: str) -> None:
        """Somebody has been told that this user is not online."""
        if self._links[who].is_over:
            self._ledger.open_mailbox(who)

    @rule(who=WHO, others=st.permutations(USERS), synced=st.booleans(), fails=st.booleans())
    def travel(self, who: str, others: list[str], synced: bool, fails: bool) -> None:
        """What it takes to be written to while away."""
        self.flow()
        self.leave(who)
        self.close(who)
        self.see_off(who)
        for other in others:
            self.connect(other) if other != who else None
            self.flow()
            self.say(other, who, 2, fails)
            self.serve(other, 5)
            if synced:
                self.sync()

    # What the server does

    @rule(who=WHO, count=st.integers(1, 5))
    def serve(self, who: str, count: int) -> None:
        link = self._links[who]
        for _ in range(min(count, len(link.up) if link.served else 0)):
            packet = link.up.popleft()
            self._waiting.append(packet)
            if self._links[packet.receiver].served:
                self._links[packet.receiver].out.append(packet)

    @rule(who=WHO, count=st.integers(1, 5))
    def write(self, who: str, count: int) -> None:
        """What goes into a connection is delivered, whether or not anybody reads it."""
        link = self._links[who]
        for _ in range(min(count, len(link.out) if link.served else 0)):
            packet = link.out.popleft()
            if isinstance(packet, Packet):
                self._waiting.remove(packet)
                assert not self._ledger.is_in_mailbox(packet.sender, who, packet.mailed)
            if link.open:
                link.down.append(packet)

    @rule(who=WHO)
    def close(self, who: str) -> None:
        """The user has hung up, or the server wants no more of it: what is in the outbox waits from now on."""
        link = self._links[who]
        link.served = False
        link.up.clear()
        link.out.clear()

    @rule()
    def sync(self) -> None:
        for packet in self._waiting:
            link = self._links[packet.sender]
            if packet not in self._on_disk and link.served:
                link.out.append(Stored(packet))
        self._on_disk = self._waiting.copy()

    @rule()
    def kill(self) -> None:
        if any(link.is_in and link.open and link.served for link in self._links.values()):  # or nobody would notice
            for who in USERS:
                if not self._links[who].served:
                    self.read(who, len(self._links[who].down) + 1)  # it ended before, so it is heard of before
            for who in USERS:
                self._links[who].is_told = not self._links[who].served
                self.close(who)
            self._waiting = self._on_disk.copy()
            for who in USERS:
                self.read(who, len(self._links[who].down) + 1)

    @rule()
    def flow(self) -> None:
        """A while in which nobody comes or goes."""
        for who in USERS * 2:
            self.serve(who, 5)
            self.write(who, 5)
            self.read(who, 5)

    # What must hold

    @invariant()
    def nothing_but_what_is_under_way_can_be_missing(self) -> None:
        for line in self._ledger.balance().pairs:
            assert set(line.faults) <= {"lost"}
            assert line.unbalanced == 0

    def teardown(self) -> None:
        """A user who collects its mail finds all of it; then the ledger balances."""
        for who in USERS:
            if not (self._links[who].is_in and self._links[who].served):
                self.hang_up(who)
                self.close(who)
                self.connect(who)
        while any(link.up or link.out or link.down for link in self._links.values()):
            self.flow()
        assert self._waiting == []
        assert self._ledger.pending() == 0
        for who in USERS:
            self.leave(who)
        assert self._ledger.balance().findings() == []
        for line in self._ledger.balance().pairs:
            pair = line.sender, line.receiver
            assert line.sent == self._sent[pair] == line.delivered + line.in_flight
            assert line.delivered == self._delivered[pair]


TestTruthfulPost = TruthfulPost.TestCase
TestTruthfulPost.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
