"""The client side of the chat protocol (docs/PROTOCOL.md): `ChatClient`, one connection as its caller sees it.

Calls block and carry a time limit in seconds: None waits for ever, `...` (the default) is the constructor's. One thread
may sit in receive() while others call. Whoever waits and finds nobody reading becomes the reader, and hands each answer
to the call that waits for it; there is no thread of our own. Threads and greenlets will do, patched or not.
"""

import itertools
import random
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from types import EllipsisType
from typing import ClassVar, Self, TypeAlias

from protocol import (
    DEFAULT_PORT,
    FROM_SERVER,
    Decoder,
    LocalProtocolError,
    PacketType,
    Reason,
    RemoteProtocolError,
    encode,
    encode_chat_init,
    encode_login,
    encode_message,
    is_valid_username,
    parse_text,
    parse_user,
    rest_of_packet,
    split_text,
    text_room,
)

Timeout: TypeAlias = float | EllipsisType | None

RECEIVE_BYTES = 65536
FOLLOW_SECONDS = 0.1  # how soon a blocked writer notices that the thread that read for it has left
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds, seconds, probes
CLOSING = frozenset(  # these end the connection whatever the client does: never the answer to a call
    {
        Reason.MALFORMED_PACKET,
        Reason.PACKET_TOO_LONG,
        Reason.UNKNOWN_PACKET_TYPE,
        Reason.LOGIN_TIMEOUT,
        Reason.TOO_SLOW,
        Reason.SERVER_SHUTTING_DOWN,
    }
)


class ChatError(Exception):
    """The base of what can go wrong between a client and its server."""


class ConnectionFailed(ChatError):
    """No connection could be made."""


class ConnectionClosed(ChatError):
    """The connection has ended; `reason` is the Error that came before, if there was one (section 5)."""

    def __init__(self, text: str, reason: str | None = None) -> None:
        super().__init__(text)
        self.reason = reason


class ServerError(ChatError):
    """The server refused what was asked; `reason` is the text of its Error (section 5)."""

    def __init__(self, reason: str) -> None:
        super().__init__(str(reason))
        self.reason = reason


class LoginRefused(ServerError):
    """The answer to login()."""


class ChatRefused(ServerError):
    """The answer to chat(); the old partner stays."""


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """Somebody wrote to us. A text too long for one packet comes as several (section 3.6)."""

    sender: str
    text: str


@dataclass(frozen=True, slots=True)
class ErrorReceived:
    """An Error that answers no call: to a Message sent earlier, or one that closes (section 5)."""

    reason: str


Event: TypeAlias = MessageReceived | ErrorReceived


@dataclass(slots=True)
class _Call:
    """A call that waits for its answer: what comes between two replies, as these keep their order (section 2)."""

    opens: bytes | None  # the Pong before the answer; Errors that come earlier belong to earlier Messages
    ends: bytes | str  # the Pong after the answer, or the name that is last in a list
    mark: int  # how many writes there were, this one included
    open: bool
    done: bool = False
    refusal: str | None = None
    users: dict[str, int] = field(default_factory=dict)


class ChatClient:
    """A connection to a chat server, made by the constructor. Closes at the end of a `with` block.

    Every call raises ConnectionClosed once the connection has ended, TimeoutError at its time limit, and
    LocalProtocolError for what the protocol cannot carry. A server that breaks the protocol is a connection ended.

    `username`, `user_id` and `partner_id` are "" and 0 until known; `online` is the list that was last asked for, name
    to id, in ascending id order, with our own entry.
    """

    def __init__(self, host: str, port: int = DEFAULT_PORT, timeout: float | None = 10.0) -> None:
        """Connect. Raises ConnectionFailed. `timeout` also is what calls use that give none."""
        self.address = format_address(host, port)
        self.username = ""
        self.user_id = 0
        self.partner_id = 0
        self.online: dict[str, int] = {}
        self._timeout = timeout
        self._socket = _connect(host, port, timeout)
        self._changed = threading.Condition(threading.Lock())  # guards what follows, and every use of the socket
        self._reading = False
        self._polling = 0
        self._ending: tuple[str, str | None] | None = None
        self._decoder = Decoder(FROM_SERVER)
        self._events: deque[Event] = deque()
        self._call: _Call | None = None
        self._settled = 0  # how many writes are known to be handled
        self._pongs = b""
        self._calling = threading.Lock()  # one call at a time
        self._writing = threading.Lock()  # keeps packets whole; guards what follows
        self._rest = b""  # of a packet that a time limit cut in two: goes before anything else
        self._written = 0
        self._tokens = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def login(self, username: str, password: str = "", timeout: Timeout = ...) -> int:
        """Log in and read who is online; our user id. Raises LoginRefused, after which one may try again."""
        if not is_valid_username(username):
            raise LocalProtocolError("a name has 1 to 32 bytes, all printable, no space, no colon and no comma")
        with _utf8_only():
            config = encode_login(username, password)
        self._list(username, config, LoginRefused, self._deadline(timeout))
        self.username = username
        return self.user_id

    def refresh(self, timeout: Timeout = ...) -> dict[str, int]:
        """Ask again who is online. Raises ServerError."""
        self._refresh(self._deadline(timeout))
        return self.online

    def chat(self, partner: int | str, timeout: Timeout = ...) -> int:
        """Choose who gets our messages, by id or by name; the id. Raises ChatRefused (section 3.4)."""
        self._require_login()
        deadline = self._deadline(timeout)
        if isinstance(partner, str):
            if partner not in self.online:
                self._refresh(deadline)
            if partner not in self.online:
                raise ChatRefused(Reason.USER_NOT_ONLINE)
            partner = self.online[partner]
        token = self._token()
        self._ask(encode_chat_init(partner) + encode(PacketType.PING, token), token, ChatRefused, deadline)
        self.partner_id = partner
        return partner

    def send(self, text: str, timeout: Timeout = ...) -> int:
        """Write to the partner, in as many Messages as it takes for each to arrive whole; their number.

        Waits for room, not for answers: an Error comes as an event. After a TimeoutError the packets up to some point
        are on their way, the others will not be sent.
        """
        if not self.partner_id:
            raise LocalProtocolError("there is nobody to send to before chat()")
        with _utf8_only():
            pieces = split_text(text.encode(), text_room(self.username))
        deadline = self._deadline(timeout)
        with self._writer(deadline):
            self._write(b"".join(map(encode_message, pieces)), deadline)
        return len(pieces)

    def ping(self, timeout: Timeout = ...) -> float:
        """Wait until all that was sent has been handled, and its Errors are events; the round trip in seconds."""
        begin = monotonic()
        token = self._token()
        self._ask(encode(PacketType.PING, token), token, None, self._deadline(timeout))
        return monotonic() - begin

    def receive(self, timeout: Timeout = ...) -> Event:
        """The next event, oldest first. The ones that came before the connection ended are still given out."""
        deadline = self._deadline(timeout)
        with self._changed:
            self._wait(lambda: self._events, deadline)
            return self._events.popleft()

    def close(self) -> None:
        """End the connection, and whatever waits for it; may be called twice. ping() first to lose nothing sent."""
        with self._changed:
            self._end("this side closed the connection")
            with suppress(OSError):  # not connected any more: then nobody has to be woken
                self._socket.shutdown(socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self._polling)  # a number that is polled must not be reused
            self._socket.close()

    # Asking

    def _require_login(self) -> None:
        if not self.username:
            raise LocalProtocolError("login() comes first")

    def _refresh(self, deadline: float | None) -> None:
        self._require_login()
        self._list(self.username, encode_login(self.username), ServerError, deadline)

    def _list(self, username: str, config: bytes, refused: type[ServerError], deadline: float | None) -> None:
        """Send a Config, whose answer is the list with our own entry last (section 3.2)."""
        users = self._ask(config, username, refused, deadline).users
        self.online = dict(sorted(users.items(), key=lambda user: user[1]))
        self.user_id = users[username]

    def _token(self) -> bytes:
        return next(self._tokens).to_bytes(4, "big")

    def _ask(
        self, packets: bytes, ends: bytes | str, refused: type[ServerError] | None, deadline: float | None
    ) -> _Call:
        """Send `packets` and wait for the answer. Raises `refused` for an Error that answers them.

        A Ping goes first if what was sent earlier may still be answered by an Error. Without `refused` every Error is
        an event.
        """
        with _held(self._calling, deadline):
            try:
                with self._writer(deadline):
                    opens = self._token() if refused and self._settled != self._written else None
                    call = _Call(opens, ends, self._written + 1, open=bool(refused) and opens is None)
                    self._call = call
                    barrier = encode(PacketType.PING, opens) if opens else b""
                    self._write(barrier + packets, deadline)
                with self._changed:
                    self._wait(lambda: call.done, deadline)
            finally:
                self._call = None
        if refused and call.refusal is not None:
            raise refused(call.refusal)
        return call

    # Writing

    @contextmanager
    def _writer(self, deadline: float | None) -> Iterator[None]:
        with _held(self._writing, deadline):
            yield
        with self._changed:
            self._answer_pings()

    def _write(self, packets: bytes, deadline: float | None) -> None:
        """Send whole packets; the caller is the writer. At a TimeoutError the packet under way is kept for later."""
        self._written += 1
        while self._rest:
            self._rest = self._rest[self._send_some(self._rest, deadline) :]
        sent = 0
        try:
            while sent < len(packets):
                sent += self._send_some(memoryview(packets)[sent:], deadline)
        finally:
            self._rest = rest_of_packet(packets, sent)

    def _send_some(self, data: bytes | memoryview, deadline: float | None) -> int:
        """Send what there is room for, at least one byte.

        Goes on reading while it waits: two clients that flood each other would wait for each other for ever.
        """
        with self._changed:
            expired = False
            while True:
                self._raise_if_ended()
                try:
                    return self._socket.send(data)
                except BlockingIOError:
                    if expired:
                        raise TimeoutError("timed out") from None
                except OSError as error:
                    self._break(error)
                    continue
                expired = _left(deadline) == 0
                if self._reading:
                    self._poll(select.POLLOUT, min(deadline or float("inf"), monotonic() + FOLLOW_SECONDS))
                else:
                    self._poll(select.POLLIN | select.POLLOUT, deadline)

    def _answer_pings(self) -> None:
        """Send the Pongs that are due, if no packet is under way; the writer does it otherwise."""
        if not self._pongs or not self._writing.acquire(blocking=False):
            return
        self._rest += self._pongs
        self._pongs = b""
        with suppress(OSError):  # no room: they go with the next packet; a broken connection shows at the next read
            self._rest = self._rest[self._socket.send(self._rest) :]
        self._writing.release()

    # Reading; the caller holds the lock

    def _wait(self, ready: Callable[[], object], deadline: float | None) -> None:
        """Wait until `ready()`; the deadline is looked at after a try, so that a limit of 0 takes what is there."""
        expired = False
        while not ready():
            self._raise_if_ended()
            if expired:
                raise TimeoutError("timed out")
            expired = _left(deadline) == 0
            if self._reading:
                self._changed.wait(_left(deadline))
            else:
                self._poll(select.POLLIN, deadline)

    def _poll(self, flags: int, deadline: float | None) -> None:
        """Wait for the socket without the lock. Who asks for POLLIN is the one reader meanwhile, and reads."""
        reads = bool(flags & select.POLLIN)
        self._reading |= reads
        self._polling += 1
        poll = select.poll()
        poll.register(self._socket, flags)
        left = _left(deadline)
        self._changed.release()
        try:
            poll.poll(None if left is None else left * 1000)
        finally:
            self._changed.acquire()
            self._polling -= 1
            if reads:
                self._reading = False
                self._read()
            self._changed.notify_all()

    def _read(self) -> bool:
        """Take in what has come; False if nothing has."""
        if self._ending:
            return False
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            self._end(_explain(error))
            return False
        if not data:
            self._end("the server closed the connection")
        try:
            for packet_type, body in self._decoder.packets(data):
                self._HANDLERS[packet_type](self, body)
                if self._ending:
                    break
        except RemoteProtocolError as error:
            self._end(f"the server broke the protocol ({error})")
        self._answer_pings()
        return True

    def _on_config(self, body: bytes) -> None:
        username, user_id = parse_user(body)
        if self._call and self._call.open:
            self._call.users[username] = user_id
            if username == self._call.ends:
                self._finish(self._call)

    def _on_message(self, body: bytes) -> None:
        sender, _, text = parse_text(body).decode().partition(":")
        self._events.append(MessageReceived(sender, text))

    def _on_error(self, body: bytes) -> None:
        reason = parse_text(body).decode()
        if self._call and self._call.open and not self._call.done and reason not in CLOSING:
            self._call.refusal = reason
            self._finish(self._call)
            return
        self._events.append(ErrorReceived(reason))
        if reason in CLOSING:
            self._end(f"the server closed the connection ({reason})", reason)

    def _on_ping(self, body: bytes) -> None:
        self._pongs += encode(PacketType.PONG, body)

    def _on_pong(self, body: bytes) -> None:
        if self._call and body == self._call.opens:
            self._call.open = True
        elif self._call and body == self._call.ends:
            self._finish(self._call)

    _HANDLERS: ClassVar[dict[int, Callable[["ChatClient", bytes], None]]] = {
        PacketType.CONFIG: _on_config,
        PacketType.MESSAGE: _on_message,
        PacketType.ERROR: _on_error,
        PacketType.PING: _on_ping,
        PacketType.PONG: _on_pong,
    }

    def _finish(self, call: _Call) -> None:
        call.done = True
        self._settled = call.mark

    # Ending

    def _break(self, error: OSError) -> None:
        """Nothing can be sent any more; but the Error that says why may still wait to be read."""
        while self._read():
            continue
        self._end(_explain(error))

    def _end(self, text: str, reason: str | None = None) -> None:
        self._ending = self._ending or (text, reason)
        self._changed.notify_all()

    def _raise_if_ended(self) -> None:
        if self._ending:
            raise ConnectionClosed(*self._ending)

    def _deadline(self, timeout: Timeout) -> float | None:
        seconds = self._timeout if isinstance(timeout, EllipsisType) else timeout
        return None if seconds is None else monotonic() + seconds


def _connect(host: str, port: int, timeout: float | None) -> socket.socket:
    try:
        connection = socket.create_connection((host, port), timeout)
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name with an empty or overlong label
        raise ConnectionFailed(f"nobody answers at {format_address(host, port)} ({_explain(error)})") from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        if hasattr(socket, option):  # not every system has them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    connection.setblocking(False)
    return connection


def _explain(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _left(deadline: float | None) -> float | None:
    """Seconds until the deadline, at least 0."""
    return None if deadline is None else max(0.0, deadline - monotonic())


@contextmanager
def _held(lock: threading.Lock, deadline: float | None) -> Iterator[None]:
    left = _left(deadline)
    if not lock.acquire(timeout=-1 if left is None else left):
        raise TimeoutError("timed out")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _utf8_only() -> Iterator[None]:
    try:
        yield
    except UnicodeEncodeError:
        raise LocalProtocolError("this text is no UTF-8") from None


# Addresses and reconnecting


def format_address(host: str, port: int) -> str:
    """host:port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of `host`, `host:port`, `[::1]:port`, each with or without `tcp://`. Raises ValueError."""
    scheme, separator, address = text.rpartition("://")
    if separator and scheme != "tcp":
        known = "tls:// is not supported yet" if scheme == "tls" else f"{scheme}:// is unknown"
        raise ValueError(f"{known}; an address is HOST, HOST:PORT or tcp://HOST:PORT")
    address = address.removesuffix("/")
    if address.startswith("["):
        host, bracket, port = address[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"{text!r} is no address: an IPv6 one is [HOST] or [HOST]:PORT")
        port = port or f":{DEFAULT_PORT}"
    else:
        host, colon, port = address.partition(":")
        port = colon + port or f":{DEFAULT_PORT}"
    if ":" in port[1:]:
        raise ValueError(f"{text!r} is no address: write an IPv6 one in brackets, like [::1]:{DEFAULT_PORT}")
    if not host:
        raise ValueError(f"{text!r} is no address: the host is missing")
    number = port[1:]
    if not (number.isascii() and number.isdecimal() and 1 <= int(number) <= 65535):
        raise ValueError(f"{number!r} is no port: it is a number from 1 to 65535")
    return host, int(number)


def backoff(base: float = 0.5, cap: float = 30.0) -> Iterator[float]:
    """Seconds to wait before each attempt to reconnect: random up to a limit that doubles ("full jitter").

    Without the jitter all clients of a server that restarts would come back at the same moment.
    """
    limit = base
    while True:
        yield random.uniform(0, limit)
        limit = min(cap, 2 * limit)
