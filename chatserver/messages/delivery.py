"""Where a Message goes: to its receiver, or to the receiver's mailbox, and to the archive in any case."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from chatserver.counters import Counters
from chatserver.messages.archive import Archive
from chatserver.messages.batch import Batch, ReceiptSink, Sender
from chatserver.people.presence import Member, Presence
from chatserver.transport.outbox import Outbox
from chatserver.transport.turns import Turn
from chatstorage.chats import ChatRow, messages
from protocol import HISTORY_END, Reason, Run, encode_dated
from storage import StorageUnavailable

NOT_ONLINE = Reason.USER_NOT_ONLINE  # a constant, because each run of Messages needs it and enum look-ups are slow

log = logging.getLogger("chat")


class Route(Protocol):
    """The way from a sender to its receiver for Messages that need no waiting."""

    @property
    def is_open(self) -> bool:
        """Whether the receiver can still be reached this way."""

    def offer(self, packet: bytes, number: int) -> bool:
        """Hand over one Message, a single packet, if that needs no waiting; else nothing has happened. Never waits.

        `number` is that of the Message on the sender's connection.
        """


class Delivery(ABC):
    """Hands Messages over, now or later. Without an archive there is no later, and no history."""

    @abstractmethod
    def why_not(self, sender: Member, receiver: int) -> Reason | None:
        """Why this sender may not choose this receiver as its partner now; None if it may (section 3.4)."""

    @abstractmethod
    def hand_over(self, sender: Member, receiver: int, run: Run, first: int) -> tuple[int, Reason]:
        """Hand over a run of Messages, waiting for room.

        `first` is the number of the first Message on the sender's connection. Returns how many were taken, and why the
        others were not.
        """

    @abstractmethod
    def route(self, sender: Member, receiver: int) -> "Route | None":
        """The way to this receiver for Messages that need no waiting, as long as the sender's features stay the same;
        None where all have to wait. May wait, for what look_up() may.
        """

    @abstractmethod
    def catch_up(self, member: Member) -> bool:
        """Put everything in this user's mailbox into its outbox, which is reserved, as the client reads.

        False if the rest cannot be read: no later Message must reach the user before it.
        """

    @abstractmethod
    def replay(self, member: Member, partner: int, count: int) -> Reason | None:
        """Put the last `count` messages with this user into the outbox, dated (section 7.3); None, or why not."""


class LocalDelivery(Delivery):
    """Delivers among the members of one server."""

    def __init__(
        self,
        presence: Presence,
        archive: Archive | None,
        counters: Counters,
        is_user: Callable[[int], bool],
        id_width: int,
        receipts_of: Callable[[ChatRow], ReceiptSink | None] | None = None,
    ) -> None:
        """`is_user`: whether a user with this id has signed up. `receipts_of`: where receipts for a row from a mailbox
        go, if not to a member of this server.
        """
        self._presence = presence
        self._archive = archive
        self._counters = counters
        self._is_user = is_user
        self._id_width = id_width
        self._receipts_of = receipts_of or self._receipts_of_member

    def why_not(self, sender: Member, receiver: int) -> Reason | None:
        reaches = self._presence.is_online(receiver) or self._may_mail(sender, receiver)
        return None if reaches else NOT_ONLINE

    def hand_over(self, sender: Sender, receiver: int, run: Run, first: int) -> tuple[int, Reason]:
        """As Delivery.hand_over; in a group the sender may be a user of another node."""
        if self._archive is None and sender.receipts is None:  # the short way
            member = self._presence.look_up(receiver)
            taken = member.outbox.deliver(run, self._counters, sender.turn) if member else 0
            return taken, NOT_ONLINE
        if sender.receipts:
            sender.wait_for_receipts()
        archive = self._archive if self._archive and self._archive.wait_for_room() else None
        member = self._free_member(receiver)
        if member is None:
            return self._mail(archive, sender, receiver, run, first)
        batch = self._batch(sender, receiver, run, first)
        if archive and sender.mails:
            self._deliver_owed(archive, member, batch, run, sender.turn)
            return batch.count, NOT_ONLINE
        taken = member.outbox.deliver(run, batch, sender.turn)
        if taken < batch.count:
            batch.keep(taken)
        if archive and taken:
            archive.add(batch)
        return taken, NOT_ONLINE

    def route(self, sender: Member, receiver: int) -> Route | None:
        member = self._presence.look_up(receiver)
        return self.route_to(sender, member) if member else None

    def route_to(self, sender: Member, receiver: Member) -> Route:
        """As route(), to a member of this server."""
        if self._archive is None and sender.receipts is None:
            return UnrecordedRoute(receiver.outbox, self._counters)
        return RecordedRoute(sender, receiver, self._archive, self._batch)

    def _deliver_owed(self, archive: Archive, member: Member, batch: Batch, run: Run, turn: Turn) -> None:
        """Add the batch to the archive first: if the receiver is lost meanwhile, the rest is in the mailbox."""
        batch.owed = True
        archive.add(batch)
        taken = member.outbox.deliver(run, batch, turn)
        if taken < batch.count:
            batch.dropped(batch.count - taken)

    def _mail(self, archive: Archive | None, sender: Sender, receiver: int, run: Run, first: int) -> tuple[int, Reason]:
        """As hand_over(), for an offline receiver. `archive` is None while nothing can be written."""
        try:
            if not self._may_mail(sender, receiver):
                return 0, NOT_ONLINE
            if archive is None:
                return 0, Reason.STORAGE_UNAVAILABLE
            return archive.put_in_mailbox(sender, receiver, run, first), Reason.MAILBOX_FULL
        except KeyError:
            return 0, NOT_ONLINE
        except StorageUnavailable:
            return 0, Reason.STORAGE_UNAVAILABLE

    def catch_up(self, member: Member) -> bool:
        if self._archive is None or not self._archive.has_mail(member.user_id):
            return True
        outbox = member.outbox
        try:
            for batch, mail in self._archive.take_mail(member.user_id, lambda: outbox.takes, self._batch_again):
                taken = outbox.put_each(mail, batch)
                if taken < len(mail):
                    batch.dropped(len(mail) - taken)
        except StorageUnavailable as error:
            log.error("the mailbox of user %d cannot be read: %s", member.user_id, error)
            return False
        return True

    def replay(self, member: Member, partner: int, count: int) -> Reason | None:
        if not self._is_user(partner):
            return Reason.USER_NOT_ONLINE
        try:
            rows = self._archive.last(member.user_id, partner, count) if self._archive and count else ()
        except StorageUnavailable as error:
            log.error("past chats cannot be read: %s", error)
            return Reason.STORAGE_UNAVAILABLE
        surplus = max(0, sum(row.count for row in rows) - count)  # all of it is in the first row
        dated = [
            encode_dated(row.time, row.sender, self._id_width) + message
            for number, row in enumerate(rows)
            for message in messages(row)[0 if number else surplus :]
        ]
        with member.outbox.reserved():
            member.outbox.put_each([*dated, HISTORY_END])
        return None

    def _free_member(self, receiver: int) -> Member | None:
        """The receiver, if it is a member; waits until its outbox is not reserved."""
        while (member := self._presence.find(receiver)) and member.outbox.is_reserved:
            member.outbox.wait_until_free()
        return member

    def _may_mail(self, sender: Sender, receiver: int) -> bool:
        return self._archive is not None and sender.mails and self._is_user(receiver)

    def _batch(self, sender: Sender, receiver: int, run: Run, first: int) -> Batch:
        return Batch(
            sender.user_id,
            receiver,
            *run,
            self._counters,
            self._settled,
            receipts=sender.receipts,
            first=first,
        )

    def _batch_again(self, row: ChatRow) -> Batch:
        """The batch of a row in a mailbox, whose last `waiting` Messages are still to be delivered."""
        return Batch(
            row.sender,
            row.receiver,
            b"",  # they are on disk already
            row.count,
            self._counters,
            self._settled,
            owed=True,
            receipts=self._receipts_of(row),
            first=row.first,
            id=row.id,
            written=row.waiting,
            time=row.time,
            delivered_count=row.count - row.waiting,
        )

    def _receipts_of_member(self, row: ChatRow) -> ReceiptSink | None:
        """Where the receipts go, if the sender's connection still lasts."""
        sender = self._presence.find(row.sender)
        receipts = sender.receipts if sender else None
        return receipts if receipts and receipts.connection == row.connection else None

    def _settled(self, batch: Batch) -> None:
        if self._archive:
            self._archive.settled(batch)


class UnrecordedRoute:
    """As Route, where no Message is kept and no receipt is wanted."""

    __slots__ = ("_counters", "_outbox")

    def __init__(self, outbox: Outbox, counters: Counters) -> None:
        """`outbox` is the receiver's."""
        self._outbox = outbox
        self._counters = counters

    @property
    def is_open(self) -> bool:
        return self._outbox.takes

    def offer(self, packet: bytes, _: int) -> bool:
        return self._outbox.offer(packet, 1, self._counters)


class RecordedRoute:
    """As Route, where each Message is kept, or its sender wants receipts."""

    def __init__(
        self,
        sender: Member,
        receiver: Member,
        archive: Archive | None,
        new_batch: Callable[[Sender, int, Run, int], Batch],
    ) -> None:
        self._sender = sender
        self._receiver = receiver
        self._archive = archive
        self._new_batch = new_batch

    @property
    def is_open(self) -> bool:
        return self._receiver.outbox.takes

    def offer(self, packet: bytes, number: int) -> bool:
        sender, receiver, archive = self._sender, self._receiver, self._archive
        run = Run(packet, 1)
        if (
            (archive and not archive.has_room())
            or (sender.receipts and sender.receipts.is_full())
            or not receiver.outbox.has_room_for(run)
            or not receiver.outbox.takes
        ):
            return False
        batch = self._new_batch(sender, receiver.user_id, run, number)
        if archive:
            batch.owed = sender.mails
            archive.add(batch)
        return receiver.outbox.offer(packet, 1, batch)
