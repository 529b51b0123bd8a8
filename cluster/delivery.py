"""Where a Message goes in a group: the receiver's node does what a lone server would do."""

from collections.abc import Callable
from contextlib import suppress

import gevent

from chatserver.counters import Counters
from chatserver.messages.batch import ReceiptSink
from chatserver.messages.delivery import NOT_ONLINE, Delivery, LocalDelivery, Route
from chatserver.people.presence import Member
from chatstorage.chats import ChatRow
from chatstorage.interface import StorageUnavailable
from cluster.archive import ClusterArchive
from cluster.bus import Bus, RemoteReceipts, RemoteSender
from cluster.chats import ReceiverOnline
from cluster.frames import HandOver
from cluster.presence import ClusterPresence, RemoteUser
from protocol import Reason, Run

UNAVAILABLE = Reason.STORAGE_UNAVAILABLE
TRIES = 100  # to find a user who moves between nodes
LEAVING_SECONDS = 0.02


class ClusterDelivery(Delivery):
    """Hands Messages over at this node or another, or puts them into a mailbox in Redis."""

    def __init__(
        self,
        presence: ClusterPresence,
        bus: Bus,
        archive: ClusterArchive | None,
        counters: Counters,
        is_user: Callable[[int], bool],
        id_width: int,
    ) -> None:
        """`is_user` as in LocalDelivery; it may raise StorageUnavailable."""
        self._here = LocalDelivery(presence, archive, counters, is_user, id_width, self._receipts_of)
        self._nodes = presence
        self._bus = bus
        self._archive = archive
        self._counters = counters
        bus.take_over, bus.is_at_once = self._take_over, self._is_at_once
        if archive:
            bus.flush = archive.flush

    def why_not(self, sender: Member, receiver: int) -> Reason | None:
        user = self._nodes.locate(receiver)
        if isinstance(user, RemoteUser):
            return None if self._bus.is_open else UNAVAILABLE
        if user is None and not self._nodes.catch_up():
            return UNAVAILABLE
        try:
            return self._here.why_not(sender, receiver)
        except StorageUnavailable:
            return UNAVAILABLE

    def hand_over(self, sender: Member, receiver: int, run: Run, first: int) -> tuple[int, Reason]:
        user = self._nodes.locate(receiver)
        if self._nodes.here.get(sender.user_id) is not sender:  # this node has lost its lease, and the sender
            return 0, NOT_ONLINE
        if isinstance(user, Member):
            with suppress(ReceiverOnline):  # has just moved to another node
                return self._here.hand_over(sender, receiver, run, first)
        return self._hand_far(sender, user, receiver, run, first)

    def route(self, sender: Member, receiver: int) -> Route | None:
        """None for a receiver at another node: its node has to answer."""
        user = self._nodes.locate(receiver)
        return NodeRoute(self._here.route_to(sender, user), self._nodes, sender) if isinstance(user, Member) else None

    def _hand_far(
        self, sender: Member, user: Member | RemoteUser | None, receiver: int, run: Run, first: int
    ) -> tuple[int, Reason]:
        """Hand over to wherever the receiver is by now."""
        sender.wait_for_receipts()
        for _ in range(TRIES):
            if isinstance(user, RemoteUser):
                answer = self._bus.hand_over(user.node, sender, receiver, run, first)
                self._counters.messages_handed_on += answer.taken
                if answer.is_here:
                    return answer.taken, answer.reason
            if not self._nodes.catch_up():
                return 0, UNAVAILABLE
            known, user = user, self._nodes.locate(receiver)
            if not isinstance(user, RemoteUser):
                with suppress(ReceiverOnline):
                    return self._here.hand_over(sender, receiver, run, first)
            elif user is known:  # it is leaving: its node has settled that, but the event has not arrived yet
                if not sender.mails:
                    break
                gevent.sleep(LEAVING_SECONDS)
        return 0, NOT_ONLINE

    def _is_at_once(self, frame: HandOver) -> bool:
        """Whether _take_over() would not wait."""
        member = self._nodes.here.get(frame.receiver)
        return member is not None and member.outbox.has_room_for(frame.run) and self._archive is None

    def _take_over(self, sender: RemoteSender, frame: HandOver) -> tuple[int, Reason] | None:
        """Hand over what a user of another node sends to a member; None if that has just moved to another node."""
        try:
            taken, reason = self._here.hand_over(sender, frame.receiver, frame.run, frame.first)
        except ReceiverOnline:
            return None
        self._counters.messages_taken_on += taken
        return taken, reason

    def catch_up(self, member: Member) -> bool:
        return self._here.catch_up(member)

    def replay(self, member: Member, partner: int, count: int) -> Reason | None:
        try:
            if self._archive and (node := self._nodes.node_of(partner)):
                if isinstance(self._nodes.locate(partner), RemoteUser):
                    self._bus.flush_chats(node, member.user_id)
            elif self._archive:
                self._archive.wait_until_settled(partner, lambda: member.outbox.takes)
            return self._here.replay(member, partner, count)
        except StorageUnavailable:
            return UNAVAILABLE

    def _receipts_of(self, row: ChatRow) -> ReceiptSink | None:
        """Where receipts for this row go, if its sender is still online: here or at another node."""
        sender = self._nodes.here.get(row.sender)
        if sender:
            receipts = sender.receipts
            return receipts if receipts and receipts.connection == row.connection else None
        node = self._nodes.node_of(row.sender)
        return RemoteReceipts(self._bus, node, row.sender, row.connection) if row.connection and node else None


class NodeRoute:
    """A Route between two members of this node, for as long as its lease is certain."""

    def __init__(self, route: Route, presence: ClusterPresence, sender: Member) -> None:
        self._route = route
        self._nodes = presence
        self._sender = sender

    @property
    def is_open(self) -> bool:
        return self._route.is_open

    def offer(self, packet: bytes, number: int) -> bool:
        return self._nodes.is_certainly_here(self._sender) and self._route.offer(packet, number)
