"""Where a Message goes in a group: the node that has its receiver does what one server would do."""

import time
from collections.abc import Callable
from contextlib import suppress

import gevent

from chatserver.counters import Counters
from chatserver.messages.archive import Archive
from chatserver.messages.batch import Batch
from chatserver.messages.delivery import NOT_ONLINE, Delivery
from chatserver.people.presence import Member
from chatstorage.chats import ChatRow
from chatstorage.interface import StorageUnavailable
from cluster.archive import ClusterArchive
from cluster.bus import Bus, RemoteReceipts
from cluster.chats import ReceiverOnline
from cluster.frames import HandOver
from cluster.presence import ClusterPresence, RemoteMember
from protocol import Level, Reason, Run, first_messages

UNAVAILABLE = Reason.STORAGE_UNAVAILABLE
TRIES = 100  # to find a user who is now here, now there
LEAVING_SECONDS = 0.02


class ClusterDelivery(Delivery):
    """Hands Messages over on this node or another, or to a mailbox in Redis."""

    def __init__(
        self,
        presence: ClusterPresence,
        bus: Bus,
        archive: ClusterArchive | None,
        counters: Counters,
        is_user: Callable[[int], bool],
        id_width: int,
    ) -> None:
        """`is_user` as in Delivery; it may raise StorageUnavailable."""
        super().__init__(presence, archive, counters, is_user, id_width)
        self._nodes = presence
        self._bus = bus
        self._chats = archive
        bus.take_over, bus.is_at_once = self._take_over, self._is_at_once
        if archive:
            bus.flush = archive.flush

    def why_not(self, sender: Member, receiver: int) -> Reason | None:
        member = self._nodes.look_up(receiver)
        if isinstance(member, RemoteMember):
            return None if self._bus.is_open else UNAVAILABLE
        if member is None and not self._nodes.catch_up():
            return UNAVAILABLE
        try:
            return super().why_not(sender, receiver)
        except StorageUnavailable:
            return UNAVAILABLE

    def hand_over(self, sender: Member, receiver: int, run: Run, first: int) -> tuple[int, Reason]:
        member = self._nodes.look_up(receiver)
        if self._nodes.here.get(sender.user_id) is not sender:  # this node has lost its lease, and the sender
            return 0, NOT_ONLINE
        if member and not isinstance(member, RemoteMember):
            with suppress(ReceiverOnline):  # elsewhere, just now
                return super().hand_over(sender, receiver, run, first)
        return self._hand_far(sender, member, receiver, run, first)

    def _hand_far(
        self, sender: Member, member: Member | None, receiver: int, run: Run, first: int
    ) -> tuple[int, Reason]:
        """To wherever the receiver is by now."""
        if sender.receipts:
            sender.outbox.wait_while(sender.receipts.is_full)
        for _ in range(TRIES):
            if isinstance(member, RemoteMember):
                answer = self._bus.hand_over(member.node, sender, receiver, run, first)
                self._counters.messages_handed_on += answer.taken
                if answer.is_here:
                    return answer.taken, answer.reason
            if not self._nodes.catch_up():
                return 0, UNAVAILABLE
            known, member = member, self._nodes.look_up(receiver)
            if not isinstance(member, RemoteMember):
                with suppress(ReceiverOnline):
                    return super().hand_over(sender, receiver, run, first)
            elif member is known:  # it leaves just now: that is settled there, but not told of yet
                if not sender.mails:
                    break
                gevent.sleep(LEAVING_SECONDS)
        return 0, NOT_ONLINE

    def _is_at_once(self, frame: HandOver) -> bool:
        """Whether _take_over() has nothing to wait for."""
        member = self._nodes.here.get(frame.receiver)
        return member is not None and member.outbox.has_room_for(frame.run) and self._chats is None

    def _free_member(self, receiver: int) -> Member | None:
        """Raises ReceiverOnline where it has gone to another node."""
        member = super()._free_member(receiver)
        if isinstance(member, RemoteMember):
            raise ReceiverOnline("on another node, just now")
        return member

    def _take_over(self, sender: Member, frame: HandOver) -> tuple[int, Reason] | None:
        """What a user of another node hands over to one of this node; None if that has just gone to another one."""
        try:
            taken, reason = super().hand_over(sender, frame.receiver, frame.run, frame.first)
        except ReceiverOnline:
            return None
        self._counters.messages_taken_on += taken
        return taken, reason

    def _mail(self, archive: Archive | None, sender: Member, receiver: int, run: Run, first: int) -> tuple[int, Reason]:
        """Raises ReceiverOnline."""
        try:
            if not self._may_mail(sender, receiver):
                return 0, NOT_ONLINE
            if archive is None or self._chats is None:
                return 0, UNAVAILABLE
            taken = self._put_in_mailbox(self._chats, sender, receiver, run, first)
        except StorageUnavailable:
            return 0, UNAVAILABLE
        except KeyError:  # has been removed just now
            return 0, NOT_ONLINE
        return taken, Reason.MAILBOX_FULL

    def _put_in_mailbox(self, archive: ClusterArchive, sender: Member, receiver: int, run: Run, first: int) -> int:
        """How many of them went in."""
        connection = sender.receipts.connection if sender.receipts else 0
        row = ChatRow(
            archive.chats.new_id(),
            sender.user_id,
            receiver,
            int(time.time()),
            run.messages,
            run.messages,
            run.packets,
            connection,
            first,
        )
        while row.count and (room := archive.mail_now(row)) < row.count:
            packets, count = first_messages(Run(row.packets, row.count), room)
            row = row._replace(packets=packets, count=count, waiting=count)
        self._counters.messages_mailed += row.count
        self._counters.messages_stored += row.count
        if sender.receipts and row.count:
            sender.receipts.reach(Level.STORED, first, first + row.count - 1)
        return row.count

    def replay(self, member: Member, partner: int, count: int) -> Reason | None:
        try:
            if self._chats and (node := self._nodes.node_of(partner)):
                if isinstance(self._nodes.look_up(partner), RemoteMember):
                    self._bus.flush_chats(node, member.user_id)
            elif self._chats:
                self._chats.wait_until_settled(partner, lambda: member.outbox.takes)
            return super().replay(member, partner, count)
        except StorageUnavailable:
            return UNAVAILABLE

    def _batch_again(self, row: ChatRow) -> Batch:
        batch = super()._batch_again(row)
        if row.connection and (node := self._nodes.node_of(row.sender)) and row.sender not in self._nodes.here:
            batch.receipts = RemoteReceipts(self._bus, node, row.sender, row.connection)
        return batch
