"""The client side of the chat protocol (docs/PROTOCOL.md): `ChatClient`, one connection as its caller sees it.

Calls block and carry a time limit in seconds: None waits for ever, `...` (the default) is the constructor's. One thread
may sit in receive() while others call.
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

    `for event in client` gives out the events, oldest first, until the connection has ended; `ending` tells why.

    Every call raises ConnectionClosed once the connection has ended, TimeoutError at its time limit, after which its
    answer is nobody's, and LocalProtocolError for what the protocol cannot carry. A server that breaks the protocol is
    a connection ended.

    `username`, `user_id` and `partner_id` are "" and 0 until known; `features` are those that a login was granted with.
    """

    def __init__(
        self, host: str, port: int = DEFAULT_PORT, timeout: float | None = 10.0, tls: ssl.SSLContext | None = None
    ) -> None:
        """Connect, with `tls` encrypted. Raises ConnectionFailed. `timeout` also is what calls use that give none."""
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
        """Whether others may read what is sent: it is not encrypted, and goes to another machine."""
        return self._connection.exposed

    @property
    def online(self) -> dict[str, int]:
        """Who is online, name to id, in ascending id order: the list that was last asked for, with our own entry.

        With Feature.PRESENCE it follows who comes and goes: a PresenceChanged counts as soon as it has been read, which
        any call may do that waits, and so before it is given out as an event. Each change makes another dict.
        """
        return self._connection.online

    @property
    def sent(self) -> int:
        """How many Messages have been sent on this connection: the number of the last one, as receipts count them.

        Those of a text count as soon as it is its turn to be written, so no receipt is ahead of them; what a
        TimeoutError keeps from being sent is taken off again, before the next text has its turn.
        """
        return self._connection.sent

    @property
    def ending(self) -> Ending | None:
        """Why the connection has ended, None while it lasts; events that came before may still be there."""
        return self._connection.ending

    def login(self, username: str, password: str = "", timeout: Timeout = ..., features: Feature = NO_FEATURES) -> int:
        """Log in and read who is online; our user id. Raises LoginRefused, after which one may try again.

        With Feature.BRIEF `online` then is our own entry alone; refresh() brings the list. A login that asks for no
        features leaves those of an earlier one on this connection as they are.
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
        """Choose who gets our messages, by id or by name; the id. Raises ChatRefused (section 3.4).

        With Feature.MAILBOX the partner may be offline; by name only who has been online since our login. After a
        TimeoutError there is no partner, until chat() is called again.
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
        except BaseException:  # nobody knows whom the server takes for our partner now
            self.partner_id = 0
            raise
        self.partner_id = partner
        return partner

    def history(self, partner: int | str, count: int = 20, timeout: Timeout = ...) -> list[PastMessage]:
        """The last `count` messages with a user, oldest first; at most 255. Raises ChatRefused for an unknown one.

        By name it finds who is online, or has been since our login. Needs Feature.HISTORY.
        """
        if Feature.HISTORY not in self.features:
            raise LocalProtocolError("a login with Feature.HISTORY comes first")
        deadline = self._deadline(timeout)
        if isinstance(partner, str):
            partner = self._find(partner, True, deadline)
        return self._ask(Call(encode_history_request(count, partner), replays=True), ChatRefused, deadline).past

    def send(self, text: str, timeout: Timeout = ...) -> range:
        """Write to the partner, in as many Messages as it takes for each to arrive whole; their numbers, for receipts.

        Waits for room, not for answers: an Error comes as an event. After a TimeoutError the packets up to some point
        are on their way, the others will not be sent. A receipt may be read before this returns; where one thread alone
        sends, it knows the numbers before: from `sent` + 1 on.
        """
        if not self.partner_id:
            raise LocalProtocolError("there is nobody to send to before chat()")
        with _utf8_only():
            pieces = split_text(text.encode(), text_room(self.username))
        return self._connection.tell(pieces, self._deadline(timeout))

    def ping(self, timeout: Timeout = ...) -> float:
        """Wait until all that was sent has been handled, and its Errors are events; the round trip in seconds."""
        begin = monotonic()
        self._connection.ask(Call(), self._deadline(timeout))
        return monotonic() - begin

    def receive(self, timeout: Timeout = ...) -> Event:
        """The next event, oldest first. The ones that came before the connection ended are still given out."""
        return self._connection.receive(self._deadline(timeout))

    def __iter__(self) -> Iterator[Event]:
        """The events, until the connection has ended and all have been given out."""
        with suppress(ConnectionClosed):
            while True:
                yield self.receive(timeout=None)

    def close(self) -> None:
        """End the connection, and whatever waits for it; may be called twice. ping() first to lose nothing sent."""
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
        """The id behind a name; who is online is asked once more where it is not in the list. Raises ChatRefused."""
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
        raise LocalProtocolError("this text is no UTF-8") from None
