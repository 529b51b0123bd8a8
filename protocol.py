"""The chat wire protocol (docs/PROTOCOL.md): packet types, limits, encoding and incremental decoding.

This module is pure: bytes in, packets out, and back. It knows no socket, clock, greenlet or log, so that the server,
the client and the tests share one understanding of the bytes.

As in h11, two error types stand for two kinds of fault: `RemoteProtocolError` for what the peer sent,
`LocalProtocolError` for what our own caller asked for.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from enum import IntEnum, IntFlag, StrEnum
from functools import cache
from os import environ
from typing import NamedTuple

DEFAULT_PORT = 9034

HEADER_BYTES = 2
MAX_PACKET_BYTES = 140
MAX_BODY_BYTES = MAX_PACKET_BYTES - HEADER_BYTES
STRING_PREFIX_BYTES = 2
MESSAGE_HEADER_BYTES = HEADER_BYTES + STRING_PREFIX_BYTES  # what precedes a Message's text
MAX_TEXT_BYTES = MAX_BODY_BYTES - STRING_PREFIX_BYTES
MAX_USERNAME_BYTES = 32
MAX_PASSWORD_BYTES = 64
ID_WIDTHS = (1, 2, 4)
MAX_ID_BYTES = 4
MAX_HISTORY = 255  # the most messages that one History packet can ask for


class PacketType(IntEnum):
    """The first byte of a packet (section 2)."""

    CONFIG = 0x01
    CHAT_INIT = 0x02
    MESSAGE = 0x03
    ERROR = 0x04
    PRESENCE = 0x05
    RECEIPT = 0x06
    HISTORY = 0x07
    PING = 0x08
    PONG = 0x09


class Feature(IntFlag):
    """The optional features that a client asks for in its Config (section 7)."""

    PRESENCE = 0x01
    RECEIPTS = 0x02
    HISTORY = 0x04
    MAILBOX = 0x08
    BRIEF = 0x10


NO_FEATURES = Feature(0)
ALL_FEATURES = ~NO_FEATURES


class Level(IntEnum):
    """What a Receipt confirms about Messages (section 7.2)."""

    STORED = 1
    DELIVERED = 2


FROM_CLIENT = frozenset({PacketType.CONFIG, PacketType.CHAT_INIT, PacketType.MESSAGE, PacketType.PING, PacketType.PONG})
FROM_SERVER = frozenset({PacketType.CONFIG, PacketType.MESSAGE, PacketType.ERROR, PacketType.PING, PacketType.PONG})
EXTRA_FROM_CLIENT = {PacketType.HISTORY: Feature.HISTORY}  # and the feature that a client must ask for first
EXTRA_FROM_SERVER = {
    PacketType.PRESENCE: Feature.PRESENCE,
    PacketType.RECEIPT: Feature.RECEIPTS,
    PacketType.HISTORY: Feature.HISTORY,
}


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
    MAILBOX_FULL = "Mailbox Full"
    TOO_SLOW = "Too Slow"
    PLACE_NEEDED = "Place Needed"
    SERVER_SHUTTING_DOWN = "Server Shutting Down"


class RemoteProtocolError(Exception):
    """The peer broke the protocol; `reason` is the text of the Error packet that answers it."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class LocalProtocolError(Exception):
    """Our own caller asked for something that the protocol cannot express."""


class Decoder:
    """Cuts a TCP byte stream into packets, however it is chunked (section 1).

    An invalid header raises RemoteProtocolError, which every later call raises again.
    """

    __slots__ = ("_accepts", "_at", "_data", "_failure", "_is_ascii", "has_more")

    def __init__(self, accepts: Set[PacketType]) -> None:
        """`accepts`: the packet types that the peer may send, FROM_CLIENT in a server and FROM_SERVER in a client.
        accept_extra() adds those of features.
        """
        self._accepts = accepts
        self._data = b""
        self._at = 0  # where the next packet begins
        self._is_ascii = True
        self.has_more = False  # `next` may return a packet or raise
        self._failure: RemoteProtocolError | None = None

    def packets(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Feed `data` and yield each packet that `next` returns. Exhaust this before the next call."""
        self.feed(data)
        while packet := self.next():
            yield packet

    def feed(self, data: bytes) -> None:
        """Append `data` to the stream."""
        if self._failure:
            raise self._failure
        self._data = self._data[self._at :] + data
        self._at = 0
        self._is_ascii = self._data.isascii()
        self.has_more = True

    def next(self) -> tuple[int, bytes] | None:
        """(type, body) of the next packet; None while it is incomplete, with fewer than 140 bytes held.

        An invalid type or length is found as soon as the header's two bytes are there.
        """
        if self._failure:
            raise self._failure
        data, at = self._data, self._at
        left = len(data) - at
        if left >= HEADER_BYTES:
            packet_type, length = data[at], data[at + 1]
            if length > MAX_BODY_BYTES:
                raise self._fail(Reason.PACKET_TOO_LONG)
            if packet_type not in self._accepts:
                raise self._fail(Reason.UNKNOWN_PACKET_TYPE)
            if left >= HEADER_BYTES + length:
                self._at = at + HEADER_BYTES + length
                return packet_type, data[at + HEADER_BYTES : self._at]
        self._data, self._at = data[at:], 0
        self.has_more = False
        return None

    @property
    def rest(self) -> bytes:
        """The bytes held: the beginning of an incomplete packet."""
        return self._data[self._at :]

    def forget(self) -> None:
        """Discard the bytes held."""
        self._data = b""

    def messages(self, envelope: "Envelope") -> "Run":
        """The run of plain Messages that comes next, wrapped. The first packet that is not plain is left to `next`."""
        packets, count, at = wrap_messages(self._data, self._at, envelope, self._is_ascii)
        if at < len(self._data):
            self._at = at
        else:
            self._data, self._at = b"", 0
            self.has_more = False
        return tuple.__new__(Run, (packets, count))  # Run() would be a Python-level call

    def message(self, data: bytes, envelope: "Envelope") -> bytes:
        """`data`, wrapped, if it is one plain Message and comes next; else b"", and nothing has changed."""
        if self._at < len(self._data) or self._failure:
            return b""
        packet, count, at = wrap_messages(data, 0, envelope, data.isascii())
        return packet if count == 1 and at == len(data) else b""

    def accept_extra(self, extra: Mapping[PacketType, Feature], features: Feature) -> None:
        """From the next packet on accept exactly those types of `extra` whose feature is in `features`."""
        wanted = {packet_type for packet_type, feature in extra.items() if feature in features}
        self._accepts = _shared(frozenset(self._accepts - extra.keys() | wanted))

    def _fail(self, reason: Reason) -> RemoteProtocolError:
        self.forget()
        self._failure = RemoteProtocolError(reason)
        return self._failure


def _wrap_messages(data: bytes, at: int, envelope: "Envelope", is_ascii: bool) -> tuple[bytes, int, int]:
    """Wrap the plain Messages that come next in `data`, from position `at` on: their packets for the receiver, their
    number, and the position behind them.

    Plain means complete, valid and one packet when wrapped. `is_ascii`: all of `data` is. A call per Message would cost
    more than relaying it.
    """
    begin, end = at + MESSAGE_HEADER_BYTES, len(data)
    header = data[at:begin]
    wrapped: list[bytes] = []
    heads = envelope.heads = envelope.heads or _Heads(envelope.prefix)
    add, find = wrapped.append, heads.get
    while heads[header]:  # the first of its kind
        while head := find(header):
            stop = begin + header[-1]
            text = data[begin:stop]
            if stop > end or not (is_ascii or _is_text(text)):
                header = b""
                break
            add(head)
            add(text)
            begin = stop + MESSAGE_HEADER_BYTES
            header = data[stop:begin]
    return b"".join(wrapped), len(wrapped) // 2, begin - MESSAGE_HEADER_BYTES


wrap_messages = _wrap_messages
if not environ.get("CHAT_PURE_PYTHON"):
    with suppress(ImportError):  # it is built only where there is a compiler
        from _protocol import wrap_messages
IS_COMPILED = wrap_messages is not _wrap_messages


@cache
def _shared(types: frozenset[PacketType]) -> frozenset[PacketType]:
    """One set for all decoders that accept these types: half a kilobyte less for each."""
    return types


# Encoding


def encode(packet_type: PacketType, body: bytes) -> bytes:
    """One packet. Raises LocalProtocolError for a body over 138 bytes."""
    if len(body) > MAX_BODY_BYTES:
        raise LocalProtocolError(f"a body of {len(body)} bytes does not fit a packet (at most {MAX_BODY_BYTES})")
    return bytes((packet_type, len(body))) + body


def encode_string(text: bytes) -> bytes:
    """A String: 2-byte length, then the UTF-8 bytes."""
    return len(text).to_bytes(STRING_PREFIX_BYTES, "big") + text


def encode_login(username: str, password: str = "", features: Feature = NO_FEATURES) -> bytes:
    """A client's Config. Raises LocalProtocolError if name and password together do not fit."""
    body = encode_string(username.encode())
    if password or features:
        body += encode_string(password.encode())
    if features:
        body += bytes((features,))
    return encode(PacketType.CONFIG, body)


def encode_user(username: str, user_id: int, id_width: int) -> bytes:
    """A server's Config: one entry of the list of online users; `id_width` in bytes."""
    return encode(PacketType.CONFIG, encode_string(username.encode()) + user_id.to_bytes(id_width, "big"))


def encode_chat_init(user_id: int) -> bytes:
    """A client's Chat Init. Raises LocalProtocolError if the id is not in 1..2^32-1."""
    return encode(PacketType.CHAT_INIT, _encode_any_id(user_id))


def _encode_any_id(user_id: int) -> bytes:
    """A user id in as few bytes as it needs."""
    width = max(1, (user_id.bit_length() + 7) // 8)
    if user_id < 1 or width > MAX_ID_BYTES:
        raise LocalProtocolError(f"a user id is a number from 1 to {2 ** (8 * MAX_ID_BYTES) - 1}, not {user_id}")
    return user_id.to_bytes(width, "big")


def encode_message(text: bytes) -> bytes:
    """A client's Message. Raises LocalProtocolError for a text over 136 bytes."""
    return encode(PacketType.MESSAGE, encode_string(text))


def encode_error(reason: Reason) -> bytes:
    """An Error packet."""
    return encode(PacketType.ERROR, encode_string(reason.encode()))


def encode_presence(is_online: bool, username: str, user_id: int, id_width: int) -> bytes:
    """A server's Presence: another user went online or offline (section 7.1)."""
    body = bytes((is_online,)) + encode_string(username.encode()) + user_id.to_bytes(id_width, "big")
    return encode(PacketType.PRESENCE, body)


def encode_receipt(level: Level, first: int, last: int) -> bytes:
    """A server's Receipt: Messages `first` to `last` have reached this level (section 7.2)."""
    return encode(PacketType.RECEIPT, bytes((level,)) + first.to_bytes(4, "big") + last.to_bytes(4, "big"))


def encode_history_request(count: int, user_id: int) -> bytes:
    """A client's History: asks for the last `count` messages with this user (section 7.3).

    Raises LocalProtocolError for more than 255.
    """
    if not 0 <= count <= MAX_HISTORY:
        raise LocalProtocolError(f"0 to {MAX_HISTORY} messages can be asked for, not {count}")
    return encode(PacketType.HISTORY, bytes((count,)) + _encode_any_id(user_id))


def encode_dated(seconds: int, sender_id: int, id_width: int) -> bytes:
    """A server's History: the Unix time in seconds and the sender of the Message that follows."""
    return encode(PacketType.HISTORY, seconds.to_bytes(4, "big") + sender_id.to_bytes(id_width, "big"))


HISTORY_END = encode(PacketType.HISTORY, b"")


def text_room(sender: str) -> int:
    """How many bytes of `sender`'s text fit into one packet to the receiver (section 3.6)."""
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


class Run(NamedTuple):
    """The Messages that one read brought together, wrapped for their receiver.

    Each Message is one packet, or a single Message is several packets.
    """

    packets: bytes
    messages: int  # their number


def each_message(run: Run) -> list[bytes]:
    """The run's Messages, each as the bytes of its packet or packets."""
    return [run.packets] if run.messages == 1 else split_packets(run.packets)


def first_messages(run: Run, count: int) -> Run:
    """A run of the first `count` Messages."""
    return run if count >= run.messages else Run(b"".join(each_message(run)[:count]), count)


_MESSAGE_HEADERS = [  # a Message's first four bytes, indexed by the length of its text
    bytes((PacketType.MESSAGE, STRING_PREFIX_BYTES + length, 0, length)) for length in range(MAX_TEXT_BYTES + 1)
]


class Envelope:
    """Wraps one sender's texts for the receiver: Message `sender:text` (sections 3.5 and 3.6)."""

    __slots__ = ("heads", "prefix")

    def __init__(self, sender: str) -> None:
        self.prefix = f"{sender}:".encode()
        self.heads: _Heads | None = None  # made when it is used

    def wrap(self, text: bytes) -> bytes:
        """The Message packet for `text`, or several in order if it does not fit into one."""
        pieces = split_text(text, MAX_TEXT_BYTES - len(self.prefix))
        return b"".join([encode_message(self.prefix + piece) for piece in pieces])


class _Heads(dict[bytes, bytes]):
    """Maps the first four bytes of a sender's Message to what precedes its text in the receiver's; to b"" where it is
    no Message, or would not fit into one packet. Building a head for each message would cost more than relaying it.
    """

    __slots__ = ("_prefix",)

    def __init__(self, prefix: bytes) -> None:
        super().__init__()
        self._prefix = prefix

    def __missing__(self, header: bytes) -> bytes:
        length = header[-1] if header else 0
        if length > MAX_TEXT_BYTES - len(self._prefix) or header != _MESSAGE_HEADERS[length]:
            return b""
        self[header] = head = _MESSAGE_HEADERS[len(self._prefix) + length] + self._prefix
        return head


# Parsing


def parse_text(body: bytes) -> bytes:
    """The String that fills the body of a Message or Error, as UTF-8 bytes.

    Raises RemoteProtocolError (Malformed Packet).
    """
    if len(body) < STRING_PREFIX_BYTES or body[0] << 8 | body[1] != len(body) - STRING_PREFIX_BYTES:
        raise RemoteProtocolError(Reason.MALFORMED_PACKET)
    text = body[STRING_PREFIX_BYTES:]
    if not _is_text(text):
        raise RemoteProtocolError(Reason.MALFORMED_PACKET)
    return text


def _is_text(data: bytes) -> bool:
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False


class Login(NamedTuple):
    """A client's Config. "" is no password; `features` is None if the packet has no features field."""

    username: str
    password: str
    features: Feature | None


def parse_login(body: bytes) -> Login:
    """A client's Config; unknown features are ignored. Raises RemoteProtocolError (Malformed Packet)."""
    username, rest = _take_string(body)
    password, features = _take_string(rest) if rest else ("", b"")
    if len(features) > 1:
        raise RemoteProtocolError(Reason.MALFORMED_PACKET)
    return Login(username, password, Feature(features[0]) & ALL_FEATURES if features else None)


def parse_user(body: bytes) -> tuple[str, int]:
    """(username, id) of a server's Config. Raises RemoteProtocolError (Malformed Packet)."""
    username, rest = _take_string(body)
    return username, parse_user_id(rest)


def parse_user_id(body: bytes) -> int:
    """The UserID that fills `body`: 1 to 4 bytes, not 0. Raises RemoteProtocolError (Malformed Packet)."""
    user_id = int.from_bytes(body, "big")
    if len(body) > MAX_ID_BYTES or user_id == 0:
        raise RemoteProtocolError(Reason.MALFORMED_PACKET)
    return user_id


class Presence(NamedTuple):
    """A server's Presence: another user went online or offline."""

    is_online: bool
    username: str
    user_id: int


def parse_presence(body: bytes) -> Presence:
    """A server's Presence. Raises RemoteProtocolError (Malformed Packet)."""
    if body[:1] not in (b"\0", b"\1"):
        raise RemoteProtocolError(Reason.MALFORMED_PACKET)
    return Presence(bool(body[0]), *parse_user(body[1:]))


def parse_receipt(body: bytes) -> tuple[Level, int, int]:
    """(level, first, last) of a server's Receipt. Raises RemoteProtocolError (Malformed Packet)."""
    first, last = int.from_bytes(body[1:5], "big"), int.from_bytes(body[5:], "big")
    if len(body) != 9 or body[0] not in tuple(Level) or not 0 < first <= last:
        raise RemoteProtocolError(Reason.MALFORMED_PACKET)
    return Level(body[0]), first, last


def parse_history_request(body: bytes) -> tuple[int, int]:
    """(count, user id) of a client's History. Raises RemoteProtocolError (Malformed Packet)."""
    if not body:
        raise RemoteProtocolError(Reason.MALFORMED_PACKET)
    return body[0], parse_user_id(body[1:])


def parse_dated(body: bytes) -> tuple[int, int] | None:
    """(Unix time in seconds, sender's id) of a server's History; None at the end of the replay.

    Raises RemoteProtocolError (Malformed Packet).
    """
    return (int.from_bytes(body[:4], "big"), parse_user_id(body[4:])) if body else None


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


def whole_packets(stream: bytes) -> tuple[int, int]:
    """(number, bytes) of the whole packets at the beginning of a stream."""
    count = end = 0
    while end + 1 < len(stream) and (stop := end + HEADER_BYTES + stream[end + 1]) <= len(stream):
        count, end = count + 1, stop
    return count, end


def split_packets(stream: bytes) -> list[bytes]:
    """Split a stream of whole packets into packets."""
    packets, start = [], 0
    while start < len(stream):
        stop = start + HEADER_BYTES + stream[start + 1]
        packets.append(stream[start:stop])
        start = stop
    return packets


def rest_of_packet(stream: bytes, sent: int) -> bytes:
    """The rest of the packet that is partly sent once `sent` bytes of a stream of whole packets are sent."""
    end = 0
    while end < sent:
        end += HEADER_BYTES + stream[end + 1]
    return stream[sent:end]


# Names


USERNAME_RULE = "a name has 1 to 32 bytes, all printable, no space, no colon and no comma"

# Printable in Unicode's sense, and yet nothing is seen: Default_Ignorable_Code_Point, and blank letters and symbols.
SHOWS_NOTHING = frozenset(
    chr(code)
    for codes in (
        (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, 0x13441, 0x13442, 0x16FE4, 0x1D159),
        range(0x180B, 0x1810),
        range(0xFE00, 0xFE10),
        range(0xE0100, 0xE01F0),
    )
    for code in codes
)

_NOT_IN_NAMES = frozenset(" :,")  # of all that is white space only the blank is printable


def is_valid_username(name: str) -> bool:
    """Section 6: 1 to 32 bytes of UTF-8, printable, NFC, no white space, no ":" and no ","."""
    return (
        name.isprintable()
        and 1 <= len(name.encode()) <= MAX_USERNAME_BYTES
        and unicodedata.is_normalized("NFC", name)
        and _NOT_IN_NAMES.isdisjoint(name)
    )


def may_sign_up(name: str) -> bool:
    """Section 6: whether a new user may take this valid name. A number is an id, and "#" begins a room."""
    return not name.isdecimal() and not name.startswith("#") and SHOWS_NOTHING.isdisjoint(name)
