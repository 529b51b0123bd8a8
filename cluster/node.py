"""The life of a node: it joins, renews its lease, notices that Redis is away or that its lease ran out, and leaves.

While Redis is away, users of one node chat with each other as before, and everything else is refused (delivery.py).
When Redis is back, the node first reports who is online at it and learns who is elsewhere.
"""

import logging
import time
from math import inf

import gevent
from gevent import Greenlet
from gevent.event import AsyncResult

from chatserver.backend import Kick
from chatstorage.interface import StorageUnavailable
from cluster.bus import AWAY, NOT_HERE, Bus
from cluster.directory import Directory, LeaseRanOut
from cluster.engine import pauses
from cluster.lease import Lease, now
from cluster.link import Link
from cluster.presence import ClusterPresence

RENEWALS = 4  # within the time of a lease
AGAIN = b"0 again "  # plus a node's name, to all nodes: that node may have missed their requests
LATELY_SECONDS = 600.0  # so long after it was seen, another node counts as there
CALL = b""  # from a node to itself, to check that published messages arrive

log = logging.getLogger("chat")


class Node:
    """One process of the group."""

    def __init__(self, directory: Directory, lease: Lease, presence: ClusterPresence, bus: Bus) -> None:
        """`directory` has been joined."""
        self._directory = directory
        self._engine = directory.engine
        self._lease = lease
        self._presence = presence
        self._bus = bus
        self._heard = 0.0  # when its last CALL arrived, by now()
        self._alone_since: float | None = None
        self._saw_others = -inf  # when another node was in the group, by now()
        self._is_over = False  # the lease has run out, and the node must join again
        self._told_as = ""  # its name as last logged
        self._started: AsyncResult[None] = AsyncResult()
        self._life: Greenlet[[], None] | None = None

    def start(self, kick: Kick) -> None:
        """Start taking part in the group. `kick` ends the connection of a user whom this node has lost. Raises
        StorageUnavailable if Redis is away at the start.
        """
        self._presence.on_lost = kick
        self._life = gevent.spawn(self._live)
        self._started.get()

    def problem(self) -> str:
        """Why clients had better go to another node, if so: this one has lost Redis, and there was another one lately.

        Where Redis is away for all, no node can know it. They are as good as each other then.
        """
        is_alone = self._alone_since is not None and now() - self._saw_others < LATELY_SECONDS
        return "Redis is away" if is_alone else ""

    def stop(self) -> None:
        """Stop renewing the lease."""
        if self._life:
            self._life.kill()

    def _live(self) -> None:
        attempts = pauses()
        while True:
            try:
                if self._is_over:
                    self._directory.join()
                    self._is_over = False
                with Link(self._engine, (self._events_channel, self._own_channel)) as link:
                    self._arrive(link)
                    attempts = pauses()
                    self._stay(link)
            except LeaseRanOut:
                self._lose_everyone()
            except Exception as error:  # noqa: BLE001 - if this greenlet ended, all users would wait for ever
                if not self._started.ready():
                    self._started.set_exception(error)
                    return
                self._be_alone(error)
                gevent.sleep(next(attempts))

    def _arrive(self, link: Link) -> None:
        """Raises LeaseRanOut."""
        began = now()
        self._say_who_is_here()
        self._look_around()
        self._bus.open(
            lambda messages: link.publish([(self._engine.key("to", node), message) for node, message in messages])
        )
        link.publish([(self._events_channel, AGAIN + self._directory.node.encode())])
        self._heard = now()
        self._lease.confirm(began)
        if self._alone_since is not None:
            log.info("Redis is back")
        self._alone_since = None
        if self._told_as != self._directory.node:
            self._told_as = self._directory.node
            log.info("node %s of group %r", self._told_as, self._engine.prefix)
        if not self._started.ready():
            self._started.set(None)

    def _stay(self, link: Link) -> None:
        """Renew the lease until this raises StorageUnavailable or LeaseRanOut."""
        listener = gevent.spawn(self._listen, link)
        sure_since = now()  # that nodes whose lease has run out by Redis's clock have failed
        ahead: tuple[float, float] | None = None  # by how much Redis's clock is ahead of this node's: at least, at most
        pause = 0.0
        try:
            while not link.failed.wait(pause):
                began = now()
                if self._presence.is_unsure:
                    self._say_who_is_here()
                may_end_others = began - sure_since >= self._lease.seconds  # those that were cut off are back by then
                soonest, moment = self._directory.renew(may_end_others)
                self._lease.confirm(began)
                if soonest >= 0:
                    self._saw_others = now()
                before, ahead = ahead, (moment - now(), moment - began)
                if before and (step := _step(before, ahead)) > self._lease.seconds / RENEWALS:
                    log.warning("Redis's clock was stepped by %.0f s or more", step)
                    sure_since = began  # leases look as if they had run out, until their nodes renew them
                    may_end_others = False
                link.publish([(self._own_channel, CALL)])
                if began - self._heard > self._lease.seconds:
                    raise StorageUnavailable("Redis: published messages do not arrive")
                pause = self._lease.seconds / RENEWALS
                self._bus.ask_again(asked_before=time.monotonic() - pause)
                if may_end_others and 0 <= soonest < pause:
                    pause = soonest + 0.01
            raise StorageUnavailable(link.problem)
        finally:
            listener.kill()
            self._bus.close()
            self._presence.is_current = False

    def _listen(self, link: Link) -> None:
        try:
            for channel, message in link.messages():
                self._lease.hold()
                self._hear(channel, message)
        except StorageUnavailable as error:
            link.fail(error)
        except Exception as error:
            log.exception("internal error, or a node with another version")
            link.fail(error)

    def _hear(self, channel: str, message: bytes) -> None:
        if channel == self._own_channel:
            if message == CALL:
                self._heard = now()
            else:
                self._bus.receive(message)
        elif message.startswith(AGAIN):
            node = message.removeprefix(AGAIN).decode()
            if node != self._directory.node:
                self._saw_others = now()
            self._bus.ask_again(node=node)
        elif not self._presence.apply(message):
            self._look_around()

    def _say_who_is_here(self) -> None:
        self._presence.is_unsure = False
        users = self._presence.users_here()
        for user_id in self._directory.rejoin(users, self._presence.settling):
            self._presence.lose(user_id)
        for user in users:
            if user.id not in self._presence.here:  # has left meanwhile; the request for that was void, or came before
                self._presence.release(user.id)

    def _look_around(self) -> None:
        number, nodes, everyone = self._directory.snapshot()
        if nodes - {self._directory.node}:
            self._saw_others = now()
        self._presence.replace(number, everyone)
        self._bus.keep_only(nodes)

    def _lose_everyone(self) -> None:
        """The group has ended this node. It joins again under a new name, with nobody online."""
        log.error(
            "the lease of this node ran out: the group declared it failed; %d users disconnected", len(self._presence)
        )
        for user in self._presence.users_here():
            self._presence.lose(user.id)
        self._bus.settle(NOT_HERE)
        self._is_over = True

    def _be_alone(self, error: Exception) -> None:
        """Redis is away: go on without it."""
        if not isinstance(error, StorageUnavailable):
            log.error("internal error", exc_info=error)
        if self._alone_since is None:
            self._alone_since = now()
            log.error("%s", error)
        if now() - self._alone_since > self._lease.seconds:
            self._bus.settle(AWAY)
        if not self._is_over:
            self._lease.go_on_alone()

    @property
    def _events_channel(self) -> str:
        return self._engine.key("presence")

    @property
    def _own_channel(self) -> str:
        return self._engine.key("to", self._directory.node)


def _step(before: tuple[float, float], after: tuple[float, float]) -> float:
    """The least by which a clock was stepped between two looks at it, forward or back, in seconds."""
    return max(0.0, after[0] - before[1], before[0] - after[1])
