"""One client's conversation (section 3): bytes in; packets out, to its own outbox and to its partner's.

This module knows no socket. A handler's put may wait for room in an outbox; meanwhile nothing is read from this client.
"""

import logging
from collections.abc import Callable
from enum import StrEnum
from typing import Any, ClassVar

from chatserver.counters import Counters
from chatserver.messages.delivery import Delivery, Route
from chatserver.people.accounts import Accounts, Refused
from chatserver.people.presence import Member, Presence
from chatserver.transport.address import ClientAddress
from chatserver.transport.outbox import Outbox
from chatserver.transport.receipts import Receipts
from chatserver.transport.states import Output
from protocol import (
    EXTRA_FROM_CLIENT,
    FROM_CLIENT,
    Decoder,
    Envelope,
    Feature,
    Login,
    PacketType,
    Reason,
    RemoteProtocolError,
    Run,
    encode,
    encode_error,
    parse_history_request,
    parse_login,
    parse_text,
    parse_user_id,
)

LIFE_SIGNS = (PacketType.PING, PacketType.PONG)
MAX_WRONG_PASSWORDS = 3
MAX_REFUSALS_LOGGED = 10  # per connection, which may try thousands of logins a second

log = logging.getLogger("chat")


class State(StrEnum):
    """Where a conversation stands. A closed one needs no state: its outbox is closed, and nothing is handled."""

    CONNECTED = "connected"
    ONLINE = "online"
    CHATTING = "chatting"


PARSERS: dict[int, Callable[[bytes], Any]] = {
    PacketType.CONFIG: parse_login,
    PacketType.CHAT_INIT: parse_user_id,
    PacketType.MESSAGE: parse_text,
    PacketType.HISTORY: parse_history_request,
    PacketType.PING: bytes,
    PacketType.PONG: bytes,
}


class Session:
    """Handles one client's packets in order. `member` is None until the login succeeds."""

    __slots__ = (
        "_accounts",
        "_close",
        "_counters",
        "_decoder",
        "_delivery",
        "_envelope",
        "_numbered",
        "_outbox",
        "_partner_id",
        "_peer",
        "_presence",
        "_receipts",
        "_refusals",
        "_requests",
        "_route",
        "_warned",
        "_wrong_passwords",
        "is_logging_in",
        "member",
        "name",
        "state",
    )

    def __init__(
        self,
        accounts: Accounts,
        presence: Presence,
        delivery: Delivery,
        counters: Counters,
        outbox: Outbox,
        close: Callable[[Reason], None],
        peer: ClientAddress,
    ) -> None:
        """`close` ends the connection with an Error of that reason."""
        self.state = State.CONNECTED
        self.name = ""
        self.member: Member | None = None
        self._accounts = accounts
        self._presence = presence
        self._delivery = delivery
        self._counters = counters
        self._outbox = outbox
        self._close = close
        self._peer = peer
        self._decoder = Decoder(FROM_CLIENT)
        self._envelope: Envelope | None = None  # from the first Chat Init on
        self._partner_id = 0
        self._route: Route | None = None  # to the partner, for what needs no waiting
        self._numbered = 0  # Messages received so far
        self._requests = 0  # and other packets, except signs of life; Messages that come one by one count here, too
        self._receipts: Receipts | None = None  # once the client has asked for them
        self.is_logging_in = False  # the server checks a password, or writes a new user down
        self._wrong_passwords = 0
        self._warned = False  # that a password came unencrypted
        self._refusals = 0

    def receive(self, data: bytes) -> int:
        """Handle every packet that `data` completes and return their number. A protocol error closes the conversation
        with an Error that names it.
        """
        handled = 0
        in_messages = False  # a run of Messages is handed over whole, even if the outbox is closed meanwhile
        decoder = self._decoder
        try:
            decoder.feed(data)
            while decoder.has_more and (in_messages or not self._outbox.closed):
                if self._envelope and (run := decoder.messages(self._envelope)).messages:
                    handled += run.messages
                    in_messages = True
                    self._hand_over(run)
                    if not decoder.has_more:
                        break
                if not (packet := decoder.next()):
                    break
                packet_type, body = packet
                if self._outbox.closed and not (in_messages and packet_type == PacketType.MESSAGE):
                    break
                handled += 1
                in_messages = packet_type == PacketType.MESSAGE and self._envelope is not None
                self._requests += packet_type not in LIFE_SIGNS
                self.HANDLERS[self.state][packet_type](self, PARSERS[packet_type](body))
        except RemoteProtocolError as error:
            self._close(error.reason)
        if self._outbox.closed:
            decoder.forget()
        return handled

    def offer(self, data: bytes) -> bool:
        """Relay `data` if it is one plain Message and that needs no waiting; else nothing has happened. Never waits."""
        route = self._route
        if not route or not self._envelope or not (packet := self._decoder.message(data, self._envelope)):
            return False
        number = self._numbered + 1
        if not route.offer(packet, number):
            return False
        self._numbered = number
        self._counters.messages_accepted += 1
        return True

    @property
    def label(self) -> str:
        """The client's address, and its name once it is logged in, for the log."""
        return f"{self._peer.label} {self.name}".rstrip()

    @property
    def acts(self) -> int:
        """A number that grows whenever the client sends anything but a Ping or a Pong."""
        return self._numbered + self._requests

    @property
    def held_bytes(self) -> int:
        """Bytes of a packet that is not complete yet."""
        return len(self._decoder.rest)

    def end(self) -> None:
        """Close the outbox and log the user out."""
        self._outbox.close()
        member, self.member = self.member, None
        if member:
            self._accounts.log_out(self.name, member)

    def _log_in(self, login: Login) -> None:
        name, password, features = login
        if password and self._peer.exposed:
            self._warn(name)
        self.is_logging_in = True
        try:
            self.member = self._accounts.log_in(name, password, self._outbox, self._peer.origin)
        except Refused as refused:
            self._refuse_login(name, refused.reason)
            return
        finally:
            self.is_logging_in = False
        self._counters.logins += 1
        log.info("%s logged in as %s, id %d", self._peer.label, name, self.member.user_id)
        self.name = name
        self.state = State.ONLINE
        if features:
            self._enable(self.member, features)
        with self._outbox.reserved():  # at once, so that no new Message overtakes the mailbox
            if features and Feature.BRIEF in features:
                self._outbox.put(self.member.entry)
            else:
                self._send_list(self.member)
            if not self._delivery.catch_up(self.member):
                self._close(Reason.STORAGE_UNAVAILABLE)

    def _enable(self, member: Member, features: Feature) -> None:
        """Switch to these features from those the client had before (section 7)."""
        self._route = None
        member.mails = Feature.MAILBOX in features
        self._decoder.accept_extra(EXTRA_FROM_CLIENT, features)
        self._presence.watch(member, Feature.PRESENCE in features)
        if (member.receipts is not None) == (Feature.RECEIPTS in features):
            return
        if member.receipts:
            self._outbox.notices.remove(member.receipts.take)
            member.receipts = None
        else:
            self._receipts = self._receipts or Receipts(self._outbox.announce)
            self._outbox.notices.append(self._receipts.take)
            member.receipts = self._receipts

    def _warn(self, name: str) -> None:
        if not self._warned:
            self._counters.exposed_passwords += 1
            log.warning("%s sent a password for %r unencrypted; the option --tls-cert encrypts", self._peer.label, name)
        self._warned = True

    def _refuse_login(self, name: str, reason: Reason) -> None:
        self._counters.login_failures[reason] += 1
        self._refusals += 1
        level = logging.INFO if self._refusals <= MAX_REFUSALS_LOGGED else logging.DEBUG
        log.log(level, "%s refused as %r: %s", self._peer.label, name, reason)
        self._wrong_passwords += reason is Reason.WRONG_PASSWORD
        if reason is Reason.TOO_MANY_ATTEMPTS or self._wrong_passwords == MAX_WRONG_PASSWORDS:
            self._close(reason)
        else:
            self._error(reason)

    def _list_again(self, login: Login) -> None:
        if login.username != self.name or self.member is None:
            self._error(Reason.ALREADY_LOGGED_IN)
            return
        if login.features is not None:
            self._enable(self.member, login.features)
        if self._outbox.state is Output.UNREACHABLE:  # nobody would read the list
            return
        with self._outbox.reserved():
            if self._presence.catch_up():
                self._send_list(self.member)
            else:
                self._error(Reason.STORAGE_UNAVAILABLE)

    def _send_list(self, own: Member) -> None:
        others = [member.entry for member in self._presence.everyone() if member is not own]
        self._outbox.put_each([*others, own.entry])

    def _start_chat(self, partner_id: int) -> None:
        reason = self._delivery.why_not(self.member, partner_id) if self.member else Reason.USER_NOT_ONLINE
        if reason:
            self._error(reason)
            return
        self._partner_id = partner_id
        self._route = None
        if self.state is State.ONLINE:
            self._envelope = Envelope(self.name)
            self.state = State.CHATTING

    def _message(self, text: bytes) -> None:
        """Relay one Message that Decoder.messages left to `next`."""
        if self._envelope:
            self._hand_over(Run(self._envelope.wrap(text), 1))

    def _hand_over(self, run: Run) -> None:
        count = run.messages
        if self.member is None:  # the session has ended meanwhile
            return
        self._counters.messages_accepted += count
        first = self._numbered + 1
        self._numbered += count
        taken, reason = self._delivery.hand_over(self.member, self._partner_id, run, first)
        for _ in range(count - taken):
            self._refuse_message(reason)
        if self.member and not (self._route and self._route.is_open):
            self._route = self._delivery.route(self.member, self._partner_id)

    def _replay(self, fields: tuple[int, int]) -> None:
        count, user_id = fields
        if self._outbox.state is Output.UNREACHABLE:
            return
        if self.member and (reason := self._delivery.replay(self.member, user_id, count)):
            self._error(reason)

    def _pong(self, body: bytes) -> None:
        pong = encode(PacketType.PONG, body)
        self._outbox.other_bytes += len(pong)
        self._outbox.put(pong)

    def _ignore(self, body: bytes) -> None:
        """A Pong answers nothing that the server asked."""

    def _not_logged_in(self, _: object) -> None:
        self._error(Reason.NOT_LOGGED_IN)

    def _message_before_login(self, _: object) -> None:
        self._refuse_next(Reason.NOT_LOGGED_IN)

    def _message_before_chat(self, _: object) -> None:
        self._refuse_next(Reason.NO_CHAT_STARTED)

    def _refuse_next(self, reason: Reason) -> None:
        self._counters.messages_accepted += 1
        self._numbered += 1
        self._refuse_message(reason)

    def _refuse_message(self, reason: Reason) -> None:
        self._counters.messages_refused[reason] += 1
        self._error(reason)

    def _error(self, reason: Reason) -> None:
        self._outbox.put(encode_error(reason))

    HANDLERS: ClassVar[dict[State, dict[int, Callable[["Session", Any], None]]]] = {
        State.CONNECTED: {
            PacketType.CONFIG: _log_in,
            PacketType.CHAT_INIT: _not_logged_in,
            PacketType.MESSAGE: _message_before_login,
            PacketType.PING: _pong,
            PacketType.PONG: _ignore,
        },
        State.ONLINE: {
            PacketType.CONFIG: _list_again,
            PacketType.CHAT_INIT: _start_chat,
            PacketType.MESSAGE: _message_before_chat,
            PacketType.HISTORY: _replay,
            PacketType.PING: _pong,
            PacketType.PONG: _ignore,
        },
        State.CHATTING: {
            PacketType.CONFIG: _list_again,
            PacketType.CHAT_INIT: _start_chat,
            PacketType.MESSAGE: _message,
            PacketType.HISTORY: _replay,
            PacketType.PING: _pong,
            PacketType.PONG: _ignore,
        },
    }
