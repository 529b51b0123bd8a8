"""A truthful network never makes the ledger find a fault, and every damage done by one that is not is named."""

from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from loadtest.core.balance import Fault
from loadtest.core.ledger import Ledger
from loadtest.core.pair import FaultFound

USERS = ("ann", "bob", "cat")
WHO = st.sampled_from(USERS)


class Packet(NamedTuple):
    sender: str
    receiver: str
    text: str


class Refusal(NamedTuple):
    sender: str
    receiver: str


@dataclass
class Link:
    """One user's connection: what is on its way to the server, and back. None is the answer to the login."""

    up: deque[Packet] = field(default_factory=deque)
    down: deque[Packet | Refusal | None] = field(default_factory=lambda: deque([None]))
    served: bool = True  # the server takes it for open
    open: bool = True  # so does the user
    is_in: bool = False  # the user has read the answer to the login


class TruthfulNetwork(RuleBasedStateMachine):
    """Users log in and leave while their messages and the refusals are in flight; the server makes no mistake.

    Everybody learns of everything late: the server of a user who hung up, a user of the server's hanging up, a sender
    that its receiver is gone. What is on a connection that ends may still be read or not, but never out of order.
    """

    @initialize()
    def start(self) -> None:
        self._ledger = Ledger(lambda: 0.0)
        self._links: dict[str, Link] = {}
        self._online: set[str] = set()  # as the ledger has been told
        self._sent: Counter[tuple[str, str]] = Counter()
        self._delivered: Counter[tuple[str, str]] = Counter()
        self._refused: Counter[tuple[str, str]] = Counter()
        self._expected: list[Packet] = []  # in flight, sent since both ends are online
        for who in USERS:
            self._links[who] = Link()
            self.read(who, 1)

    # What users do

    @rule(who=WHO, at_once=st.booleans())
    def connect_again(self, who: str, at_once: bool) -> None:
        """The server lets nobody in twice."""
        if not (self._links[who].open and self._links[who].served):
            self.hang_up(who)
            self.stop_reading(who)
            self.close(who)
            self._links[who] = Link()
            self.read(who, int(at_once))

    @rule(who=WHO, to=WHO, count=st.integers(1, 3))
    def say(self, who: str, to: str, count: int) -> None:
        if who in self._online:
            for _ in range(count):
                packet = self._write(who, to)
                if self._links[who].served:  # otherwise it leads nowhere
                    self._links[who].up.append(packet)
                    if {who, to} <= self._online:
                        self._expected.append(packet)

    @rule(who=WHO, to=WHO, went_out=st.booleans())
    def say_and_fail(self, who: str, to: str, went_out: bool) -> None:
        if who in self._online:
            packet = self._write(who, to)
            self._ledger.doubt(who, to)
            if went_out and self._links[who].served:
                self._links[who].up.append(packet)

    def _write(self, who: str, to: str) -> Packet:
        packet = Packet(who, to, self._ledger.send(who, to, 0.0))
        self._sent[who, to] += 1
        return packet

    @rule(who=WHO, count=st.integers(1, 5))
    def read(self, who: str, count: int) -> None:
        """Also what has come before the user hung up."""
        link = self._links[who]
        for _ in range(count):
            if link.down:
                self._take(who, link, link.down.popleft())
            elif link.open and not link.served:
                self._end(who, link)

    def _take(self, who: str, link: Link, packet: Packet | Refusal | None) -> None:
        match packet:
            case None if link.open:
                link.is_in = True
                self._online.add(who)
                self._change(who)
                self._ledger.connect(who)
            case Packet(sender, receiver, text):
                self._ledger.receive(sender, who, text)
                self._delivered[sender, receiver] += 1
                self._forget(packet)
            case Refusal(sender, receiver):
                self._ledger.refuse(sender, receiver)
                self._refused[sender, receiver] += 1

    @rule(who=WHO)
    def hang_up(self, who: str) -> None:
        link = self._links[who]
        if link.open:
            self._end(who, link)

    @rule(who=WHO, leaves=st.booleans())
    def settle(self, who: str, leaves: bool) -> None:
        """What a user does who has waited until all has been heard; the server notices at once that it leaves."""
        if self._ledger.pending(who) == 0:
            self._ledger.settle(who)
            if leaves:
                self.hang_up(who)
                self.close(who)

    @rule(who=WHO)
    def stop_reading(self, who: str) -> None:
        link = self._links[who]
        if not link.open:
            link.down.clear()

    def _end(self, who: str, link: Link) -> None:
        link.open = False
        if link.is_in:
            self._online.discard(who)
            self._change(who)
            self._ledger.disconnect(who)

    # What the server does

    @rule(who=WHO, count=st.integers(1, 5))
    def serve(self, who: str, count: int) -> None:
        link = self._links[who]
        for _ in range(count):
            if link.served and link.up:
                packet = link.up.popleft()
                target = self._links[packet.receiver]
                if target.served:
                    target.down.append(packet)
                else:
                    link.down.append(Refusal(packet.sender, packet.receiver))
                    self._forget(packet)

    @rule(times=st.integers(1, 3), first=WHO)
    def flow(self, times: int, first: str) -> None:
        """A while without logins and departures, except of users who notice that the server has hung up."""
        for who in (first, *USERS) * times:
            self.serve(who, 3)
            self.read(who, 3)

    @rule(who=WHO)
    def close(self, who: str) -> None:
        """The user has hung up, or the server wants no more of it."""
        link = self._links[who]
        if link.served:
            link.served = False
            for packet in link.up:
                self._forget(packet)
            link.up.clear()

    # What must hold

    def _change(self, who: str) -> None:
        self._expected = [packet for packet in self._expected if who not in packet[:2]]

    def _forget(self, packet: Packet) -> None:
        with suppress(ValueError):
            self._expected.remove(packet)

    @invariant()
    def nothing_but_what_is_under_way_can_be_missing(self) -> None:
        for line in self._ledger.balance().pairs:
            assert set(line.faults) <= {"lost"}
            assert line.unbalanced == 0

    @invariant()
    def what_is_under_way_is_open(self) -> None:
        for who in USERS:
            assert self._ledger.pending(who) >= sum(who in packet[:2] for packet in self._expected)

    def teardown(self) -> None:
        """When all has been heard nothing is open; when all have gone the books balance, and say what has happened."""
        while any(link.up or link.down for link in self._links.values()):
            for who in USERS:
                self.serve(who, 5)
                self.stop_reading(who)
                self.read(who, 5)
                if not self._links[who].open:
                    self.close(who)
        for who in USERS:
            self.read(who, 1)  # that the server has hung up
        assert self._ledger.pending() == 0
        for who in USERS:
            self._ledger.settle(who)
            self.hang_up(who)
        assert self._ledger.balance().findings() == []
        for line in self._ledger.balance().pairs:
            pair = line.sender, line.receiver
            assert line.sent == self._sent[pair] == line.delivered + line.refused + line.in_flight
            assert line.delivered == self._delivered[pair]
            assert line.refused == self._refused[pair]


TestTruthfulNetwork = TruthfulNetwork.TestCase
TestTruthfulNetwork.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)


# Damage, while both ends are online


@st.composite
def damages(draw: st.DrawFn) -> tuple[int, dict[int, Fault]]:
    """How many messages are sent, and what happens to some of them; those next to them stay whole."""
    count = draw(st.integers(1, 30))
    damage: dict[int, Fault] = {}
    for number in range(1, count):  # not to the last one: nothing can be overtaken by what is never sent
        if number - 1 not in damage and (fault := draw(st.none() | st.sampled_from(Fault))):
            damage[number] = fault
    return count, damage


def flip(text: str, draw: st.DataObject) -> str:
    place, bit = draw.draw(st.integers(0, len(text) - 1)), draw.draw(st.integers(0, 6))
    return text[:place] + chr(ord(text[place]) ^ 1 << bit) + text[place + 1 :]


@given(damaged=damages(), swapped=st.booleans(), data=st.data())
@settings(max_examples=200, deadline=None)
def test_every_damage_is_found_and_named_by_its_number(
    damaged: tuple[int, dict[int, Fault]], swapped: bool, data: st.DataObject
) -> None:
    count, damage = damaged
    ledger = Ledger(lambda: 0.0)
    for who in USERS:
        ledger.connect(who)
    for_bob = [ledger.send("ann", "bob", 0.0) for _ in range(count)]
    for_cat = [ledger.send("ann", "cat", 0.0) for _ in range(count)]  # who has messages with the same numbers
    arrivals: list[tuple[float, str, str]] = []  # when, at whom
    found: list[Fault] = []
    for number, (text, other) in enumerate(zip(for_bob, for_cat, strict=True), start=1):
        arrivals.append((number, "cat", other))
        match damage.get(number):
            case None:
                arrivals.append((number, "bob", text))
            case Fault.DUPLICATED:
                arrivals.append((number, "bob", text))
                arrivals.append((data.draw(st.integers(number, count)) + 0.2, "bob", text))
            case Fault.REORDERED:
                arrivals.append((data.draw(st.integers(number + 1, count)) + 0.1, "bob", text))
            case Fault.CORRUPTED:
                arrivals.append((number, "bob", flip(text, data)))
            case Fault.MISDELIVERED:
                arrivals.append((number, "cat", text))
                if swapped:
                    arrivals.remove((number, "cat", other))
                    arrivals.append((number, "bob", other))
    for _, who, text in sorted(arrivals):
        try:
            ledger.receive("ann", who, text)
        except FaultFound as error:
            found.append(error.fault)
    if data.draw(st.booleans()):
        ledger.settle("ann")
        ledger.disconnect("bob")

    def numbers(*faults: Fault) -> list[list[int]]:
        return [[number, number] for number, fault in damage.items() if fault in faults]

    misdelivered = numbers(Fault.MISDELIVERED)
    bob, cat = ledger.balance().pairs
    for fault in (Fault.DUPLICATED, Fault.REORDERED, Fault.CORRUPTED):
        assert bob.faults.get(fault, []) == numbers(fault)
    assert bob.faults.get(Fault.LOST, []) == numbers(Fault.LOST, Fault.MISDELIVERED)
    assert bob.faults.get(Fault.MISDELIVERED, []) == (misdelivered if swapped else [])
    assert cat.faults.get(Fault.MISDELIVERED, []) == misdelivered
    assert cat.faults.get(Fault.LOST, []) == (misdelivered if swapped else [])
    assert set(cat.faults) <= {Fault.MISDELIVERED, Fault.LOST}
    assert [bob.unbalanced, cat.unbalanced, bob.in_flight, cat.in_flight] == [0, 0, 0, 0]
    raised = [fault for fault in damage.values() if fault not in (Fault.LOST, Fault.REORDERED)]
    assert Counter(found) == Counter(raised + [Fault.MISDELIVERED] * swapped * len(misdelivered))
