"""The presence registry: the users who are online, and those who are notified of changes.

It knows no sessions, sockets or passwords.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from chatserver.transport.outbox import Outbox
from chatserver.transport.receipts import Receipts
from chatserver.transport.turns import Turn
from protocol import HEADER_BYTES, PacketType, encode


class OnlineUser(Protocol):
    """A user in the list of who is online: its id, and its entry in the list as a Config packet."""

    user_id: int
    entry: bytes


@dataclass(slots=True, eq=False)
class Member:
    """A user who is online at this server: its list entry, its outbox, and the features its client asks for."""

    user_id: int
    entry: bytes
    outbox: Outbox
    mails: bool = False  # may write to offline users (section 7.4)
    receipts: Receipts | None = None

    @property
    def turn(self) -> Turn:
        """To wait in line for room in another member's outbox."""
        return self.outbox.turn

    def wait_for_receipts(self) -> None:
        """Wait while this member reads its receipts too slowly to get more."""
        if self.receipts:
            self.outbox.wait_while(self.receipts.is_full)


class Presence(ABC):
    """The registry of the users who are online. One registry serves one server: alone, or as a node of a group.

    `look_up(id)` is as find(), but returns a member even if its outbox takes nothing more. It is an attribute and not a
    method because every run of Messages calls it.
    """

    look_up: Callable[[int], Member | None]

    @abstractmethod
    def join(self, member: Member, secure: Callable[[], object] = lambda: None) -> bool:
        """Put this member online; False if the user is online elsewhere. May raise StorageUnavailable.

        Calls `secure` once no other login can become this user; what that raises ends the login.

        The member's outbox is reserved from then on: others may write to it as soon as they know of it, but its session
        puts the list first. After False or an error it is free again.
        """

    @abstractmethod
    def leave(self, member: Member) -> None:
        """Put this member offline. If another member is this user by now, that one stays online."""

    @abstractmethod
    def watch(self, member: Member, wanted: bool) -> None:
        """Notify this member of arrivals and departures from now on, or stop doing so (section 7.1)."""

    @abstractmethod
    def catch_up(self) -> bool:
        """Wait until everything that has happened so far is known; False if that is impossible now."""

    @abstractmethod
    def find(self, user_id: int) -> Member | None:
        """The member with this id, if messages can reach it through its outbox."""

    @abstractmethod
    def is_online(self, user_id: int) -> bool:
        """Whether messages can reach this user."""

    @abstractmethod
    def everyone(self) -> Sequence[OnlineUser]:
        """All users online, in ascending id order."""

    @abstractmethod
    def __len__(self) -> int:
        """How many users are online at this server."""


class Watchers:
    """The members who asked for presence notices."""

    def __init__(self) -> None:
        self._notices: dict[Member, PresenceNotices] = {}

    def watch(self, member: Member, wanted: bool) -> None:
        """As Presence.watch."""
        if wanted and member not in self._notices:
            self._notices[member] = notices = PresenceNotices(member)
            member.outbox.notices.append(notices.take)
        elif not wanted and member in self._notices:
            member.outbox.notices.remove(self._notices.pop(member).take)

    def notify(self, user: OnlineUser, is_online: bool) -> None:
        """This user has come or gone. Never waits."""
        for notices in self._notices.values():
            notices.add(user, is_online)

    def __len__(self) -> int:
        return len(self._notices)


class PresenceNotices:
    """What one member has still to be told: for each user the latest event (section 7.1)."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._packets: dict[int, bytes] = {}

    def add(self, user: OnlineUser, is_online: bool) -> None:
        """This user has come or gone. Never waits."""
        if user.user_id != self._member.user_id:
            self._packets.pop(user.user_id, None)  # the order is that of the latest events
            self._packets[user.user_id] = encode(PacketType.PRESENCE, bytes((is_online,)) + user.entry[HEADER_BYTES:])
            self._member.outbox.announce()

    def take(self) -> bytes:
        """Remove and return the pending Presence packets."""
        packets = b"".join(self._packets.values())
        self._packets.clear()
        return packets


class LocalPresence(Presence):
    """The registry of a lone server. `join` always succeeds: the caller has made sure that the user is not online."""

    def __init__(self) -> None:
        self._online: dict[int, Member] = {}
        self._watchers = Watchers()
        self.look_up = self._online.get

    def join(self, member: Member, secure: Callable[[], object] = lambda: None) -> bool:
        secure()  # the caller keeps others out, so that nobody is told of a login that fails
        member.outbox.reserve()
        self._online[member.user_id] = member
        self._watchers.notify(member, is_online=True)
        return True

    def leave(self, member: Member) -> None:
        self._watchers.watch(member, wanted=False)
        if self._online.get(member.user_id) is member:
            del self._online[member.user_id]
            self._watchers.notify(member, is_online=False)

    def watch(self, member: Member, wanted: bool) -> None:
        self._watchers.watch(member, wanted)

    def catch_up(self) -> bool:
        return True

    def find(self, user_id: int) -> Member | None:
        member = self._online.get(user_id)
        return member if member is not None and member.outbox.takes else None

    def is_online(self, user_id: int) -> bool:
        return self.find(user_id) is not None

    def everyone(self) -> Sequence[Member]:
        return [member for _, member in sorted(self._online.items()) if member.outbox.takes]

    def __len__(self) -> int:
        return sum(member.outbox.takes for member in self._online.values())

    @property
    def is_empty(self) -> bool:
        """Whether nobody is left: no member, whatever its outbox takes, and no watcher."""
        return not self._online and not self._watchers
