"""What the fuzzer runs: any bytes, in any pieces, through decoder, session, accounts and relay, against the model.

No socket and no disk: a thousand runs a second. Two honest users chat through each run. After each piece what every
client was sent is compared with what stress/model.py says, byte for byte; the first difference raises Broken.
"""

import logging
from collections.abc import Callable
from math import inf

from argon2 import PasswordHasher

from chatserver import address
from chatserver.accounts import Accounts
from chatserver.counters import Counters
from chatserver.relay import Outbox, Relay
from chatserver.session import Session, State
from protocol import MAX_PACKET_BYTES, Reason, encode_error, encode_login, encode_message
from stress.inputs import HOSTILE, REPEATED, steps
from stress.memory import Inline, MemoryStorage
from stress.model import MAX_USERS, Model, Out, Peer
from stress.seeds import CHATS

OUTBOX_BYTES = 1024  # less than what a piece can cause, so that the way for a full outbox is taken too
MANY = 40
CLOSING = (Reason.LOGIN_TIMEOUT, Reason.TOO_SLOW, Reason.SERVER_SHUTTING_DOWN)
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
COUNTERS = Counters()
PEER = address.Peer("fuzz", "fuzz")
VAULT = CHEAP.hash("secret")


class Broken(Exception):
    """The server did what the protocol does not say."""


class Formatting(logging.Handler):
    """Builds each line of the log, as a real handler would, and lets what goes wrong with it through."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


class Client:
    """A session and its outbox, which is read at once."""

    def __init__(self, accounts: Accounts, relay: Relay) -> None:
        self.peer = Peer()
        self.heard = b""
        self.outbox = Outbox(OUTBOX_BYTES, self._read)
        self.session = new_session(accounts, relay, self)

    def close(self, reason: Reason) -> None:
        self.outbox.close(encode_error(reason))

    def _read(self) -> None:
        taken = self.outbox.take()
        if len(taken) > OUTBOX_BYTES:
            raise Broken(f"{len(taken)} bytes were queued")
        self.outbox.sent(len(taken))
        if not self.outbox.leads_nowhere:
            self.heard += taken


def new_session(accounts: Accounts, relay: Relay, client: Client) -> Session:
    """The one place here that knows how a session is made."""
    return Session(accounts, relay, COUNTERS, client.outbox, client.close, PEER)


class Room:
    """A server without sockets: alice (1) and bob (2) chat, mallory (4) is online, two others have just connected."""

    def __init__(self) -> None:
        self._storage = MemoryStorage(MAX_USERS)
        self._relay = Relay()
        self._accounts = Accounts(self._storage, self._relay, COUNTERS, 1, password_required=False, login_attempts=inf)
        self._accounts._disk = self._accounts._passwords._threads = Inline()
        self._accounts._passwords._hasher = CHEAP
        self._model = Model()
        self._said = 0
        self.alice, self.bob = self._connect(), self._connect()
        self.hostile = [self._connect() for _ in range(HOSTILE)]
        for client, name in ((self.alice, "alice"), (self.bob, "bob")):
            self.receive(client, encode_login(name))
        self._storage.sign_up("vault", VAULT)
        self._model.ids["vault"], self._model.passwords["vault"] = 3, "secret"
        self.receive(self.hostile[0], encode_login("mallory"))
        self.receive(self.alice, CHATS[1])
        self.receive(self.bob, CHATS[0])

    def _connect(self) -> Client:
        return Client(self._accounts, self._relay)

    def receive(self, client: Client, data: bytes) -> None:
        """Bytes of this client."""
        client.session.receive(data)
        self._check(client, self._model.receive(client.peer, data))

    def end(self, number: int) -> None:
        """This one goes, and another comes in its place."""
        self._end(self.hostile[number])
        self.hostile[number] = self._connect()

    def close(self, number: int, reason: Reason) -> None:
        """The server ends this connection, whose session may still be handling what it has read."""
        client = self.hostile[number]
        client.close(reason)
        self._check(client, self._model.close(client.peer, reason))

    def cut_off(self, number: int) -> None:
        """Nothing reaches this one any more, but what it has sent before is still handled."""
        self.hostile[number].outbox.lead_nowhere()
        self.hostile[number].peer.unreachable = True

    def toggle_disk(self) -> None:
        """The disk fails, or works again."""
        self._storage.fails = self._model.disk_fails = not self._storage.fails

    def talk(self) -> None:
        """The honest two write to each other; their messages are numbered."""
        for sender, receiver in ((self.alice, self.bob), (self.bob, self.alice)):
            self._said += 1
            text = b"%d" % self._said
            sender.session.receive(encode_message(text))
            whole = encode_message(sender.peer.name.encode() + b":" + text)
            if receiver.heard != whole:
                raise Broken(f"{whole!r} arrived as {receiver.heard!r}")
            receiver.heard = b""

    def end_all(self) -> None:
        """All go; nobody is left online."""
        for client in (self.alice, self.bob, *self.hostile):
            self._end(client)
        if left := self._relay._online:
            raise Broken(f"still online: {left}")

    def _end(self, client: Client) -> None:
        client.session.end()
        self._model.end(client.peer)
        self._check(client, [])

    def _check(self, actor: Client, expected: Out) -> None:
        """What everybody was sent, and where the conversation of the one who acted stands."""
        due: dict[Peer, bytes] = {}
        for receiver, packet in expected:
            due[receiver] = due.get(receiver, b"") + packet
        for client in (self.alice, self.bob, *self.hostile):
            if client.heard != due.get(client.peer, b""):
                raise Broken(f"{client.peer} was sent {client.heard!r} instead of {due.get(client.peer)!r}")
            client.heard = b""
        self._check_state(actor)

    def _check_state(self, client: Client) -> None:
        session, outbox, peer = client.session, client.outbox, client.peer
        held = len(session._decoder._rest)
        if outbox.closed != peer.closed or outbox._size or not outbox.empty or held >= MAX_PACKET_BYTES:
            raise Broken(f"{outbox.closed=}, {outbox._size=}, {held} bytes held: {peer}")
        state = State.CHATTING if peer.partner else State.ONLINE if peer.name else State.CONNECTED
        if session.state is not state or session.name != peer.name:
            raise Broken(f"{session.state} as {session.name!r}, instead of {state}: {peer}")
        if session.member and self._relay.is_online(peer.user_id) != self._model.is_online(peer.user_id):
            raise Broken(f"{peer} is online, or not, against the model")


OPERATIONS: tuple[Callable[[Room, int], object], ...] = (
    Room.end,
    lambda room, number: room.close(number, CLOSING[number]),
    Room.cut_off,
    lambda room, _: room.toggle_disk(),
)


def run(data: bytes) -> None:
    """One run. Raises Broken, or whatever the server should not have raised."""
    room = Room()
    for first, piece in steps(data):
        number = first & 3
        if number == HOSTILE:
            OPERATIONS[first >> 2 & 3](room, (first >> 4) % HOSTILE)
        else:
            room.receive(room.hostile[number], piece * MANY if first & REPEATED == REPEATED else piece)
        room.talk()
    room.end_all()
