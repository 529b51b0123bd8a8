"""Who is online, and who wants to be told of it.

The relay moves bytes from one client's greenlet to another's. It knows nothing of sessions, sockets or passwords.
"""

from collections.abc import Callable
from dataclasses import dataclass

from chatserver.transport.outbox import Outbox
from chatserver.transport.receipts import Receipts
from protocol import HEADER_BYTES, PacketType, encode


@dataclass(slots=True, eq=False)
class Member:
    """A user who is online: its id, its entry in the list as bytes, the way to it, and what its client asks for."""

    user_id: int
    entry: bytes
    outbox: Outbox
    mails: bool = False  # may write to who is away
    receipts: Receipts | None = None


class Watcher:
    """Tells one member who has come and gone: of each user the last thing that happened (section 7.1)."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._packets: dict[int, bytes] = {}

    def tell(self, other: Member, is_online: bool) -> None:
        """This user has come, or gone. Never waits."""
        if other.user_id != self._member.user_id:
            self._packets.pop(other.user_id, None)  # the order is that of what happened last
            self._packets[other.user_id] = encode(PacketType.PRESENCE, bytes((is_online,)) + other.entry[HEADER_BYTES:])
            self._member.outbox.announce()

    def take(self) -> bytes:
        """The packets that are due; then none are."""
        said = b"".join(self._packets.values())
        self._packets.clear()
        return said


class Presence:
    """Who is online, by id."""

    def __init__(self) -> None:
        self._online: dict[int, Member] = {}
        self.look_up: Callable[[int], Member | None] = self._online.get  # as find, but its outbox may take no more
        self._watchers: dict[Member, Watcher] = {}

    def join(self, member: Member) -> bool:
        """Online from here on; False where somebody else is this user: with one server the caller has made sure."""
        self._online[member.user_id] = member
        for watcher in self._watchers.values():
            watcher.tell(member, is_online=True)
        return True

    def leave(self, member: Member) -> None:
        """Offline from here on; by now somebody else may be this user, and stays."""
        self.watch(member, wanted=False)
        if self._online.get(member.user_id) is member:
            del self._online[member.user_id]
            for watcher in self._watchers.values():
                watcher.tell(member, is_online=False)

    def watch(self, member: Member, wanted: bool) -> None:
        """From here on this member is told who comes and goes, or is not."""
        if wanted and member not in self._watchers:
            self._watchers[member] = watcher = Watcher(member)
            member.outbox.notices.append(watcher.take)
        elif not wanted and member in self._watchers:
            member.outbox.notices.remove(self._watchers.pop(member).take)

    def catch_up(self) -> bool:
        """Know of all who have come and gone by now, whoever has seen to it; False where that cannot be known."""
        return True

    def find(self, user_id: int) -> Member | None:
        """The user of this id, if messages have a way to go there."""
        member = self._online.get(user_id)
        return member if member is not None and member.outbox.takes else None

    def is_online(self, user_id: int) -> bool:
        """Whether messages to this user have a way to go."""
        return self.find(user_id) is not None

    def __len__(self) -> int:
        return sum(member.outbox.takes for member in self._online.values())

    def everyone(self) -> list[Member]:
        """All who are online, in ascending id order."""
        return [member for _, member in sorted(self._online.items()) if member.outbox.takes]
