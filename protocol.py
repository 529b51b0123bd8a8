"""The chat wire protocol (docs/PROTOCOL.md): packet types, limits, encoding and incremental decoding.

Pure: bytes in, packets out, and back. No socket, clock, greenlet or log is known here, so that the server, the client
and the tests share one understanding of the bytes.

Two kinds of fault are two types, as in h11: `RemoteProtocolError` is what the peer sent, `LocalProtocolError` is what
our own caller asked for.
"""

import unicodedata
from collections.abc import Iterator
from enum import IntEnum, StrEnum

DEFAULT_PORT = 9034

HEADER_BYTES = 2
MAX_PACKET_BYTES = 140
MAX_BODY_BYTES = MAX_PACKET_BYTES - HEADER_BYTES
STRING_PREFIX_BYTES = 2
MAX_TEXT_BYTES = MAX_BODY_BYTES - STRING_PREFIX_BYTES
MAX_USERNAME_BYTES = 32
MAX_PASSWORD_BYTES = 64
ID_WIDTHS = (1, 2, 4)
MAX_ID_BYTES = 4


class PacketType(IntEnum):
    """The first byte of a packet (section 2)."""

    CONFIG = 0x01
    CHAT_INIT = 0x02
    MESSAGE = 0x03
    ERROR = 0x04
    PING = 0x08
    PONG = 0x09


FROM_CLIENT = frozenset({PacketType.CONFIG, PacketType.CHAT_INIT, PacketType.MESSAGE, PacketType.PING, PacketType.PONG})
FROM_SERVER = frozenset({PacketType.CONFIG, PacketType.MESSAGE, PacketType.ERROR, PacketType.PING, PacketType.PONG})


class Reason(StrEnum):
    """The text of an Error packet (section 5). Clients may compare it, so it never changes."""

    USER_ALREADY_ONLINE = "User Already Online!"
    USER_NOT_ONLINE = "User Not Online"
    NO_CHAT_STARTED = "No Chat Started"
    NOT_LOGGED_IN = "Not Logged In"
    ALREADY_LOGGED_IN = "Already Logged In"
    INVALID_USERNAME = "Invalid Username"
    USERNAME_TAKEN = "Username Taken"
    USER_LIMIT_REACHED = "User Limit Reached"
    PASSWORD_REQUIRED = "Password Required"
    WRONG_PASSWORD = "Wrong Password"
    STORAGE_UNAVAILABLE = "Storage Unavailable"
    INVALID_PASSWORD = "Invalid Password"
    MALFORMED_PACKET = "Malformed Packet"
    PACKET_TOO_LONG = "Packet Too Long"
    UNKNOWN_PACKET_TYPE = "Unknown Packet Type"
    LOGIN_TIMEOUT = "Login Timeout"
    TOO_MANY_ATTEMPTS = "Too Many Attempts"
    TOO_SLOW = "Too Slow"
    SERVER_SHUTTING_DOWN = "Server Shutting Down"


class RemoteProtocolError(Exception):
    """The peer broke the protocol; `reason` is what an Error packet tells it."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class LocalProtocolError(Exception):
    """Our own caller asked for something that the protocol cannot carry."""


class Decoder:
    """Cuts a TCP byte stream into packets, however it is chunked (section 1).

    `accepts` holds the packet types that this peer may send: FROM_CLIENT in a server, FROM_SERVER in a client. Fewer
    than 140 bytes are held between two calls.
    """

    def __init__(self, accepts: frozenset[PacketType]) -> None:
        self._accepts = accepts
        self._rest = b""
        self._failure: RemoteProtocolError | None = None

    def packets(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (type, body) of every packet that `data` completes; to be used up before the next call.

        Raises RemoteProtocolError where the stream is at fault, after the packets before the fault, and again at every
        later call. Both faults of a header are found as soon as its two bytes are there.
        """
        if self._failure is not None:
            raise self._failure
        if self._rest:
            data = self._rest + data
            self._rest = b""
        accepts = self._accepts
        start, end = 0, len(data)
        while end - start >= HEADER_BYTES:
            packet_type, length = data[start], data[start + 1]
            if length > MAX_BODY_BYTES:
                raise self._fail(Reason.PACKET_TOO_LONG)
            if packet_type not in accepts:
                raise self._fail(Reason.UNKNOWN_PACKET_TYPE)
            stop = start + HEADER_BYTES + length
            if stop > end:
                break
            yield packet_type, data[start + HEADER_BYTES : stop]
            start = stop
        self._rest = data[start:]

    def _fail(self, reason: Reason) -> RemoteProtocolError:
        self._failure = RemoteProtocolError(reason)
        return self._failure


# Encoding


def encode(packet_type: PacketType, body: bytes) -> bytes:
    """One packet. Raises LocalProtocolError for a body over 138 bytes."""
    if len(body) > MAX_BODY_BYTES:
        raise LocalProtocolError(f"a body of {len(body)} bytes does not fit a packet (at most {MAX_BODY_BYTES})")
    return bytes((packet_type, len(body))) + body


def encode_string(text: bytes) -> bytes:
    """A String: 2-byte length, then the UTF-8 bytes."""
    return len(text).to_bytes(STRING_PREFIX_BYTES, "big") + text


def encode_login(username: str, password: str = "") -> bytes:
    """A client's Config. Raises LocalProtocolError where name and password together do not fit."""
    body = encode_string(username.encode())
    if password:
        body += encode_string(password.encode())
    return encode(PacketType.CONFIG, body)


def encode_user(username: str, user_id: int, id_width: int) -> bytes:
    """A server's Config: one entry of the list of who is online."""
    return encode(PacketType.CONFIG, encode_string(username.encode()) + user_id.to_bytes(id_width, "big"))


def encode_chat_init(user_id: int) -> bytes:
    """Chat Init, the id in as few bytes as it needs."""
    width = max(1, (user_id.bit_length() + 7) // 8)
    if user_id < 1 or width > MAX_ID_BYTES:
        raise LocalProtocolError(f"a user id is a number from 1 to {2 ** (8 * MAX_ID_BYTES) - 1}, not {user_id}")
    return encode(PacketType.CHAT_INIT, user_id.to_bytes(width, "big"))


def encode_message(text: bytes) -> bytes:
    """A client's Message. Raises LocalProtocolError for a text over 136 bytes."""
    return encode(PacketType.MESSAGE, encode_string(text))


def encode_error(reason: Reason) -> bytes:
    """An Error packet."""
    return encode(PacketType.ERROR, encode_string(reason.encode()))


def text_room(sender: str) -> int:
    """How many bytes of `sender`'s text reach the receiver in one packet (section 3.6)."""
    return MAX_TEXT_BYTES - len(f"{sender}:".encode())


def split_text(text: bytes, room: int) -> list[bytes]:
    """Cut UTF-8 `text` between characters into pieces of at most `room` bytes (4 or more); at least one piece."""
    pieces = []
    while len(text) > room:
        cut = room
        while text[cut] & 0xC0 == 0x80:  # a continuation byte: its character began earlier
            cut -= 1
        pieces.append(text[:cut])
        text = text[cut:]
    pieces.append(text)
    return pieces


class Envelope:
    """Wraps one sender's texts as the receiver gets them: Message `sender:text` (section 3.5, 3.6)."""

    def __init__(self, sender: str) -> None:
        prefix = f"{sender}:".encode()
        self._room = text_room(sender)
        self._heads = [
            bytes((PacketType.MESSAGE, STRING_PREFIX_BYTES + length, 0, length)) + prefix
            for length in range(len(prefix), MAX_TEXT_BYTES + 1)
        ]  # by the length of the text: building a header anew for each message would cost more than relaying it

    def wrap(self, text: bytes) -> bytes:
        """The Message packet for `text`, or several, in order, where one is too small."""
        if len(text) <= self._room:
            return self._heads[len(text)] + text
        return b"".join(self._heads[len(piece)] + piece for piece in split_text(text, self._room))


# Parsing


def parse_text(body: bytes) -> bytes:
    """The one String that fills a Message or Error body, as UTF-8 bytes.

    Raises RemoteProtocolError (Malformed Packet).
    """
    if len(body) < STRING_PREFIX_BYTES or body[0] << 8 | body[1] != len(body) - STRING_PREFIX_BYTES:
        raise RemoteProtocolError(Reason.MALFORMED_PACKET)
    text = body[STRING_PREFIX_BYTES:]
    if not text.isascii():
        _decode(text)
    return text


def parse_login(body: bytes) -> tuple[str, str]:
    """(username, password) of a client's Config; "" is no password. The features byte is not used yet (section 7).

    Raises RemoteProtocolError (Malformed Packet).
    """
    username, rest = _take_string(body)
    password, features = _take_string(rest) if rest else ("", b"")
    if len(features) > 1:
        raise RemoteProtocolError(Reason.MALFORMED_PACKET)
    return username, password


def parse_user(body: bytes) -> tuple[str, int]:
    """(username, id) of a server's Config. Raises RemoteProtocolError (Malformed Packet)."""
    username, rest = _take_string(body)
    return username, parse_user_id(rest)


def parse_user_id(body: bytes) -> int:
    """A UserID that fills its body: 1 to 4 bytes wide, not 0. Raises RemoteProtocolError (Malformed Packet)."""
    user_id = int.from_bytes(body, "big")
    if len(body) > MAX_ID_BYTES or user_id == 0:
        raise RemoteProtocolError(Reason.MALFORMED_PACKET)
    return user_id


def _take_string(body: bytes) -> tuple[str, bytes]:
    end = STRING_PREFIX_BYTES + int.from_bytes(body[:STRING_PREFIX_BYTES], "big")
    if len(body) < STRING_PREFIX_BYTES or end > len(body):
        raise RemoteProtocolError(Reason.MALFORMED_PACKET)
    return _decode(body[STRING_PREFIX_BYTES:end]), body[end:]


def _decode(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError(Reason.MALFORMED_PACKET) from None


def count_messages(stream: bytes, end: int) -> int:
    """How many of the Messages in a stream of whole packets are complete within its first `end` bytes."""
    count = start = 0
    while start < len(stream) and (stop := start + HEADER_BYTES + stream[start + 1]) <= end:
        count += stream[start] == PacketType.MESSAGE
        start = stop
    return count


def rest_of_packet(stream: bytes, sent: int) -> bytes:
    """What is missing of the packet that is under way when the first `sent` bytes of whole packets are out."""
    end = 0
    while end < sent:
        end += HEADER_BYTES + stream[end + 1]
    return stream[sent:end]


# Names


USERNAME_RULE = "a name has 1 to 32 bytes, all printable, no space, no colon and no comma"


def is_valid_username(name: str) -> bool:
    """Section 6: 1 to 32 bytes of UTF-8, printable, NFC, no white space, no ":" and no ","."""
    return (
        name.isprintable()
        and 1 <= len(name.encode()) <= MAX_USERNAME_BYTES
        and unicodedata.is_normalized("NFC", name)
        and not any(character.isspace() or character in ":," for character in name)
    )
