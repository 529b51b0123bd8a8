"""What the fuzzer runs: any bytes, in any pieces, through the server's rooms, compared with the model.

Decoder, session, accounts, delivery and archive are real. There is no socket, no disk and no loop: some hundred runs a
second. Two honest users chat through each run, one without features and one with all of them. After each piece, what
every client was sent must equal what stress/model.py says, byte for byte except dates and ranges of receipts. The first
difference raises Broken.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf

import gevent
from argon2 import PasswordHasher

from chatserver.counters import Counters
from chatserver.messages.archive import LocalArchive
from chatserver.messages.commits import CommitQueue
from chatserver.messages.delivery import LocalDelivery
from chatserver.people.accounts import Accounts
from chatserver.people.passwords import Passwords
from chatserver.people.presence import LocalPresence
from chatserver.session import Session, State
from chatserver.transport.address import ClientAddress as Origin
from chatserver.transport.outbox import Outbox
from chatserver.workers import Workers
from chatstorage.chats import messages
from protocol import ALL_FEATURES, MAX_PACKET_BYTES, Reason, encode_login, encode_message
from storage import StorageUnavailable
from stress import wire
from stress.inputs import HOSTILE, REPEATED, Operation, keeps_nothing, steps
from stress.memory import MemoryChats, MemoryStorage
from stress.model import MAILBOX_MESSAGES, MAX_USERS, Model
from stress.reading import Broken, FuzzClient
from stress.seeds import CHATS

MANY = 40
CLOSING = (Reason.LOGIN_TIMEOUT, Reason.TOO_SLOW, Reason.SERVER_SHUTTING_DOWN)
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
VAULT = CHEAP.hash("secret")


class Formatting(logging.Handler):
    """Formats each line of the log, as a real handler would, but lets exceptions through."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


class FuzzTarget:
    """A server without sockets: alice (1) and bob (2) chat, mallory (4) is online, two others have just connected."""

    def __init__(self, keeps: bool = True) -> None:
        self._began = int(time.time())
        self._counters = Counters()
        self._storage, self._chats = MemoryStorage(MAX_USERS), MemoryChats()
        self._presence = LocalPresence()
        self._accounts = Accounts(
            self._storage,
            self._presence,
            self._counters,
            Workers(0),
            id_width=1,
            password_required=False,
            login_attempts=inf,
            passwords=Passwords(CHEAP, threads=0),
        )
        self._queue = CommitQueue(self._chats, self._counters, 0.0, Workers(0))
        self._archive = LocalArchive(self._chats, self._queue, self._counters, MAILBOX_MESSAGES, 0.0) if keeps else None
        self._delivery = LocalDelivery(self._presence, self._archive, self._counters, self._storage.is_user, 1)
        self._model = Model(keeps)
        self._said = 0
        self.alice, self.bob = self._connect(), self._connect()
        self.hostile = [self._connect() for _ in range(HOSTILE)]
        self.receive(self.alice, encode_login("alice"))
        self.receive(self.bob, encode_login("bob", "", ALL_FEATURES))
        self._storage.sign_up("vault", VAULT)
        self._model.ids["vault"], self._model.passwords["vault"] = 3, "secret"
        self.receive(self.hostile[0], encode_login("mallory"))
        self.receive(self.alice, CHATS[1])
        self.receive(self.bob, CHATS[0])

    def _connect(self) -> FuzzClient:
        return FuzzClient(self._new_session)

    def _new_session(self, outbox: Outbox, close: Callable[[Reason], None], origin: Origin) -> Session:
        """The only place here that makes a session."""
        return Session(self._accounts, self._presence, self._delivery, self._counters, outbox, close, origin)

    # Operations

    def receive(self, client: FuzzClient, data: bytes) -> None:
        """This client sends bytes."""
        if client.outbox.closed or not client.session.offer(data):  # as in Connection, which stops reading then
            client.session.receive(data)
        for other in self.hostile:
            if other.gave_up:
                (other.peer.room, other.peer.begun), other.gave_up = other.gave_up, None
        self._model.receive(client.peer, data)
        self._check(client)

    def end(self, number: int) -> None:
        """This client leaves, and another one takes its place."""
        self._end(self.hostile[number])
        self.hostile[number] = self._connect()

    def close(self, number: int) -> None:
        """The server closes this connection, while its session may still be handling input."""
        client, reason = self.hostile[number], CLOSING[number]
        self._model.close(client.peer, reason, client.has_begun)
        if reason is Reason.TOO_SLOW:
            client.drop()
        else:
            client.close(reason)
        self._check(client)

    def cut_off(self, number: int) -> None:
        """This client becomes unreachable, but what it sent before is still handled."""
        self.hostile[number].cut_off()
        self._model.cut_off(self.hostile[number].peer)
        self._check(self.hostile[number])

    def toggle_disk(self, number: int) -> None:
        """A disk fails, or works again. A failing write of chats is noticed at once, not only at the next commit."""
        if number == 0:
            self._storage.fails = self._model.disk_fails = not self._storage.fails
        elif number == 1:
            self._chats.cannot_read = self._model.cannot_read = not self._chats.cannot_read
        elif self._archive:
            self._chats.cannot_write = self._model.cannot_write = not self._chats.cannot_write
            self._queue.is_failing = self._chats.cannot_write

    def commit(self, number: int) -> None:
        """The commit queue writes."""
        if self._archive:
            with suppress(StorageUnavailable):
                self._queue.commit()
            self._model.commit()
        self._check(self.hostile[number])

    def hold(self, number: int, stubborn: bool) -> None:
        """This client stops reading, or reads on; see FuzzClient."""
        client = self.hostile[number]
        client.holds, client.stubborn = not client.holds and client.peer.takes, stubborn
        if not client.holds:
            client.read()
        self._check(client)

    def read_some(self, number: int) -> None:
        """This client reads half of what is in flight, perhaps half a packet."""
        self.hostile[number].read_some()
        self._check(self.hostile[number])

    def talk(self) -> None:
        """The two honest users write to each other in turn; their messages are numbered."""
        self._said += 1
        self.receive((self.alice, self.bob)[self._said % 2], encode_message(b"%d" % self._said))

    def end_all(self) -> None:
        """All clients leave: nobody is online, nothing is in flight, and what is to be kept is on disk."""
        for client in self._everyone:
            self._end(client)
        if not self._presence.is_empty or self._counters.messages_in_flight:
            raise Broken(f"{self._presence.everyone()} are still online, {self._counters.messages_in_flight} in flight")
        if self._archive:
            self._chats.cannot_write = self._model.cannot_write = False
            self._archive.close()
            self._model.commit()
            self._check_archive(self._archive)

    def _end(self, client: FuzzClient) -> None:
        client.end()
        self._model.end(client.peer)
        self._check(client)

    # Checks

    @property
    def _everyone(self) -> tuple[FuzzClient, ...]:
        return self.alice, self.bob, *self.hostile

    def _check(self, actor: FuzzClient) -> None:
        """Check what all clients were sent, and the state of the one that acted."""
        for client in self._everyone:
            self._check_heard(client)
        for client in self._everyone:  # once it is known what has been delivered
            self._check_told(client)
        self._check_state(actor)

    def _check_heard(self, client: FuzzClient) -> None:
        for packet in client.take_packets() if client.heard else ():
            if self._undated(packet) != (due := client.peer.hear()):
                raise Broken(f"{client.peer} was sent {packet!r} instead of {due!r}")
        if client.peer.due and not client.holds:
            raise Broken(f"{client.peer} was not sent {[packet for packet, _ in client.peer.due]}")

    def _undated(self, packet: bytes) -> bytes:
        """A packet of a replay without its date: the model has no clock."""
        date, packet = wire.without_date(packet)
        if date is not None and not self._began <= date <= time.time():
            raise Broken(f"{packet!r} is dated {date}")
        return packet

    def _check_told(self, client: FuzzClient) -> None:
        peer = client.peer
        if client.said:
            for notice in client.said:
                if not peer.allows(notice):
                    raise Broken(f"{peer} was told {notice!r}")
            client.said.clear()
        if not client.holds:
            if peer.receipts or peer.presence:
                raise Broken(f"{peer} was not told {peer.receipts or peer.presence}")
            peer.stale_presence.clear()

    def _check_state(self, client: FuzzClient) -> None:
        session, peer = client.session, client.peer
        client.check_size()
        held = session.held_bytes
        if client.outbox.closed != peer.closed or held >= MAX_PACKET_BYTES:
            raise Broken(f"{client.outbox.closed=}, {held} bytes held: {peer}")
        state = State.CHATTING if peer.partner else State.ONLINE if peer.name else State.CONNECTED
        if session.state is not state or session.name != peer.name:
            raise Broken(f"{session.state} as {session.name!r}, instead of {state}: {peer}")
        if session.member and self._presence.is_online(peer.user_id) != self._model.is_online(peer.user_id):
            raise Broken(f"{peer} is online, or not, against the model")
        if session.member and session.member.receipts and peer.takes:
            ranges = session.member.receipts.pending_ranges
            if ranges > wire.ranges(peer.receipts) + len(peer.early | peer.stale_receipts):
                raise Broken(f"{ranges} ranges tell {peer} {peer.receipts}, or {peer.early}, too")

    def _check_archive(self, archive: LocalArchive) -> None:
        """Check what is on disk at the end, and that nothing is left in memory."""
        kept = [
            (row.sender, row.receiver, packets, number >= row.count - row.waiting)
            for row in self._chats.rows.values()
            for number, packets in enumerate(messages(row))
        ]
        said = [(one.sender, one.receiver, b"".join(one.packets), one.waits) for one in self._model.said]
        if kept != said:
            raise Broken(f"kept is {kept} instead of {said}")
        waiting = {user: len(mailbox) for user, mailbox in self._model.mailboxes.items() if mailbox}
        if +archive.mail != waiting or not self._queue.is_empty:
            raise Broken(f"{archive.mail=} instead of {waiting}; the queue is empty: {self._queue.is_empty}")


OPERATIONS: dict[Operation, Callable[[FuzzTarget, int], None]] = {
    Operation.END: FuzzTarget.end,
    Operation.CLOSE: FuzzTarget.close,
    Operation.CUT_OFF: FuzzTarget.cut_off,
    Operation.DISK: FuzzTarget.toggle_disk,
    Operation.COMMIT: FuzzTarget.commit,
    Operation.HOLD: lambda room, number: room.hold(number, stubborn=False),
    Operation.REFUSE: lambda room, number: room.hold(number, stubborn=True),
    Operation.READ: FuzzTarget.read_some,
}


def run(data: bytes) -> None:
    """One run. Raises Broken, or whatever exception leaves the server's code."""
    room = FuzzTarget(keeps=not keeps_nothing(data))
    for first, piece in steps(data):
        number = first & 3
        if number == HOSTILE:
            OPERATIONS[Operation(first >> 2 & 7)](room, (first >> 5) % HOSTILE)
        else:
            room.receive(room.hostile[number], piece * MANY if first & REPEATED == REPEATED else piece)
        room.talk()
    room.end_all()
    gevent.sleep(0)  # a turn of the loop, for what it keeps: the greenlet of the archive that has not run
