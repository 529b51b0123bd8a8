"""A client's side of the conversation (docs/PROTOCOL.md): which answer belongs to which call, and what is an event.

Pure: bytes in, events and answers out, and the bytes that are to be written. No socket, lock or clock is known here.
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

TLS_ALERT = b"\x15\x03"  # how a TLS server answers who speaks none

CLOSING = frozenset(  # these end the connection whatever the client does: never the answer to a call
    {
        Reason.MALFORMED_PACKET,
        Reason.PACKET_TOO_LONG,
        Reason.UNKNOWN_PACKET_TYPE,
        Reason.LOGIN_TIMEOUT,
        Reason.TOO_MANY_ATTEMPTS,
        Reason.TOO_SLOW,
        Reason.SERVER_SHUTTING_DOWN,
    }
)


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """Somebody wrote to us. A text too long for one packet comes as several (section 3.6)."""

    sender: str
    text: str


@dataclass(frozen=True, slots=True)
class ErrorReceived:
    """An Error that answers no call: to a Message sent earlier, or one that closes (section 5)."""

    reason: str


@dataclass(frozen=True, slots=True)
class PresenceChanged:
    """Another user has come, or gone (section 7)."""

    name: str
    user_id: int
    is_online: bool


@dataclass(frozen=True, slots=True)
class ReceiptReceived:
    """Our Messages number `first` to `last`, counted from 1, have come so far (section 7)."""

    level: Level
    first: int
    last: int


Event: TypeAlias = MessageReceived | ErrorReceived | PresenceChanged | ReceiptReceived


@dataclass(frozen=True, slots=True)
class PastMessage:
    """What somebody wrote, whole, at this Unix time in seconds."""

    time: int
    sender_id: int
    sender: str
    text: str


class Ending(NamedTuple):
    """Why the connection has ended; `reason` is the Error that said so, if there was one."""

    text: str
    reason: str | None


@dataclass(slots=True)
class Call:
    """A question to the server, and once it is `done`, the answer.

    `packets` ask it; without any, the answer is that all that was written before has been handled. With `own_name` the
    answer is a list that this name ends (section 3.2), with `replays` it is past messages (section 7), and otherwise
    that no Error came (section 3.4).
    """

    packets: bytes = b""
    own_name: str = ""
    features: Feature = NO_FEATURES  # that `packets` ask for, if any
    replays: bool = False
    done: bool = False
    refusal: str | None = None
    users: dict[str, int] = field(default_factory=dict)
    past: list[PastMessage] = field(default_factory=list)
    changes: list[PresenceChanged] = field(default_factory=list)  # since it was asked
    # Replies keep the order of what they answer (section 2), so an answer is what comes between two of them.
    opens: bytes | None = None  # the Pong before it: Errors up to it belong to earlier Messages
    ends: bytes | None = None  # the Pong after it, unless a name ends it
    mark: int = 0  # how much is settled with it


class Dialogue:
    """All that is said on one connection. Whoever asks may give up: what answers that call is nobody's then.

    What ask() and tell() return is written in the order of these calls; take_pongs() goes between any two packets.
    `events` are for the owner to take, oldest first; they outlive the connection.
    """

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.known: dict[str, int] = {}  # all of whom we have heard, with their ids
        self.pongs = b""  # that are due
        self.sent = 0  # Messages
        self.ending: Ending | None = None
        self._decoder = Decoder(FROM_SERVER)
        self._features = NO_FEATURES  # the server may act on these
        self._users: dict[str, int] = {}  # who is online, in any order
        self._online: dict[str, int] | None = None  # the same in order; None when it has to be made anew
        self._replay: list[PastMessage] = []  # what has come of the one that is under way
        self._tokens = itertools.count(1)
        self._written = 0  # how many times something was written
        self._settled = 0  # how many of them are known to be handled
        self._calls: deque[Call] = deque()  # that are not answered yet, in the order in which they will be

    # Outwards

    def tell(self, texts: Iterable[bytes]) -> bytes:
        """The Messages to write, of 136 bytes of text at most each; their Errors will be events.

        They count as `sent`, unless take_back() says otherwise.
        """
        packets = [encode_message(text) for text in texts]
        self._written += 1
        self.sent += len(packets)
        return b"".join(packets)

    def take_back(self, packets: bytes) -> None:
        """These, the last of what tell() or ask() returned last, do not go out after all; nor is a call answered."""
        self.sent -= sum(packet[0] == PacketType.MESSAGE for packet in split_packets(packets))
        if packets and self._calls and self._calls[-1].mark == self._written:
            self._drop(self._calls.pop())

    def ask(self, call: Call) -> bytes:
        """What to write for this call.

        A Ping goes first if what was written earlier may still be answered by an Error. Where the call asks nothing
        but whether all has been handled, every Error up to its Pong is an event.
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

    def take_pongs(self) -> bytes:
        """The Pongs that are due, to be written; then none are."""
        pongs, self.pongs = self.pongs, b""
        return pongs

    def end(self, text: str, reason: str | None = None) -> None:
        """The connection is over; the first ending counts."""
        self.ending = self.ending or Ending(text, reason)

    # Inwards

    @property
    def online(self) -> dict[str, int]:
        """The list last asked for, name to id, with what Presence has changed since, in ascending id order.

        A change makes another dict.
        """
        if self._online is None:
            self._online = dict(sorted(self._users.items(), key=itemgetter(1)))
        return self._online

    def receive(self, data: bytes) -> None:
        """Take in what the server sent; b"" is that it closed. After the ending nothing counts any more."""
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
                for change in call.changes:  # an entry may be older than they are
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
        self.pongs += encode(PacketType.PONG, body)

    def _on_pong(self, body: bytes) -> None:
        asked = next((call for call in self._calls if body in (call.opens, call.ends)), None)
        if asked is None:
            return
        while self._calls[0] is not asked:  # their answers would have come before
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
        """The call that is answered by what comes now."""
        return self._calls[0] if self._calls and self._calls[0].opens is None else None

    def _apply(self, change: PresenceChanged) -> None:
        if change.is_online:
            self._users[change.name] = change.user_id
        else:
            self._users.pop(change.name, None)

    def _accept(self) -> None:
        """What the server may send: it has the last word on features when it answers."""
        asked = (call.features for call in self._calls)
        self._decoder.accept_extra(EXTRA_FROM_SERVER, reduce(or_, asked, self._features))

    def _finish(self, call: Call) -> None:
        """The first one is answered."""
        call.done = True
        self._calls.popleft()
        if call.refusal is None and call.features:
            self._features = call.features
        self._accept()
        self._settled = call.mark

    def _drop(self, call: Call) -> None:
        """No answer to it will be seen; its features may have been granted."""
        self._features |= call.features
        self._accept()

    def _token(self) -> bytes:
        return next(self._tokens).to_bytes(4, "big")


def _ping(token: bytes | None) -> bytes:
    return encode(PacketType.PING, token) if token else b""
