"""The directory in Redis: the users who are online, each with its node.

Each node holds a lease, so that nobody stays online at a node that failed. All nodes see all changes in one numbered
order (scripts/common.lua). Only Redis's clock counts.
"""

import secrets
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from chatstorage.interface import StorageUnavailable, User
from cluster.clock import Clock
from cluster.engine import Engine, Script

JOIN, RENEW, QUIT = Script("join"), Script("renew"), Script("quit")
CLAIM, RELEASE, SETTLED, SNAPSHOT = Script("claim"), Script("release"), Script("settled"), Script("snapshot")

SETTLING_MS = 600_000  # at most, until the mail of a user who has left is written


class LeaseRanOut(Exception):
    """The lease of this node has run out: to the others it has failed, and its users are offline."""


class Elsewhere(Exception):
    """This user is online at another node."""


class Holder(NamedTuple):
    """The node where a user is online, and the user's name."""

    node: str
    name: str


class Directory:
    """One node's access to the directory. `node` is its name; after losing its lease, the node gets a new one."""

    def __init__(self, engine: Engine, lease: float) -> None:
        """`lease` in seconds."""
        self.engine = engine
        self.clock = Clock()
        self.node = ""
        self._epoch = 0
        self._lease_ms = round(lease * 1000)

    def join(self) -> None:
        """Join as a node with a new name and nobody online."""
        self.node = secrets.token_hex(6)
        self._join(True, (), ())

    def rejoin(self, users: Iterable[User], settling: Collection[int]) -> list[int]:
        """Report that exactly these users are online here, and that mail of exactly these is still to be written;
        returns the ids of users who are online elsewhere by now. Earlier requests that Redis has not executed yet are
        void. Raises LeaseRanOut.
        """
        return self._join(False, users, settling)

    def _join(self, new: bool, users: Iterable[User], settling: Collection[int]) -> list[int]:
        pairs = [argument for user in users for argument in (user.id, user.name)]
        mail = (SETTLING_MS, len(settling), *settling)
        answer: list[int] = self.engine.run(JOIN, self.node, self._lease_ms, int(new), *mail, *pairs)
        if not answer:
            raise LeaseRanOut
        self._epoch, *lost = answer
        return lost

    def renew(self, may_end_others: bool) -> tuple[float, float]:
        """Renew the lease and, if allowed, end nodes whose lease has run out. Returns the seconds until the next lease
        of another node runs out, or less than 0; and the time in seconds by Redis's clock. Raises LeaseRanOut.
        """
        answer = self.engine.run(RENEW, self.node, self._lease_ms, int(may_end_others))
        if not answer:
            raise LeaseRanOut
        soonest, moment = answer
        return soonest / 1000, moment / 1000

    def quit(self) -> None:
        """Leave the group."""
        self.engine.run(QUIT, self.node)

    def claim(self, user: User) -> int:
        """Put this user online here; returns the event's number. Raises Elsewhere, and KeyError for an unknown user."""
        answer = self.engine.run(CLAIM, self.node, self._epoch, user.id, user.name)
        match answer:
            case [int(number), clock]:
                self.clock.hear(int(clock))
                return number
            case b"held":
                raise Elsewhere(user.name)
            case b"unknown":
                raise KeyError(user.id)
        raise StorageUnavailable("the lease of this node has run out")

    def release(self, user_id: int, settling: bool) -> None:
        """Put this user offline if it was online here; with `settling`, this node still has to write mail of it."""
        self.engine.run(RELEASE, self.node, self._epoch, user_id, SETTLING_MS if settling else 0, self.clock.now)

    def settled(self, user_id: int) -> None:
        """Nothing of this user is unwritten at this node any more."""
        self.engine.run(SETTLED, self.node, user_id)

    def is_online(self, user_id: int) -> bool:
        """Whether this user is online at any node."""
        return bool(self.engine.call("HEXISTS", self.engine.key("online"), user_id))

    def last_event(self) -> int:
        """The number of the last event."""
        return int(self.engine.call("GET", self.engine.key("events")) or 0)

    def snapshot(self) -> tuple[int, set[str], Mapping[int, Holder]]:
        """(number of the last event, names of the nodes, where each user is online by id)."""
        number, nodes, found = self.engine.run(SNAPSHOT)
        return (
            number,
            {node.decode() for node in nodes},
            {int(user_id): read_holder(held) for user_id, held in zip(found[::2], found[1::2], strict=True)},
        )


def read_holder(held: bytes) -> Holder:
    """Parse "node name"."""
    node, _, name = held.decode().partition(" ")
    return Holder(node, name)
