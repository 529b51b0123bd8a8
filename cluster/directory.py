"""Who is online on which node, as Redis has it: leased, so that nobody is online on a node that is gone.

Each change is told to all nodes, in one numbered order (scripts/common.lua). Only Redis's clock counts.
"""

import secrets
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from chatstorage.interface import StorageUnavailable, User
from cluster.clock import Clock
from cluster.engine import Engine, Script

JOIN, RENEW, QUIT = Script("join"), Script("renew"), Script("quit")
CLAIM, RELEASE, SNAPSHOT = Script("claim"), Script("release"), Script("snapshot")


class LeaseRanOut(Exception):
    """Everyone else takes this node for dead, and its users for offline."""


class Elsewhere(Exception):
    """This user is online on another node."""


class Holder(NamedTuple):
    """Where a user is online, and under which name."""

    node: str
    name: str


class Directory:
    """One node's part of it. `node` is the name of one life of it: one that lost its lease comes back as another."""

    def __init__(self, engine: Engine, lease: float) -> None:
        """`lease` in seconds."""
        self.engine = engine
        self.clock = Clock()
        self.node = ""
        self._epoch = 0
        self._lease_ms = round(lease * 1000)

    def join(self) -> None:
        """Be a node, of a new name, with nobody online."""
        self.node = secrets.token_hex(6)
        self._join(True, ())

    def rejoin(self, users: Iterable[User]) -> list[int]:
        """With these users online, and no others; the ids of those who are online elsewhere by now. What was asked for
        before and has not been done yet never will be. Raises LeaseRanOut.
        """
        return self._join(False, users)

    def _join(self, new: bool, users: Iterable[User]) -> list[int]:
        pairs = [argument for user in users for argument in (user.id, user.name)]
        answer: list[int] = self.engine.run(JOIN, self.node, self._lease_ms, int(new), *pairs)
        if not answer:
            raise LeaseRanOut
        self._epoch, *lost = answer
        return lost

    def renew(self, may_end_others: bool) -> float:
        """Stay for another lease, and, if we may, end nodes that have not; seconds until that of another one runs out,
        or less than 0. Raises LeaseRanOut.
        """
        answer = self.engine.run(RENEW, self.node, self._lease_ms, int(may_end_others))
        if not answer:
            raise LeaseRanOut
        return int(answer[0]) / 1000

    def quit(self) -> None:
        """Be no node any more."""
        self.engine.run(QUIT, self.node)

    def claim(self, user: User) -> int:
        """This user is online here; the number of the event. Raises Elsewhere, KeyError for an unknown user."""
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

    def release(self, user_id: int, settling: float) -> None:
        """This user is offline, as far as it was online here; mail for it may still come for so many seconds."""
        self.engine.run(RELEASE, self.node, self._epoch, user_id, round(settling * 1000), self.clock.now)

    def is_online(self, user_id: int) -> bool:
        """Anywhere."""
        return bool(self.engine.call("HEXISTS", self.engine.key("online"), user_id))

    def last_event(self) -> int:
        """The number of what was told last."""
        return int(self.engine.call("GET", self.engine.key("events")) or 0)

    def snapshot(self) -> tuple[int, set[str], Mapping[int, Holder]]:
        """The nodes, and everyone who is online, by id, as of the event of this number."""
        number, nodes, found = self.engine.run(SNAPSHOT)
        return (
            number,
            {node.decode() for node in nodes},
            {int(user_id): read_holder(held) for user_id, held in zip(found[::2], found[1::2], strict=True)},
        )


def read_holder(held: bytes) -> Holder:
    """Of "node name"."""
    node, _, name = held.decode().partition(" ")
    return Holder(node, name)
