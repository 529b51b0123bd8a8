"""The chat wire protocol (docs/PROTOCOL.md): packet types, limits, encoding and incremental decoding.

Pure: bytes in, packets out, and back. No socket, clock, greenlet or log is known here, so that the server, the client
and the tests share one understanding of the bytes.

Two kinds of fault are two types, as in h11: `RemoteProtocolError` is what the peer sent, `LocalProtocolError` is what
our own caller asked for.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Set
from enum import IntEnum, IntFlag, StrEnum
from typing import NamedTuple

DEFAULT_PORT = 9034

HEADER_BYTES = 2
MAX_PACKET_BYTES = 140
MAX_BODY_BYTES = MAX_PACKET_BYTES - HEADER_BYTES
STRING_PREFIX_BYTES = 2
MESSAGE_HEADER_BYTES = HEADER_BYTES + STRING_PREFIX_BYTES  # before its text
MAX_TEXT_BYTES = MAX_BODY_BYTES - STRING_PREFIX_BYTES
MAX_USERNAME_BYTES = 32
MAX_PASSWORD_BYTES = 64
ID_WIDTHS = (1, 2, 4)
MAX_ID_BYTES = 4
MAX_HISTORY = 255  # messages that one History packet can ask for


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
    """What a client asks for in its Config (section 7)."""

    PRESENCE = 0x01
    RECEIPTS = 0x02
    HISTORY = 0x04
    MAILBOX = 0x08
    BRIEF = 0x10


NO_FEATURES = Feature(0)
ALL_FEATURES = ~NO_FEATURES


class Level(IntEnum):
    """How far a Message has come (section 7.2)."""

    STORED = 1
    DELIVERED = 2


FROM_CLIENT = frozenset({PacketType.CONFIG, PacketType.CHAT_INIT, PacketType.MESSAGE, PacketType.PING, PacketType.PONG})
FROM_SERVER = frozenset({PacketType.CONFIG, PacketType.MESSAGE, PacketType.ERROR, PacketType.PING, PacketType.PONG})
EXTRA_FROM_CLIENT = {PacketType.HISTORY: Feature.HISTORY}  # with the feature that has to be asked for first
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

    `accepts` holds the packet types that this peer may send: FROM_CLIENT in a server, FROM_SERVER in a client, and what
    features add to them. Where the stream is at fault RemoteProtocolError is raised, then and at every later call.
    """

    def __init__(self, accepts: Set[PacketType]) -> None:
        self._accepts = accepts
        self._data = b""
        self._at = 0  # where the next packet begins
        self._is_ascii = True
        self.has_more = False  # `next` may have something to say
        self._failure: RemoteProtocolError | None = None

    def packets(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Feed `data` and yield what `next` returns; to be used up before the next call."""
        self.feed(data)
        while packet := self.next():
            yield packet

    def feed(self, data: bytes) -> None:
        """This comes next."""
        if self._failure:
            raise self._failure
        self._data = self._data[self._at :] + data
        self._at = 0
        self._is_ascii = self._data.isascii()
        self.has_more = True

    def next(self) -> tuple[int, bytes] | None:
        """(type, body) of the next packet; None while it is not complete, when fewer than 140 bytes are held.

        Both faults of a header are found as soon as its two bytes are there.
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
        """What is held."""
        return self._data[self._at :]

    def forget(self) -> None:
        """Hold nothing."""
        self._data = b""

    def messages(self, envelope: "Envelope") -> "Run":
        """All Messages that come next, wrapped, as far as they are plain: complete, valid, and one packet again.

        What they are not is left to `next`. A call for each would cost more than relaying them.
        """
        data = self._data
        begin, end = self._at + MESSAGE_HEADER_BYTES, len(data)
        header = data[self._at : begin]
        is_ascii = self._is_ascii
        wrapped: list[bytes] = []
        add, find = wrapped.append, envelope.heads.get
        while head := find(header):
            stop = begin + header[-1]
            text = data[begin:stop]
            if stop > end or not (is_ascii or _is_text(text)):
                break
            add(head)
            add(text)
            begin = stop + MESSAGE_HEADER_BYTES
            header = data[stop:begin]
        at = begin - MESSAGE_HEADER_BYTES
        if at < end:
            self._at = at
        else:
            self._data, self._at = b"", 0
            self.has_more = False
        return tuple.__new__(Run, (b"".join(wrapped), len(wrapped) // 2))  # Run() is a call in Python for each read

    def accept_extra(self, extra: Mapping[PacketType, Feature], features: Feature) -> None:
        """From the next packet on the peer may send of these types those whose feature is among `features` alone."""
        wanted = {packet_type for packet_type, feature in extra.items() if feature in features}
        self._accepts = self._accepts - extra.keys() | wanted

    def _fail(self, reason: Reason) -> RemoteProtocolError:
        self.forget()
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


def encode_login(username: str, password: str = "", features: Feature = NO_FEATURES) -> bytes:
    """A client's Config. Raises LocalProtocolError where name and password together do not fit."""
    body = encode_string(username.encode())
    if password or features:
        body += encode_string(password.encode())
    if features:
        body += bytes((features,))
    return encode(PacketType.CONFIG, body)


def encode_user(username: str, user_id: int, id_width: int) -> bytes:
    """A server's Config: one entry of the list of who is online."""
    return encode(PacketType.CONFIG, encode_string(username.encode()) + user_id.to_bytes(id_width, "big"))


def encode_chat_init(user_id: int) -> bytes:
    """Chat Init."""
    return encode(PacketType.CHAT_INIT, _encode_any_id(user_id))


def _encode_any_id(user_id: int) -> bytes:
    """In as few bytes as it needs."""
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
    """Another user has come, or gone (section 7.1)."""
    body = bytes((is_online,)) + encode_string(username.encode()) + user_id.to_bytes(id_width, "big")
    return encode(PacketType.PRESENCE, body)


def encode_receipt(level: Level, first: int, last: int) -> bytes:
    """The Messages of these numbers have come so far (section 7.2)."""
    return encode(PacketType.RECEIPT, bytes((level,)) + first.to_bytes(4, "big") + last.to_bytes(4, "big"))


def encode_history_request(count: int, user_id: int) -> bytes:
    """A client's History: the last `count` messages with this user. Raises LocalProtocolError for more than 255."""
    if not 0 <= count <= MAX_HISTORY:
        raise LocalProtocolError(f"0 to {MAX_HISTORY} messages can be asked for, not {count}")
    return encode(PacketType.HISTORY, bytes((count,)) + _encode_any_id(user_id))


def encode_dated(seconds: int, sender_id: int, id_width: int) -> bytes:
    """A server's History: when the message that follows was sent, in seconds of Unix time, and by whom."""
    return encode(PacketType.HISTORY, seconds.to_bytes(4, "big") + sender_id.to_bytes(id_width, "big"))


HISTORY_END = encode(PacketType.HISTORY, b"")


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


class Run(NamedTuple):
    """Messages that one sender's chunk brought together, as their receiver gets them.

    Either each Message is one packet, or there is a single Message of several packets.
    """

    packets: bytes
    messages: int  # how many


def each_message(run: Run) -> list[bytes]:
    """Its Messages, each as its packet, or packets."""
    return [run.packets] if run.messages == 1 else split_packets(run.packets)


def first_messages(run: Run, count: int) -> Run:
    """A run of its first `count` Messages."""
    return run if count >= run.messages else Run(b"".join(each_message(run)[:count]), count)


_MESSAGE_HEADERS = [  # by the length of the text
    bytes((PacketType.MESSAGE, STRING_PREFIX_BYTES + length, 0, length)) for length in range(MAX_TEXT_BYTES + 1)
]


class Envelope:
    """Wraps one sender's texts as the receiver gets them: Message `sender:text` (section 3.5, 3.6).

    `heads` has, for the first four bytes of a sender's Message, those of the receiver's and what comes before the text,
    where that is one packet again: made anew for each message they would cost more than relaying it.
    """

    def __init__(self, sender: str) -> None:
        self._prefix = f"{sender}:".encode()
        self._room = text_room(sender)
        self.heads = {_MESSAGE_HEADERS[length]: self._head(length) for length in range(self._room + 1)}

    def wrap(self, text: bytes) -> bytes:
        """The Message packet for `text`, or several, in order, where one is too small."""
        return b"".join([self._head(len(piece)) + piece for piece in split_text(text, self._room)])

    def _head(self, length: int) -> bytes:
        return _MESSAGE_HEADERS[len(self._prefix) + length] + self._prefix


# Parsing


def parse_text(body: bytes) -> bytes:
    """The one String that fills a Message or Error body, as UTF-8 bytes.

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
    """A client's Config. "" is no password; `features` is None where it says nothing about them."""

    username: str
    password: str
    features: Feature | None


def parse_login(body: bytes) -> Login:
    """A client's Config. A feature that we do not know is left out. Raises RemoteProtocolError (Malformed Packet)."""
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
    """A UserID that fills its body: 1 to 4 bytes wide, not 0. Raises RemoteProtocolError (Malformed Packet)."""
    user_id = int.from_bytes(body, "big")
    if len(body) > MAX_ID_BYTES or user_id == 0:
        raise RemoteProtocolError(Reason.MALFORMED_PACKET)
    return user_id


class Presence(NamedTuple):
    """Another user has come, or gone."""

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
    """(Unix time in seconds, sender's id) of a server's History; None where the replay ends.

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
    """How many whole packets a stream begins with, and their bytes."""
    count = end = 0
    while end + 1 < len(stream) and (stop := end + HEADER_BYTES + stream[end + 1]) <= len(stream):
        count, end = count + 1, stop
    return count, end


def split_packets(stream: bytes) -> list[bytes]:
    """The packets of a stream of whole ones."""
    packets, start = [], 0
    while start < len(stream):
        stop = start + HEADER_BYTES + stream[start + 1]
        packets.append(stream[start:stop])
        start = stop
    return packets


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
