"""The presence registry of a node: a copy of the directory of all nodes, which follows its events."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from gevent.event import Event

from chatserver.backend import Kick
from chatserver.people.presence import Member, OnlineUser, Presence, Watchers
from chatstorage.interface import StorageUnavailable, User
from cluster.archive import ClusterArchive
from cluster.chats import ReceiverOnline
from cluster.directory import Directory, Elsewhere, Holder
from cluster.engine import ANSWER_SECONDS
from cluster.lease import Lease, now
from protocol import HEADER_BYTES, encode_user, parse_user

log = logging.getLogger("chat")


@dataclass(slots=True, eq=False)
class RemoteUser:
    """A user who is online at another node: its id, its entry in the list, and the node's name."""

    user_id: int
    entry: bytes
    node: str


class ClusterPresence(Presence):
    """The users who are online on all nodes, as of the last event.

    `here` has the members of this node, even before others learn of them.

    look_up() and find() raise ReceiverOnline for a user of another node; locate() finds both.
    """

    def __init__(self, directory: Directory, lease: Lease, id_width: int, archive: ClusterArchive | None) -> None:
        self.here: dict[int, Member] = {}
        self.look_up = self._look_up
        self.is_current = False  # events arrive, and none was missed
        self.is_unsure = False  # a request to the directory got no answer
        self.on_lost: Kick = lambda *_: None  # a user of this node is online elsewhere, or not at all
        self.on_gone: Callable[[str], object] = lambda _: None  # a node has ended or failed
        self.on_left: Callable[[str, int], object] = lambda *_: None  # a user has left another node
        self._users: dict[int, Member | RemoteUser] = {}
        self._watchers = Watchers()
        self._directory = directory
        self._lease = lease
        self._id_width = id_width
        self._archive = archive
        self._applied = 0  # number of the last event
        self._waiters: dict[Event, int] = {}  # the event number that each waits for

    def join(self, member: Member, secure: Callable[[], object] = lambda: None) -> bool:
        member.outbox.reserve()
        with ExitStack() as failed:
            failed.callback(member.outbox.free)
            if not self._join(member):
                return False
            failed.callback(self.leave, member)
            secure()
            failed.pop_all()
        return True

    def _join(self, member: Member) -> bool:
        user = user_of(member)
        self.here[user.id] = member  # before its event can arrive
        try:
            number = self._directory.claim(user)
        except (Elsewhere, KeyError):
            self._forget(member)
            return False
        except StorageUnavailable:
            self.leave(member)  # the claim may have succeeded
            raise
        if not self._wait_for(number) or self._users.get(user.id) is not member:
            self.leave(member)
            raise StorageUnavailable("no presence events arrive from Redis")
        return True

    def leave(self, member: Member) -> None:
        self._remove(member)
        if not self._forget(member):
            return
        self.release(member.user_id)

    def release(self, user_id: int) -> None:
        """Report that this user has left this node, and, if so, that something of it is still unwritten."""
        archive = self._archive if self._archive and self._archive.is_settling(user_id) else None
        if archive:
            archive.has_changed(user_id)
        try:
            self._directory.release(user_id, archive is not None)
        except StorageUnavailable:
            self.is_unsure = True
        finally:
            if archive:
                archive.settle(user_id)

    def watch(self, member: Member, wanted: bool) -> None:
        self._watchers.watch(member, wanted)

    def catch_up(self) -> bool:
        try:
            return self._wait_for(self._directory.last_event())
        except StorageUnavailable:
            return False

    def find(self, user_id: int) -> Member | None:
        member = _only_member(self._users.get(user_id))
        return member if member is not None and member.outbox.takes else None

    def is_online(self, user_id: int) -> bool:
        """As in Presence; a user of another node may just have left, so the node catches up first."""
        if isinstance(self._users.get(user_id), RemoteUser):
            self.catch_up()
        user = self._users.get(user_id)
        return user is not None and _takes(user)

    def everyone(self) -> Sequence[OnlineUser]:
        return [user for _, user in sorted(self._users.items()) if _takes(user)]

    def __len__(self) -> int:
        return len(self.here)

    def _look_up(self, user_id: int) -> Member | None:
        return _only_member(self.locate(user_id))

    def locate(self, user_id: int) -> Member | RemoteUser | None:
        """Where a user is online. Waits until the lease of this node is certain."""
        if now() >= self._lease.certain_until:
            self._lease.hold()
        return self._users.get(user_id)

    def is_certainly_here(self, member: Member) -> bool:
        """Whether this node holds a certain lease, and this member. Never waits."""
        return now() < self._lease.certain_until and self.here.get(member.user_id) is member

    def _forget(self, member: Member) -> bool:
        """Remove it from `here`; False if it is not there, because it has been lost."""
        is_here = self.here.get(member.user_id) is member
        if is_here:
            del self.here[member.user_id]
        return is_here

    def _add(self, user: Member | RemoteUser) -> None:
        self._users[user.user_id] = user
        self._watchers.notify(user, is_online=True)

    def _remove(self, user: Member | RemoteUser) -> None:
        if isinstance(user, Member):
            self._watchers.watch(user, wanted=False)
        if self._users.get(user.user_id) is user:
            del self._users[user.user_id]
            self._watchers.notify(user, is_online=False)

    # Events from the directory

    def replace(self, number: int, everyone: Mapping[int, Holder]) -> None:
        """Become the same as this snapshot, whatever events were missed."""
        for user_id in [*self._users.keys() - everyone.keys()]:
            self._disappear(user_id)
        for user_id, holder in everyone.items():
            self._appear(user_id, holder)
        self.is_current = True
        self._reach(number)

    def apply(self, event: bytes) -> bool:
        """Apply one event; False if an earlier one was missed."""
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
                for gone in [*self._users_of(node)]:
                    self._disappear(gone)
                self.on_gone(node)
            case "k", [user_id]:
                if int(user_id) in self.here:
                    self.on_lost(int(user_id))
        self._reach(int(number))
        return True

    def node_of(self, user_id: int) -> str:
        """The name of the node where a user is online, or ""."""
        match self._users.get(user_id):
            case None:
                return ""
            case RemoteUser(node=node):
                return node
        return self._directory.node

    def users_here(self) -> list[User]:
        """All users who are online at this node, or about to be."""
        return [user_of(member) for member in self.here.values()]

    @property
    def settling(self) -> Collection[int]:
        """The users who have left this node while mail of them is unwritten."""
        return self._archive.settling if self._archive else ()

    def lose(self, user_id: int) -> None:
        """This user is not of this node any more: another node has it, or an operator ended it."""
        if member := self.here.pop(user_id, None):
            self._remove(member)
            self.on_lost(user_id, "no longer online at this node")

    def _users_of(self, node: str) -> Iterator[int]:
        return (user_id for user_id in self._users if self.node_of(user_id) == node)

    def _appear(self, user_id: int, holder: Holder) -> None:
        known = self._users.get(user_id)
        if holder.node == self._directory.node:
            member = self.here.get(user_id)
            if member is not None and member is not known:
                self._add(member)
            return
        if isinstance(known, RemoteUser) and known.node == holder.node:
            return
        if known is not None:
            self._disappear(user_id)
        self._add(RemoteUser(user_id, encode_user(holder.name, user_id, self._id_width), holder.node))

    def _disappear(self, user_id: int) -> None:
        """Take a user out; one that is just joining this node appears later."""
        user = self._users.get(user_id)
        if user and self.here.get(user_id) is user:
            self.lose(user_id)
        elif user:
            self._remove(user)
            if isinstance(user, RemoteUser):
                self.on_left(user.node, user_id)

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


def _takes(user: Member | RemoteUser) -> bool:
    return isinstance(user, RemoteUser) or user.outbox.takes


def _only_member(user: Member | RemoteUser | None) -> Member | None:
    if isinstance(user, RemoteUser):
        raise ReceiverOnline("at another node")
    return user


def user_of(member: Member) -> User:
    """The user in this member's list entry."""
    name, user_id = parse_user(member.entry[HEADER_BYTES:])
    return User(user_id, name)
