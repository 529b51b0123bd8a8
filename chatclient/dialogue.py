"""A client's side of the conversation (docs/PROTOCOL.md): which answer belongs to which call, and what is an event.

Pure: bytes in; events, answers and bytes to write out. It knows no socket, lock or clock.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import itemgetter, or_
from typing import ClassVar, NamedTuple, TypeAlias

from protocol import (
    EXTRA_FROM_SERVER,
    FROM_SERVER,
    NO_FEATURES,
    Decoder,
    Feature,
    Level,
    PacketType,
    Reason,
    RemoteProtocolError,
    encode,
    encode_message,
    parse_dated,
    parse_presence,
    parse_receipt,
    parse_text,
    parse_user,
    split_packets,
)

PROBE = b"\0"  # no token of a call
TLS_ALERT = b"\x15\x03"  # how a TLS server answers a client that does not speak TLS

CLOSING = frozenset(  # Errors that end the connection; never the answer to a call
    {
        Reason.MALFORMED_PACKET,
        Reason.PACKET_TOO_LONG,
        Reason.UNKNOWN_PACKET_TYPE,
        Reason.LOGIN_TIMEOUT,
        Reason.TOO_MANY_ATTEMPTS,
        Reason.TOO_SLOW,
        Reason.PLACE_NEEDED,
        Reason.SERVER_SHUTTING_DOWN,
    }
)


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A message to us. A text too long for one packet arrives as several (section 3.6)."""

    sender: str
    text: str


@dataclass(frozen=True, slots=True)
class ErrorReceived:
    """An Error that answers no call: it refuses an earlier Message, or it closes the connection (section 5)."""

    reason: str


@dataclass(frozen=True, slots=True)
class PresenceChanged:
    """Another user has come online or gone offline (section 7.1)."""

    name: str
    user_id: int
    is_online: bool


@dataclass(frozen=True, slots=True)
class ReceiptReceived:
    """Our Messages number `first` to `last`, counted from 1, have reached this level (section 7.2)."""

    level: Level
    first: int
    last: int


Event: TypeAlias = MessageReceived | ErrorReceived | PresenceChanged | ReceiptReceived


@dataclass(frozen=True, slots=True)
class PastMessage:
    """A message from the history, whole, with its Unix time in seconds (section 7.3)."""

    time: int
    sender_id: int
    sender: str
    text: str


class Ending(NamedTuple):
    """Why the connection has ended; `reason` is the Error that announced it, if there was one."""

    text: str
    reason: str | None


@dataclass(slots=True)
class Call:
    """A request to the server and, once it is `done`, the answer.

    `packets` are the request; without any, the answer confirms that everything written before has been handled. With
    `own_name` the answer is a list that ends with this name (section 3.2); with `replays` it is past messages (section
    7.3); otherwise it is that no Error came (section 3.4).
    """

    packets: bytes = b""
    own_name: str = ""
    features: Feature = NO_FEATURES  # requested by `packets`
    replays: bool = False
    done: bool = False
    refusal: str | None = None
    users: dict[str, int] = field(default_factory=dict)
    past: list[PastMessage] = field(default_factory=list)
    changes: list[PresenceChanged] = field(default_factory=list)  # since the request
    # The server answers in order (section 2), so the answer is what comes between these two Pongs.
    opens: bytes | None = None  # the Pong before the answer: Errors up to it refuse earlier Messages
    ends: bytes | None = None  # the Pong after the answer, unless a name ends it
    mark: int = 0  # how many writes are known to be handled once it is answered


class Dialogue:
    """The conversation on one connection. A caller may give up: the answer to its call is then ignored.

    The owner writes what ask() and tell() return in the order of these calls; take_due() may go between any two
    packets. `events` are for the owner to take, oldest first; they outlive the connection.
    """

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.known: dict[str, int] = {}  # the ids of all users seen so far, by name
        self.due = b""  # Pings and Pongs to be written
        self.sent = 0  # Messages
        self.ending: Ending | None = None
        self._decoder = Decoder(FROM_SERVER)
        self._features = NO_FEATURES  # the server may act on these
        self._users: dict[str, int] = {}  # who is online, in any order
        self._online: dict[str, int] | None = None  # the same in order; None after a change
        self._replay: list[PastMessage] = []  # what has arrived of the current one
        self._tokens = itertools.count(1)
        self._written = 0  # how many times something was written
        self._settled = 0  # how many of them are known to be handled
        self._calls: deque[Call] = deque()  # not answered yet, in the order of their answers

    # Outwards

    def tell(self, texts: Iterable[bytes]) -> bytes:
        """The Messages to write, each of at most 136 bytes of text; their Errors become events.

        They count as `sent` unless take_back() subtracts them.
        """
        packets = [encode_message(text) for text in texts]
        self._written += 1
        self.sent += len(packets)
        return b"".join(packets)

    def take_back(self, packets: bytes) -> None:
        """These packets, the end of what tell() or ask() returned last, are not sent after all; a call among them is
        dropped.
        """
        self.sent -= sum(packet[0] == PacketType.MESSAGE for packet in split_packets(packets))
        if packets and self._calls and self._calls[-1].mark == self._written:
            self._drop(self._calls.pop())

    def ask(self, call: Call) -> bytes:
        """The bytes to write for this call.

        A Ping goes first if an Error may still answer what was written earlier. For a call without packets, every Error
        up to its Pong is an event.
        """
        settled = self._settled == self._written
        self._written += 1
        call.mark = self._written
        self._calls.append(call)
        self._accept()  # a Presence may come before the end of the list
        call.ends = None if call.own_name or call.replays else self._token()
        if not call.packets:
            call.opens = call.ends
            return _ping(call.ends)
        call.opens = None if settled else self._token()
        return _ping(call.opens) + call.packets + _ping(call.ends)

    def take_due(self) -> bytes:
        """The Pings and Pongs to write; clears them."""
        due, self.due = self.due, b""
        return due

    @property
    def is_online(self) -> bool:
        """Whether a login has been granted: from then on the server answers a Ping."""
        return bool(self._users)

    def probe(self) -> None:
        """Ask for a sign of life; it is no call, and its Pong is ignored."""
        self.due += _ping(PROBE)

    def end(self, text: str, reason: str | None = None) -> None:
        """The connection has ended; the first ending counts."""
        self.ending = self.ending or Ending(text, reason)

    # Inwards

    @property
    def online(self) -> dict[str, int]:
        """The latest list, name to id, with all changes by Presence since, in ascending id order. A change makes a new
        dict.
        """
        if self._online is None:
            self._online = dict(sorted(self._users.items(), key=itemgetter(1)))
        return self._online

    def receive(self, data: bytes) -> None:
        """Handle what the server sent; b"" means that it closed. After the ending, input is ignored."""
        if not data:
            self.end("the server closed the connection")
        try:
            for packet_type, body in self._decoder.packets(data):
                if self.ending:
                    break
                self._HANDLERS[packet_type](self, body)
        except RemoteProtocolError as error:
            hint = "; does it speak TLS? try tls://" if data.startswith(TLS_ALERT) else ""
            self.end(f"the server broke the protocol ({error}){hint}")

    def _on_config(self, body: bytes) -> None:
        username, user_id = parse_user(body)
        self.known[username] = user_id
        if call := self._answered():
            call.users[username] = user_id
            if username == call.own_name:
                self._users = call.users.copy()
                for change in call.changes:  # an entry may be older than these
                    self._apply(change)
                self._online = None
                self._finish(call)

    def _on_message(self, body: bytes) -> None:
        sender, _, text = parse_text(body).decode().partition(":")
        if self._replay:
            message = self._replay[-1]
            self._replay[-1] = replace(message, sender=sender, text=message.text + text)
        else:
            self.events.append(MessageReceived(sender, text))

    def _on_error(self, body: bytes) -> None:
        reason = parse_text(body).decode()
        if reason not in CLOSING and (call := self._answered()):
            call.refusal = reason
            self._finish(call)
            return
        self.events.append(ErrorReceived(reason))
        if reason in CLOSING:
            self.end(f"the server closed the connection ({reason})", reason)

    def _on_presence(self, body: bytes) -> None:
        is_online, name, user_id = parse_presence(body)
        change = PresenceChanged(name, user_id, is_online)
        self.known[name] = user_id
        self._apply(change)
        self._online = None
        for call in self._calls:
            call.changes.append(change)
        self.events.append(change)

    def _on_receipt(self, body: bytes) -> None:
        self.events.append(ReceiptReceived(*parse_receipt(body)))

    def _on_history(self, body: bytes) -> None:
        if dated := parse_dated(body):
            self._replay.append(PastMessage(*dated, sender="", text=""))
            return
        past, self._replay = self._replay, []
        if (call := self._answered()) and call.replays:
            call.past = past
            self._finish(call)

    def _on_ping(self, body: bytes) -> None:
        self.due += encode(PacketType.PONG, body)

    def _on_pong(self, body: bytes) -> None:
        asked = next((call for call in self._calls if body in (call.opens, call.ends)), None)
        if asked is None:
            return
        while self._calls[0] is not asked:  # their answers did not come
            self._drop(self._calls.popleft())
        if body == asked.opens:
            asked.opens = None
        if body == asked.ends:
            self._finish(asked)

    _HANDLERS: ClassVar[dict[int, Callable[["Dialogue", bytes], None]]] = {
        PacketType.CONFIG: _on_config,
        PacketType.MESSAGE: _on_message,
        PacketType.ERROR: _on_error,
        PacketType.PRESENCE: _on_presence,
        PacketType.RECEIPT: _on_receipt,
        PacketType.HISTORY: _on_history,
        PacketType.PING: _on_ping,
        PacketType.PONG: _on_pong,
    }

    def _answered(self) -> Call | None:
        """The call that the next packet answers."""
        return self._calls[0] if self._calls and self._calls[0].opens is None else None

    def _apply(self, change: PresenceChanged) -> None:
        if change.is_online:
            self._users[change.name] = change.user_id
        else:
            self._users.pop(change.name, None)

    def _accept(self) -> None:
        """Accept the packets of every feature that was requested: only the answer says which the server granted."""
        asked = (call.features for call in self._calls)
        self._decoder.accept_extra(EXTRA_FROM_SERVER, reduce(or_, asked, self._features))

    def _finish(self, call: Call) -> None:
        """The first call has its answer."""
        call.done = True
        self._calls.popleft()
        if call.refusal is None and call.features:
            self._features = call.features
        self._accept()
        self._settled = call.mark

    def _drop(self, call: Call) -> None:
        """This call stays without an answer; its features may have been granted."""
        self._features |= call.features
        self._accept()

    def _token(self) -> bytes:
        return next(self._tokens).to_bytes(4, "big")


def _ping(token: bytes | None) -> bytes:
    return encode(PacketType.PING, token) if token else b""
