"""What the server has to answer to any bytes, told a second time: docs/PROTOCOL.md, one plain function for each rule.

It shares with the server the packet types, the reasons and the rules for names, and neither decoder, session nor relay.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from chatstorage.interface import skeleton
from protocol import PacketType, Reason, is_valid_username

MAX_USERS = 8
Out = list[tuple["Peer", bytes]]  # who is sent what, in order


@dataclass(eq=False, slots=True)
class Peer:
    """One connection as the protocol sees it. `user_id` and `partner` are 0 until the login and the first Chat Init."""

    name: str = ""
    user_id: int = 0
    partner: int = 0
    wrong_passwords: int = 0
    closed: bool = False
    unreachable: bool = False
    rest: bytes = b""

    @property
    def takes(self) -> bool:
        """Whether what is sent to it has a way to go."""
        return not (self.closed or self.unreachable)


@dataclass(eq=False, slots=True)
class Model:
    """Who has signed up and who is online."""

    ids: dict[str, int] = field(default_factory=dict)
    passwords: dict[str, str] = field(default_factory=dict)
    online: dict[int, Peer] = field(default_factory=dict)
    disk_fails: bool = False

    def receive(self, peer: Peer, data: bytes) -> Out:
        """What these bytes of `peer` have the server send, and to whom."""
        out: Out = []
        peer.rest += data
        while not peer.closed and len(peer.rest) >= 2:
            kind, length = peer.rest[:2]
            fault = _header_fault(kind, length)
            if fault is None and len(peer.rest) < 2 + length:
                break
            body, peer.rest = peer.rest[2 : 2 + length], peer.rest[2 + length :]
            fault = fault or _body_fault(kind, body)
            if fault is not None:
                self._close(peer, fault, out)
            else:
                HANDLERS[kind](self, peer, body, out)
        return [(receiver, packet) for receiver, packet in out if not receiver.unreachable]

    def close(self, peer: Peer, reason: Reason) -> Out:
        """The server ends this connection."""
        out: Out = []
        if not peer.closed:
            self._close(peer, reason, out)
        return [] if peer.unreachable else out

    def end(self, peer: Peer) -> None:
        """The connection has ended."""
        peer.closed = True
        if self.online.get(peer.user_id) is peer:
            del self.online[peer.user_id]

    def _close(self, peer: Peer, reason: Reason, out: Out) -> None:
        out.append((peer, _error(reason)))
        peer.closed = True

    def is_online(self, user_id: int) -> bool:
        """Whether messages to this user have a way to go."""
        return user_id in self.online and self.online[user_id].takes

    def _config(self, peer: Peer, body: bytes, out: Out) -> None:
        strings = list(_strings(body))
        name, password = strings[0].decode(), strings[1].decode() if len(strings) > 1 else ""
        if peer.name:
            out += self._list(peer) if name == peer.name else [(peer, _error(Reason.ALREADY_LOGGED_IN))]
            return
        refusal = self._refusal(name, password)
        if refusal is not None:
            peer.wrong_passwords += refusal is Reason.WRONG_PASSWORD
            out.append((peer, _error(refusal)))
            peer.closed = peer.wrong_passwords == 3
            return
        peer.name, peer.user_id = name, self.ids.setdefault(name, len(self.ids) + 1)
        if password:
            self.passwords[name] = password
        self.online[peer.user_id] = peer
        out += self._list(peer)

    def _refusal(self, name: str, password: str) -> Reason | None:
        """Section 5: a login is judged in this order."""
        new, known = name not in self.ids, self.passwords.get(name)
        rules: tuple[tuple[Reason, Callable[[], object]], ...] = (
            (Reason.INVALID_USERNAME, lambda: not is_valid_username(name)),
            (Reason.INVALID_PASSWORD, lambda: len(password.encode()) > 64),
            (Reason.USER_ALREADY_ONLINE, lambda: not new and self.is_online(self.ids[name])),
            (Reason.USERNAME_TAKEN, lambda: new and skeleton(name) in map(skeleton, self.ids)),
            (Reason.USER_LIMIT_REACHED, lambda: new and len(self.ids) >= MAX_USERS),
            (Reason.PASSWORD_REQUIRED, lambda: known and not password),
            (Reason.WRONG_PASSWORD, lambda: known and password != known),
            (Reason.STORAGE_UNAVAILABLE, lambda: self.disk_fails),
        )
        return next((reason for reason, applies in rules if applies()), None)

    def _list(self, own: Peer) -> Out:
        others = [peer for _, peer in sorted(self.online.items()) if peer.takes and peer is not own]
        return [
            (own, _packet(PacketType.CONFIG, _string(peer.name.encode()) + bytes((peer.user_id,))))
            for peer in [*others, own]
        ]

    def _chat_init(self, peer: Peer, body: bytes, out: Out) -> None:
        user_id = int.from_bytes(body, "big")
        if not peer.name:
            out.append((peer, _error(Reason.NOT_LOGGED_IN)))
        elif not self.is_online(user_id):
            out.append((peer, _error(Reason.USER_NOT_ONLINE)))
        else:
            peer.partner = user_id

    def _message(self, peer: Peer, body: bytes, out: Out) -> None:
        if not peer.name:
            out.append((peer, _error(Reason.NOT_LOGGED_IN)))
        elif not peer.partner:
            out.append((peer, _error(Reason.NO_CHAT_STARTED)))
        elif not self.is_online(peer.partner):
            out.append((peer, _error(Reason.USER_NOT_ONLINE)))
        else:
            pieces = _pieces(f"{peer.name}:", body[2:].decode())
            out += [(self.online[peer.partner], _packet(PacketType.MESSAGE, _string(piece))) for piece in pieces]

    def _ping(self, peer: Peer, body: bytes, out: Out) -> None:
        out.append((peer, _packet(PacketType.PONG, body)))

    def _pong(self, _peer: Peer, _body: bytes, _out: Out) -> None:
        """Answers nothing."""


HANDLERS = {0x01: Model._config, 0x02: Model._chat_init, 0x03: Model._message, 0x08: Model._ping, 0x09: Model._pong}


def _header_fault(kind: int, length: int) -> Reason | None:
    if length > 138:
        return Reason.PACKET_TOO_LONG
    return None if kind in HANDLERS else Reason.UNKNOWN_PACKET_TYPE


def _body_fault(kind: int, body: bytes) -> Reason | None:
    try:
        strings = list(_strings(body)) if kind in (0x01, 0x03) else []
    except ValueError:
        return Reason.MALFORMED_PACKET
    well_formed = {
        0x01: 1 <= len(strings) <= 2 and len(body) - sum(2 + len(string) for string in strings) <= 1,
        0x02: len(body) <= 4 and any(body),
        0x03: len(strings) == 1 and len(body) == 2 + len(strings[0]),
    }
    return None if well_formed.get(kind, True) else Reason.MALFORMED_PACKET


def _strings(body: bytes) -> Iterator[bytes]:
    """The first two Strings of a body at most. Raises ValueError for one that is longer than the rest, or no UTF-8."""
    for number in range(2):
        if not body and number:
            return
        length = int.from_bytes(body[:2], "big")
        if len(body) < 2 + length:
            raise ValueError
        body[2 : 2 + length].decode()
        yield body[2 : 2 + length]
        body = body[2 + length :]


def _pieces(prefix: str, text: str) -> Iterator[bytes]:
    """Section 3.6, character by character."""
    piece = prefix.encode()
    for character in text:
        if len(piece) + len(character.encode()) > 136:
            yield piece
            piece = prefix.encode()
        piece += character.encode()
    yield piece


def _string(text: bytes) -> bytes:
    return bytes((0, len(text))) + text


def _packet(kind: int, body: bytes) -> bytes:
    return bytes((kind, len(body))) + body


def _error(reason: Reason) -> bytes:
    return _packet(PacketType.ERROR, _string(reason.encode()))
