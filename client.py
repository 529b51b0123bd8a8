"""The client side of the chat protocol (docs/PROTOCOL.md): `ChatClient`, one connection for a program.

Calls block and take a time limit in seconds: None waits for ever, `...` (the default) is the constructor's limit. One
thread may wait in receive() while others make calls.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from types import EllipsisType
from typing import Self, TypeAlias

from chatclient.connection import ClientConnection
from chatclient.dialogue import (
    CLOSING,
    Call,
    Ending,
    ErrorReceived,
    Event,
    MessageReceived,
    PastMessage,
    PresenceChanged,
    ReceiptReceived,
)
from chatclient.errors import ChatError, ChatRefused, ConnectionClosed, ConnectionFailed, LoginRefused, ServerError
from chatclient.tls import tls_context
from chatnet.address import Address, format_address, parse_address
from chatnet.backoff import backoff
from protocol import (
    DEFAULT_PORT,
    NO_FEATURES,
    USERNAME_RULE,
    Feature,
    LocalProtocolError,
    Reason,
    encode_chat_init,
    encode_history_request,
    encode_login,
    is_valid_username,
    split_text,
    text_room,
)

__all__ = [
    "CLOSING",
    "Address",
    "ChatClient",
    "ChatError",
    "ChatRefused",
    "ConnectionClosed",
    "ConnectionFailed",
    "Ending",
    "ErrorReceived",
    "Event",
    "LoginRefused",
    "MessageReceived",
    "PastMessage",
    "PresenceChanged",
    "ReceiptReceived",
    "ServerError",
    "Timeout",
    "backoff",
    "format_address",
    "parse_address",
    "tls_context",
]

Timeout: TypeAlias = float | EllipsisType | None


class ChatClient:
    """A connection to a chat server, made by the constructor. Closes at the end of a `with` block.

    `for event in client` yields the events, oldest first, until the connection has ended; `ending` says why.

    Every call raises ConnectionClosed once the connection has ended; TimeoutError at its time limit, after which a late
    answer is ignored; and LocalProtocolError for what the protocol cannot carry. A server that breaks the protocol ends
    the connection.

    `username`, `user_id` and `partner_id` are "" and 0 until known; `features` are those that the login was granted.
    """

    def __init__(
        self, host: str, port: int = DEFAULT_PORT, timeout: float | None = 10.0, tls: ssl.SSLContext | None = None
    ) -> None:
        """Connect; with `tls`, encrypted. `timeout`, in seconds, is also the default of all calls. Raises
        ConnectionFailed.
        """
        self.address = ("tls://" if tls else "") + format_address(host, port)
        self.username = ""
        self.user_id = 0
        self.partner_id = 0
        self.features = NO_FEATURES
        self._timeout = timeout
        self._connection = ClientConnection(host, port, timeout, tls)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def exposed(self) -> bool:
        """Whether others could read what is sent: it is not encrypted and leaves this machine."""
        return self._connection.exposed

    @property
    def online(self) -> dict[str, int]:
        """The online users' ids by name, in ascending id order: the latest list, own entry included.

        With Feature.PRESENCE it follows arrivals and departures. A PresenceChanged counts as soon as it has been read,
        which any waiting call may do, and so before receive() returns it. Each change makes a new dict.
        """
        return self._connection.online

    @property
    def sent(self) -> int:
        """How many Messages have been sent on this connection: the number of the last one, as receipts count them.

        The Messages of a text count from the moment when its turn to be written comes, so no receipt precedes them. If
        a TimeoutError keeps some from being sent, they are subtracted before the next text's turn.
        """
        return self._connection.sent

    @property
    def ending(self) -> Ending | None:
        """Why the connection has ended, None while it lasts. Earlier events may still wait for receive()."""
        return self._connection.ending

    def login(self, username: str, password: str = "", timeout: Timeout = ..., features: Feature = NO_FEATURES) -> int:
        """Log in and read who is online; returns the own user id. Raises LoginRefused; the caller may try again.

        With Feature.BRIEF `online` holds the own entry only; refresh() brings the list. A login without features keeps
        those of an earlier login on this connection.
        """
        if not is_valid_username(username):
            raise LocalProtocolError(USERNAME_RULE)
        with _utf8_only():
            config = encode_login(username, password, features)
        self._list(Call(config, username, features), LoginRefused, self._deadline(timeout))
        self.username = username
        self.features = features or self.features
        return self.user_id

    def refresh(self, timeout: Timeout = ...) -> dict[str, int]:
        """Ask again who is online. Raises ServerError."""
        self._refresh(self._deadline(timeout))
        return self.online

    def chat(self, partner: int | str, timeout: Timeout = ...) -> int:
        """Choose the partner who gets our messages, by id or by name; returns the id. Raises ChatRefused (section 3.4).

        With Feature.MAILBOX the partner may be offline; a name is known only if that user has been online since our
        login. After a TimeoutError there is no partner until the next chat().
        """
        self._require_login()
        deadline = self._deadline(timeout)
        if isinstance(partner, str):
            partner = self._find(partner, Feature.MAILBOX in self.features, deadline)
        call = Call(encode_chat_init(partner))
        try:
            self._ask(call, ChatRefused, deadline)
        except ChatRefused:
            raise
        except BaseException:  # it is unknown whom the server regards as our partner now
            self.partner_id = 0
            raise
        self.partner_id = partner
        return partner

    def history(self, partner: int | str, count: int = 20, timeout: Timeout = ...) -> list[PastMessage]:
        """The last `count` messages with a user, oldest first; at most 255. Needs Feature.HISTORY (section 7.3).

        A name is known if that user is online, or has been since our login. Raises ChatRefused for an unknown user.
        """
        if Feature.HISTORY not in self.features:
            raise LocalProtocolError("a login with Feature.HISTORY comes first")
        deadline = self._deadline(timeout)
        if isinstance(partner, str):
            partner = self._find(partner, True, deadline)
        return self._ask(Call(encode_history_request(count, partner), replays=True), ChatRefused, deadline).past

    def send(self, text: str, timeout: Timeout = ...) -> range:
        """Write to the partner, in as many Messages as the text needs; returns their numbers, as receipts count them.

        Waits for room, not for answers: an Error arrives as an event. After a TimeoutError the packets up to some point
        have been sent, and the others will not be. A receipt may be read before this returns; a program with only one
        sending thread knows the numbers beforehand: they begin with `sent` + 1.
        """
        if not self.partner_id:
            raise LocalProtocolError("there is no partner before chat()")
        with _utf8_only():
            pieces = split_text(text.encode(), text_room(self.username))
        return self._connection.tell(pieces, self._deadline(timeout))

    def ping(self, timeout: Timeout = ...) -> float:
        """Wait until the server has handled everything sent before, and its Errors are events.

        Returns the round trip in seconds.
        """
        begin = monotonic()
        self._connection.ask(Call(), self._deadline(timeout))
        return monotonic() - begin

    def receive(self, timeout: Timeout = ...) -> Event:
        """The next event, oldest first. Events that came before the connection ended are still returned."""
        return self._connection.receive(self._deadline(timeout))

    def __iter__(self) -> Iterator[Event]:
        """The events, until the connection has ended and all of them have been returned."""
        with suppress(ConnectionClosed):
            while True:
                yield self.receive(timeout=None)

    def close(self) -> None:
        """End the connection and every waiting call; may be called twice. Call ping() first to lose nothing sent."""
        self._connection.close()

    def _require_login(self) -> None:
        if not self.username:
            raise LocalProtocolError("login() comes first")

    def _refresh(self, deadline: float | None) -> None:
        self._require_login()
        self._list(Call(encode_login(self.username), self.username), ServerError, deadline)

    def _list(self, call: Call, refused: type[ServerError], deadline: float | None) -> None:
        """Send a Config, whose answer is the list with our own entry last (section 3.2)."""
        self.user_id = self._ask(call, refused, deadline).users[call.own_name]

    def _find(self, name: str, may_be_offline: bool, deadline: float | None) -> int:
        """The id behind a name; asks for the list once more if the name is not in it. Raises ChatRefused."""
        if name not in self.online:
            self._refresh(deadline)
        ids = self._connection.known if may_be_offline else self.online
        if name not in ids:
            raise ChatRefused(Reason.USER_NOT_ONLINE)
        return ids[name]

    def _ask(self, call: Call, refused: type[ServerError], deadline: float | None) -> Call:
        """Wait until the call is done. Raises `refused` for an Error that answers it."""
        self._connection.ask(call, deadline)
        if call.refusal is not None:
            raise refused(call.refusal)
        return call

    def _deadline(self, timeout: Timeout) -> float | None:
        seconds = self._timeout if isinstance(timeout, EllipsisType) else timeout
        return None if seconds is None else monotonic() + seconds


@contextmanager
def _utf8_only() -> Iterator[None]:
    try:
        yield
    except UnicodeEncodeError:
        raise LocalProtocolError("this text is not UTF-8") from None
