"""Who is online on all nodes: a copy of the directory that follows what is told of it, event by event."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import gevent
from gevent.event import Event

from chatserver.backend import Kick
from chatserver.people.presence import Member, Presence
from chatserver.transport.marks import Fate
from chatserver.transport.outbox import Outbox
from chatserver.transport.receipts import Receipts
from chatstorage.interface import StorageUnavailable, User
from cluster.archive import ClusterArchive
from cluster.chats import ReceiverOnline
from cluster.directory import Directory, Elsewhere, Holder
from cluster.engine import ANSWER_SECONDS
from cluster.lease import Lease, now
from protocol import HEADER_BYTES, Run, encode_user, parse_user

SETTLING_SECONDS = 600.0  # that mail of who has left may take to be written, at most

log = logging.getLogger("chat")


class Nowhere(Outbox):
    """What the users of other nodes have for an outbox here."""

    def deliver(self, _: Run, __: Fate) -> int:
        raise ReceiverOnline("on another node, just now")


@dataclass(slots=True, eq=False)
class RemoteMember(Member):
    """A user who is online on another node."""

    node: str = ""


class ClusterPresence(Presence):
    """`_online` has everyone, as of the last event; `here` those of this node, from before they are told of."""

    def __init__(self, directory: Directory, lease: Lease, id_width: int, archive: ClusterArchive | None) -> None:
        super().__init__()
        self.here: dict[int, Member] = {}
        self.look_up = self._look_up
        self.is_current = False  # events come in, and none was missed
        self.is_unsure = False  # something was asked of the directory, and no answer came
        self.on_lost: Kick = lambda *_: None  # a user of this node is one no more
        self.on_gone: Callable[[str], object] = lambda _: None  # a node has ended, or was taken for dead
        self.on_left: Callable[[str, int], object] = lambda *_: None  # a user has left another node
        self._directory = directory
        self._lease = lease
        self._id_width = id_width
        self._archive = archive
        self._nowhere = Nowhere(0, lambda: None)
        self._applied = 0  # the number of the last event
        self._waiters: dict[Event, int] = {}  # for the event of this number

    # As in Presence

    def join(self, member: Member) -> bool:
        """The outbox of one who has joined is reserved: as soon as others know of this user they write, and its session
        has not put the list there yet. Raises StorageUnavailable.
        """
        member.outbox.reserve()
        joined = False
        try:
            joined = self._join(member)
        finally:
            if not joined:
                member.outbox.free()
        return joined

    def _join(self, member: Member) -> bool:
        user = user_of(member)
        self.here[user.id] = member  # before its event can come
        try:
            number = self._directory.claim(user)
        except (Elsewhere, KeyError):
            self._forget(member)
            return False
        except StorageUnavailable:
            self.leave(member)  # it is not known whether it has come that far
            raise
        if not self._wait_for(number) or self._online.get(user.id) is not member:
            self.leave(member)
            raise StorageUnavailable("no word of who is online comes from Redis")
        return True

    def leave(self, member: Member) -> None:
        super().leave(member)
        if not self._forget(member):
            return
        archive = self._archive if self._archive and self._archive.is_settling(member.user_id) else None
        try:
            self._directory.release(member.user_id, SETTLING_SECONDS if archive else 0)
        except StorageUnavailable:
            self.is_unsure = True
        if archive:
            gevent.spawn(archive.settle, member.user_id)

    def _forget(self, member: Member) -> bool:
        """False where it has been lost already."""
        is_here = self.here.get(member.user_id) is member
        if is_here:
            del self.here[member.user_id]
        return is_here

    def catch_up(self) -> bool:
        try:
            return self._wait_for(self._directory.last_event())
        except StorageUnavailable:
            return False

    def is_online(self, user_id: int) -> bool:
        """A user of another node may have left just now."""
        if isinstance(super().find(user_id), RemoteMember):
            self.catch_up()
        return super().is_online(user_id)

    def __len__(self) -> int:
        return len(self.here)

    def _look_up(self, user_id: int) -> Member | None:
        if now() >= self._lease.certain_until:
            self._lease.hold()
        return self._online.get(user_id)

    # What comes from the directory

    def replace(self, number: int, everyone: Mapping[int, Holder]) -> None:
        """All is as in this snapshot, whatever was missed."""
        for user_id in [*self._online.keys() - everyone.keys()]:
            self._disappear(user_id)
        for user_id, holder in everyone.items():
            self._appear(user_id, holder)
        self.is_current = True
        self._reach(number)

    def apply(self, event: bytes) -> bool:
        """One thing has happened; False where one before it was missed."""
        number, kind, *what = event.decode().split(" ")
        if int(number) <= self._applied:
            return True
        if int(number) != self._applied + 1:
            return False
        match kind, what:
            case "+", [user_id, node, name]:
                self._appear(int(user_id), Holder(node, name))
            case "-", [user_id, node]:
                if self.node_of(int(user_id)) == node:
                    self._disappear(int(user_id))
            case "x", [node]:
                for gone in [*self._of_node(node)]:
                    self._disappear(gone)
                self.on_gone(node)
            case "k", [user_id]:
                if int(user_id) in self.here:
                    self.on_lost(int(user_id))
        self._reach(int(number))
        return True

    def node_of(self, user_id: int) -> str:
        """The name of the node where a user is online, or ""."""
        match self._online.get(user_id):
            case None:
                return ""
            case RemoteMember(node=node):
                return node
        return self._directory.node

    def stand_in(self, user_id: int, mails: bool, receipts: Receipts | None) -> Member:
        """For a user of another node, who writes to one of this node."""
        return Member(user_id, b"", self._nowhere, mails, receipts)

    def users_here(self) -> list[User]:
        """All who are online on this node, or about to be."""
        return [user_of(member) for member in self.here.values()]

    def lose(self, user_id: int) -> None:
        """Of this node no more, as another one, or an operator, has it."""
        if member := self.here.pop(user_id, None):
            super().leave(member)
            self.on_lost(user_id, "online here no more")

    def _of_node(self, node: str) -> Iterator[int]:
        return (user_id for user_id in self._online if self.node_of(user_id) == node)

    def _appear(self, user_id: int, holder: Holder) -> None:
        known = self._online.get(user_id)
        if holder.node == self._directory.node:
            member = self.here.get(user_id)
            if member is None or member is known:
                return
        else:
            if isinstance(known, RemoteMember) and known.node == holder.node:
                return
            if known is not None:
                self._disappear(user_id)
            entry = encode_user(holder.name, user_id, self._id_width)
            member = RemoteMember(user_id, entry, self._nowhere, node=holder.node)
        super().join(member)

    def _disappear(self, user_id: int) -> None:
        """Whoever is just coming to this node does so later."""
        member = self._online.get(user_id)
        if member and self.here.get(user_id) is member:
            self.lose(user_id)
        elif member:
            super().leave(member)
            if isinstance(member, RemoteMember):
                self.on_left(member.node, user_id)

    def _reach(self, number: int) -> None:
        self._applied = number
        for waiter in [waiter for waiter, wanted in self._waiters.items() if wanted <= number]:
            waiter.set()

    def _wait_for(self, number: int) -> bool:
        if self.is_current and self._applied >= number:
            return True
        waiter = Event()
        self._waiters[waiter] = number
        try:
            return waiter.wait(ANSWER_SECONDS) and self.is_current
        finally:
            del self._waiters[waiter]


def user_of(member: Member) -> User:
    """Whose entry this is."""
    name, user_id = parse_user(member.entry[HEADER_BYTES:])
    return User(user_id, name)
