"""One client's conversation (section 3): bytes in; packets to its own outbox and to its partner's out.

No socket is known here. Whatever a handler puts may wait for room, and with it the reading of this client.
"""

import logging
from collections.abc import Callable
from enum import Enum
from typing import Any

from chatserver.counters import Counters
from chatserver.messages.delivery import Delivery
from chatserver.people.accounts import Accounts, Refused
from chatserver.people.presence import Member, Presence
from chatserver.transport.address import ClientAddress
from chatserver.transport.outbox import Outbox
from chatserver.transport.receipts import Receipts
from protocol import (
    EXTRA_FROM_CLIENT,
    FROM_CLIENT,
    NO_FEATURES,
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

MAX_WRONG_PASSWORDS = 3
MAX_REFUSALS_LOGGED = 10  # of one connection, which may ask thousands of times a second

log = logging.getLogger("chat")


class State(Enum):
    """Where a conversation stands. A closed one needs no state: its outbox is closed, and nothing is dispatched."""

    CONNECTED = "connected"
    ONLINE = "online"
    CHATTING = "chatting"


class Session:
    """Handles packets in order. `member` is None until the login succeeds."""

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
        """`close` ends the connection with the Error that says why."""
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
        self._envelope: Envelope | None = None  # from the first partner on
        self._partner_id = 0
        self._numbered = 0  # Messages so far
        self._receipts: Receipts | None = None  # once they were asked for
        self._wrong_passwords = 0
        self._warned = False  # that others may have read a password
        self._refusals = 0

    def receive(self, data: bytes) -> int:
        """Handle every packet that `data` completes, and return their number; a fault closes the conversation with the
        Error that names it.
        """
        handled = 0
        in_messages = False  # those that come together are handed over together, whatever happens meanwhile
        decoder = self._decoder
        try:
            decoder.feed(data)
            while decoder.has_more and (in_messages or not self._outbox.closed):
                if self._envelope and (run := decoder.messages(self._envelope)).messages:
                    handled += run.messages
                    in_messages = True
                    self._hand_over(run)
                if not (packet := decoder.next()):
                    break
                packet_type, body = packet
                if self._outbox.closed and not (in_messages and packet_type == PacketType.MESSAGE):
                    break
                handled += 1
                in_messages = packet_type == PacketType.MESSAGE and self._envelope is not None
                HANDLERS[self.state][packet_type](self, PARSERS[packet_type](body))
        except RemoteProtocolError as fault:
            self._close(fault.reason)
        if self._outbox.closed:
            decoder.forget()
        return handled

    @property
    def label(self) -> str:
        """Who this is, for the log."""
        return f"{self._peer.label} {self.name}".rstrip()

    def end(self) -> None:
        """No more input: the user is offline from here on."""
        self._outbox.close()
        member, self.member = self.member, None
        if member:
            self._accounts.log_out(self.name, member)

    def _log_in(self, login: Login) -> None:
        name, password, features = login
        if password and self._peer.exposed:
            self._warn(name)
        try:
            self.member = self._accounts.log_in(name, password, self._outbox, self._peer.origin)
        except Refused as refused:
            self._refuse_login(name, refused.reason)
            return
        self._counters.logins += 1
        log.info("%s logged in as %s, id %d", self._peer.label, name, self.member.user_id)
        self.name = name
        self.state = State.ONLINE
        self._enable(self.member, features or NO_FEATURES)
        with self._outbox.reserved():  # from this moment on: nobody overtakes what waits in the mailbox
            if features and Feature.BRIEF in features:
                self._outbox.put(self.member.entry)
            else:
                self._send_list(self.member)
            self._delivery.catch_up(self.member)

    def _enable(self, member: Member, features: Feature) -> None:
        """What the client asks for, in place of what it has asked for before (section 7)."""
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
        if self._outbox.leads_nowhere:  # what the client sent before is still handled, but a list has no reader
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
        if self.state is State.ONLINE:
            self._envelope = Envelope(self.name)
            self.state = State.CHATTING

    def _message(self, text: bytes) -> None:
        """One that is not plain (Decoder.messages)."""
        if self._envelope:
            self._hand_over(Run(self._envelope.wrap(text), 1))

    def _hand_over(self, run: Run) -> None:
        count = run.messages
        if self.member is None:  # a session that has ended has none
            return
        self._counters.messages_accepted += count
        first = self._numbered + 1
        self._numbered += count
        taken, reason = self._delivery.hand_over(self.member, self._partner_id, run, first)
        for _ in range(count - taken):
            self._refuse_message(reason)

    def _replay(self, fields: tuple[int, int]) -> None:
        count, user_id = fields
        if self._outbox.leads_nowhere:
            return
        if self.member and (reason := self._delivery.replay(self.member, user_id, count)):
            self._error(reason)

    def _pong(self, body: bytes) -> None:
        self._outbox.put(encode(PacketType.PONG, body))

    def _ignore(self, body: bytes) -> None:
        """A Pong answers nothing that was asked."""

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


PARSERS: dict[int, Callable[[bytes], Any]] = {
    PacketType.CONFIG: parse_login,
    PacketType.CHAT_INIT: parse_user_id,
    PacketType.MESSAGE: parse_text,
    PacketType.HISTORY: parse_history_request,
    PacketType.PING: bytes,
    PacketType.PONG: bytes,
}

HANDLERS: dict[State, dict[int, Callable[[Session, Any], None]]] = {
    State.CONNECTED: {
        PacketType.CONFIG: Session._log_in,
        PacketType.CHAT_INIT: Session._not_logged_in,
        PacketType.MESSAGE: Session._message_before_login,
        PacketType.PING: Session._pong,
        PacketType.PONG: Session._ignore,
    },
    State.ONLINE: {
        PacketType.CONFIG: Session._list_again,
        PacketType.CHAT_INIT: Session._start_chat,
        PacketType.MESSAGE: Session._message_before_chat,
        PacketType.HISTORY: Session._replay,
        PacketType.PING: Session._pong,
        PacketType.PONG: Session._ignore,
    },
    State.CHATTING: {
        PacketType.CONFIG: Session._list_again,
        PacketType.CHAT_INIT: Session._start_chat,
        PacketType.MESSAGE: Session._message,
        PacketType.HISTORY: Session._replay,
        PacketType.PING: Session._pong,
        PacketType.PONG: Session._ignore,
    },
}
