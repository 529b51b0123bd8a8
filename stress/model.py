"""What the server must answer to any bytes, stated a second time: docs/PROTOCOL.md, one plain function for each rule.

It shares with the server the packet types, the reasons and the rules for names, and neither decoder, session, relay,
delivery nor archive. Where the page leaves something open, a comment here says so.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from chatstorage.names import looks
from protocol import PacketType, Reason, is_valid_username, may_sign_up
from stress import wire
from stress.peer import BRIEF, MAILBOX, PRESENCE, STORED, Message, ModelClient

MAX_USERS = 8
MAILBOX_MESSAGES = 5


@dataclass(eq=False, slots=True)
class Model:
    """The users, which of them are online, and their messages. `keeps`: whether there is history at all."""

    keeps: bool = True
    ids: dict[str, int] = field(default_factory=dict)
    passwords: dict[str, str] = field(default_factory=dict)
    online: dict[int, ModelClient] = field(default_factory=dict)
    said: list[Message] = field(default_factory=list)  # that are kept
    mailboxes: dict[int, list[Message]] = field(default_factory=lambda: defaultdict(list))
    unwritten: list[Message] = field(default_factory=list)
    disk_fails: bool = False  # that of the users
    cannot_write: bool = False  # chats
    cannot_read: bool = False
    _run: int = 1  # number of the run of Messages that are handed over together
    _in_run: bool = False  # the last packet was one of them

    def receive(self, peer: ModelClient, data: bytes) -> None:
        """`peer` sends these bytes; what the server must send in response is then due."""
        peer.rest += data
        self._end_run()
        while len(peer.rest) >= 2:
            kind, length = peer.rest[:2]
            if peer.closed and not (self._in_run and kind == PacketType.MESSAGE):
                break
            fault = wire.header_fault(peer.accepted, kind, length)
            if fault is None and len(peer.rest) < 2 + length:
                break
            body, peer.rest = peer.rest[2 : 2 + length], peer.rest[2 + length :]
            fault = fault or wire.body_fault(kind, body)
            if fault or kind != PacketType.MESSAGE:
                self._end_run()
            if fault:
                self._close(peer, fault)
            else:
                self.HANDLERS[kind](self, peer, body)

    def _end_run(self) -> None:
        """Messages that come together are handed over together, one that needs several packets on its own. That shows
        only where a receiver is dropped meanwhile: what is handed over then is neither refused nor more than may wait.
        """
        self._run += 1
        self._in_run = False

    # What happens besides

    def close(self, peer: ModelClient, reason: Reason, begun: bool) -> None:
        """The server ends this connection. `begun`: a packet that is due has been sent in part."""
        if reason is Reason.TOO_SLOW and not peer.closed:
            self._drop(peer, keep=begun)
        self._close(peer, reason)

    def cut_off(self, peer: ModelClient) -> None:
        """Nothing reaches this client any more."""
        peer.unreachable = True
        self._drop(peer)
        peer.forget()

    def end(self, peer: ModelClient) -> None:
        """The connection has ended."""
        peer.closed = True
        self._drop(peer)
        peer.forget()
        if self.online.get(peer.user_id) is peer:
            del self.online[peer.user_id]
            self._tell_all(peer, is_online=False)

    def commit(self) -> None:
        """Kept messages go to disk. The page leaves the moment open; in the target it is when somebody reads, and on
        request.
        """
        if self.cannot_write:
            return
        for message in self.unwritten:
            message.is_stored = True
            message.reach(STORED)
            message.reach(STORED, surely=True)
        self.unwritten.clear()

    def is_online(self, user_id: int) -> bool:
        """Whether messages to this user have a way to go."""
        return user_id in self.online and self.online[user_id].takes

    def _error(self, peer: ModelClient, reason: Reason) -> None:
        self._send(peer, wire.error(reason))

    def _send(self, peer: ModelClient, packet: bytes, message: Message | None = None) -> None:
        """This packet is due next, unless the client is dropped because there is no room for it. How much room there
        is, the page leaves open.
        """
        if not peer.takes:
            return
        if peer.room is not None and peer.put + len(packet) > peer.room:
            peer.room, peer.lost_in = None, self._run
            self.close(peer, Reason.TOO_SLOW, peer.begun)
        else:
            peer.put += len(packet)
            peer.due.append((packet, message))

    def _close(self, peer: ModelClient, reason: Reason) -> None:
        self._error(peer, reason)
        peer.closed = True
        peer.forget()

    def _drop(self, peer: ModelClient, keep: int = 0) -> None:
        """Only the first of the packets that are due will be sent (section 7.4)."""
        while len(peer.due) > keep:
            _, message = peer.due.pop()
            if message and message.owed:
                self._mail(message)
        if not peer.due:
            peer.has_all()

    def _tell_all(self, peer: ModelClient, is_online: bool) -> None:
        """Presence: notify everybody who asked for it (section 7.1)."""
        notice = wire.packet(PacketType.PRESENCE, bytes((is_online,)) + wire.entry(peer.name, peer.user_id))
        for other in self.online.values():
            if other.features & PRESENCE and other.takes and other.user_id != peer.user_id:
                other.presence.setdefault(peer.user_id, []).append(notice)

    # Config

    def _config(self, peer: ModelClient, body: bytes) -> None:
        name, password, features = wire.config(body)
        if peer.name and name != peer.name:
            self._error(peer, Reason.ALREADY_LOGGED_IN)
        elif peer.name:
            if features is not None:
                peer.ask(features)
            self._list(peer)
        elif refusal := self._refusal(name, password):
            peer.wrong_passwords += refusal is Reason.WRONG_PASSWORD
            if peer.wrong_passwords == 3:
                self._close(peer, refusal)
            else:
                self._error(peer, refusal)
        else:
            self._log_in(peer, name, password, features or 0)

    def _log_in(self, peer: ModelClient, name: str, password: str, features: int) -> None:
        peer.name, peer.user_id = name, self.ids.setdefault(name, len(self.ids) + 1)
        if password:
            self.passwords[name] = password
        self.online[peer.user_id] = peer
        self._tell_all(peer, is_online=True)
        peer.ask(features)
        if features & BRIEF:
            self._send(peer, wire.packet(PacketType.CONFIG, wire.entry(peer.name, peer.user_id)))
        else:
            self._list(peer)
        self._empty_mailbox(peer)

    def _looks_taken(self) -> set[str]:
        return {look for name in self.ids for look in looks(name)}

    def _refusal(self, name: str, password: str) -> Reason | None:
        """Section 5: a login is judged in this order."""
        new, known = name not in self.ids, self.passwords.get(name)
        rules: tuple[tuple[Reason, Callable[[], object]], ...] = (
            (Reason.INVALID_USERNAME, lambda: not is_valid_username(name) or (new and not may_sign_up(name))),
            (Reason.INVALID_PASSWORD, lambda: len(password.encode()) > 64),
            (Reason.USER_ALREADY_ONLINE, lambda: not new and self.is_online(self.ids[name])),
            (Reason.USERNAME_TAKEN, lambda: new and not self._looks_taken().isdisjoint(looks(name))),
            (Reason.USER_LIMIT_REACHED, lambda: new and len(self.ids) >= MAX_USERS),
            (Reason.PASSWORD_REQUIRED, lambda: known and not password),
            (Reason.WRONG_PASSWORD, lambda: known and password != known),
            (Reason.STORAGE_UNAVAILABLE, lambda: self.disk_fails and (new or (password and not known))),
        )
        return next((reason for reason, applies in rules if applies()), None)

    def _list(self, own: ModelClient) -> None:
        others = [peer for _, peer in sorted(self.online.items()) if peer.takes and peer is not own]
        for peer in (*others, own):
            self._send(own, wire.packet(PacketType.CONFIG, wire.entry(peer.name, peer.user_id)))

    def _empty_mailbox(self, peer: ModelClient) -> None:
        """Deliver the mailbox (section 7.4). While the disk cannot be read, nothing may follow."""
        mailbox = sorted(self.mailboxes[peer.user_id], key=lambda message: message.place)
        if not (mailbox and peer.takes):
            return
        self.commit()
        if self.cannot_read:
            self._close(peer, Reason.STORAGE_UNAVAILABLE)
            return
        self.mailboxes[peer.user_id] = []
        for message in mailbox:
            message.waits = False
            if not self._deliver(peer, message):
                self._mail(message)

    # Other packets

    def _chat_init(self, peer: ModelClient, body: bytes) -> None:
        user_id = int.from_bytes(body, "big")
        if not peer.name:
            self._error(peer, Reason.NOT_LOGGED_IN)
        elif self.is_online(user_id) or (self._may_mail(peer) and user_id in self.ids.values()):
            peer.partner = user_id
        else:
            self._error(peer, Reason.USER_NOT_ONLINE)

    def _message(self, peer: ModelClient, body: bytes) -> None:
        peer.numbered += 1
        packets = wire.message(peer.name, body[2:].decode())
        if not self._in_run or len(packets) > 1:
            self._end_run()
        self._in_run = bool(peer.partner)
        was_lost = peer.partner in self.online and self.online[peer.partner].lost_in == self._run
        if not was_lost and (refusal := self._message_refusal(peer)):
            self._error(peer, refusal)
            return
        kept = self.keeps and not self.cannot_write
        message = Message(
            peer,
            peer.user_id,
            peer.partner,
            packets,
            peer.numbered,
            len(self.said),
            peer.asking,
            owed=kept and self._may_mail(peer),
        )
        if not self._hand_over(message):
            self._error(peer, Reason.USER_NOT_ONLINE)
        elif kept:
            self.said.append(message)
            self.unwritten.append(message)
        if len(packets) > 1:
            self._run += 1

    def _hand_over(self, message: Message) -> bool:
        """Whether the receiver has it, or will."""
        if self.is_online(message.receiver) and self._deliver(self.online[message.receiver], message):
            return True
        if message.owed:
            self._mail(message)
        return message.owed

    def _mail(self, message: Message) -> None:
        message.waits = True
        self.mailboxes[message.receiver].append(message)

    def _message_refusal(self, peer: ModelClient) -> Reason | None:
        if not peer.name:
            return Reason.NOT_LOGGED_IN
        if not peer.partner:
            return Reason.NO_CHAT_STARTED
        if self.is_online(peer.partner):
            return None
        if not self._may_mail(peer):
            return Reason.USER_NOT_ONLINE
        if self.cannot_write:
            return Reason.STORAGE_UNAVAILABLE
        return Reason.MAILBOX_FULL if len(self.mailboxes[peer.partner]) >= MAILBOX_MESSAGES else None

    def _may_mail(self, peer: ModelClient) -> bool:
        return self.keeps and bool(peer.features & MAILBOX)

    def _deliver(self, peer: ModelClient, message: Message) -> bool:
        """Whether there was room for it."""
        for packet in message.packets[:-1]:
            self._send(peer, packet)
        self._send(peer, message.packets[-1], message)
        return peer.takes

    def _history(self, peer: ModelClient, body: bytes) -> None:
        """Replay past messages (section 7.3). While the disk fails, messages that are not on it yet are missing. For a
        client that has left, nothing is replayed.
        """
        if not peer.takes:
            return
        count, other = body[0], int.from_bytes(body[1:], "big")
        if other not in self.ids.values():
            self._error(peer, Reason.USER_NOT_ONLINE)
            return
        if count and self.keeps:
            self.commit()
            if self.cannot_read:
                self._error(peer, Reason.STORAGE_UNAVAILABLE)
                return
            pair = {peer.user_id, other}
            past = [one for one in self.said if one.is_stored and {one.sender, one.receiver} == pair]
            for message in past[-count:]:
                self._send(peer, wire.dated(message.sender))
                for packet in message.packets:
                    self._send(peer, packet)
        self._send(peer, wire.HISTORY_END)

    def _ping(self, peer: ModelClient, body: bytes) -> None:
        self._send(peer, wire.packet(PacketType.PONG, body))

    def _pong(self, _peer: ModelClient, _body: bytes) -> None:
        """A Pong needs no answer."""

    HANDLERS: ClassVar[dict[int, Callable[["Model", ModelClient, bytes], None]]] = {
        0x01: _config,
        0x02: _chat_init,
        0x03: _message,
        0x07: _history,
        0x08: _ping,
        0x09: _pong,
    }
