"""Accepts clients, serves a pool of them at once, and sees them off at shutdown."""

import logging
import socket
import ssl
from collections import Counter
from dataclasses import dataclass
from math import inf

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer

from chatserver.counters import Counters
from chatserver.messages.delivery import Delivery
from chatserver.people.accounts import Accounts
from chatserver.people.presence import Presence
from chatserver.session import Session
from chatserver.transport.address import ClientAddress, client_address
from chatserver.transport.connection import LINGER_SECONDS, RECV_BYTES, Connection
from chatserver.transport.limits import Limits, TokenBucket
from chatserver.transport.readable import plain_socket
from chatserver.transport.tls import TlsStream
from protocol import HEADER_BYTES, MAX_PACKET_BYTES, Reason

SEND_BUFFER_BYTES = 64 * 1024  # left to itself the kernel buffers megabytes, and the outbox's bound would mean little
RECEIVE_BUFFER_BYTES = 128 * 1024  # and megabytes here, even of a connection that only waits for a place
KEEPALIVE_IDLE_SECONDS = 30
KEEPALIVE_INTERVAL_SECONDS = 10
KEEPALIVE_PROBES = 3
VANISHED_SECONDS = 60
CHUNK_SECONDS = 0.5  # at shutdown: more than enough to handle what has been read, unless a partner is slow

log = logging.getLogger("chat")


@dataclass(frozen=True, slots=True)
class ServerContext:
    """All that the sessions of one process share; made once, in server.py, and handed down."""

    presence: Presence
    accounts: Accounts
    delivery: Delivery
    counters: Counters
    limits: Limits
    tls: ssl.SSLContext | None  # None: not encrypted


def listen(host: str, port: int, backlog: int, write_timeout: float, reuse_port: bool = False) -> socket.socket:
    """A listening socket, whose options the accepted ones inherit. Raises OSError."""
    *_, (family, kind, proto, _, address) = sorted(
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE),
        key=lambda found: found[0] == socket.AF_INET,
    )
    listener = socket.socket(family, kind, proto)
    try:
        for level, option, value in _socket_options(write_timeout):
            listener.setsockopt(level, option, value)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def _socket_options(write_timeout: float) -> list[tuple[int, int, int]]:
    """A peer that vanished is noticed in about a minute, with traffic under way or without."""
    vanished = max(VANISHED_SECONDS, 2 * write_timeout)  # later than `Too Slow`, which a peer still there may get
    by_name = {
        "TCP_NODELAY": 1,
        "TCP_KEEPIDLE": KEEPALIVE_IDLE_SECONDS,
        "TCP_KEEPALIVE": KEEPALIVE_IDLE_SECONDS,  # macOS's name for it
        "TCP_KEEPINTVL": KEEPALIVE_INTERVAL_SECONDS,
        "TCP_KEEPCNT": KEEPALIVE_PROBES,
        "TCP_USER_TIMEOUT": int(vanished * 1000),
    }
    return [
        (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES),
        (socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES),
        *(
            (socket.IPPROTO_TCP, getattr(socket, name), value)
            for name, value in by_name.items()
            if hasattr(socket, name)
        ),
    ]


class ChatServer(StreamServer):
    """Serves `pool_size` clients at once; the next ones wait in the kernel's listen queue, in order.

    Clients that are being seen off (connection.finish) have a pool of the same size to themselves: they hold no slot,
    unless so many linger that they must.
    """

    def __init__(self, listener: socket.socket, context: ServerContext, pool_size: int) -> None:
        self._slots = Pool(pool_size)
        super().__init__(listener, self.serve, spawn=self._slots)
        self.context = context
        self._lingering = Pool(pool_size)
        self._leaving: dict[Connection, None] = {}  # those in it, the longest first
        self._origins: Counter[str] = Counter()  # connections served, by address
        self.connections: dict[Connection, Session] = {}
        self.draining = False

    def do_close(self, *_: object) -> None:
        """Connection closes its socket, later than the handler returns."""

    def serve(self, sock: socket.socket, address: tuple[str, int]) -> None:
        """One client, in a slot of the pool: read a chunk, handle it, until there is no more."""
        peer = client_address(address, encrypted=bool(self.context.tls))
        connection, session = self._welcome(sock, peer)
        patience = Patience(self.context.limits, connection, session)
        try:
            _converse(connection, session, self.context)
        except Exception:
            log.exception("%s: a fault of the server's own ends this connection", session.label)
            connection.end_with("a fault of the server's own")
        finally:
            patience.end()
            connection.at_rest = True
            if not self.draining:  # else drain() lets go of all, when nobody hands anything over any more
                try:
                    self._end_session(connection)
                finally:
                    if connection.is_through:
                        self._see_off(connection, session)
                    else:
                        self._make_room()
                        self._lingering.spawn(self._see_off, connection, session)
            self._forget(peer)

    def _welcome(self, sock: socket.socket, peer: ClientAddress) -> tuple[Connection, Session]:
        context, limits = self.context, self.context.limits
        log.info("%s connected", peer.label)
        context.counters.connections += 1
        plain = plain_socket(sock)
        connection = Connection(
            TlsStream(plain, context.tls) if context.tls else plain,
            context.counters,
            limits.outbox_bytes,
            limits.write_timeout,
        )
        session = Session(
            context.accounts,
            context.presence,
            context.delivery,
            context.counters,
            connection.outbox,
            connection.close,
            peer,
        )
        self.connections[connection] = session
        self._origins[peer.origin] += 1
        if self._origins[peer.origin] > limits.connections_per_address:
            connection.close(Reason.TOO_MANY_ATTEMPTS, "too many connections from its address")
        if self.draining:  # accepted, but not yet among those that drain() has told
            connection.stop_reading()
        return connection, session

    def kick(self, user_id: int, outcome: str = "ended by an operator") -> bool:
        """End the connection of a user without an Error, also where the client has left and what it sent is still being
        handled; False where there is none. Never waits.
        """
        for connection, session in self.connections.items():
            if session.member and session.member.user_id == user_id:
                connection.close(None, outcome)
                return True
        return False

    def _forget(self, peer: ClientAddress) -> None:
        self._origins[peer.origin] -= 1
        if not self._origins[peer.origin]:
            del self._origins[peer.origin]

    def drain(self, seconds: float) -> None:
        """Accept nobody, handle what has been read, tell everyone, send what is queued: in `seconds` altogether."""
        self.close()
        self.draining = True
        deadline = gevent.get_hub().loop.now() + seconds
        for connection in self.connections:
            connection.stop_reading()
        self._slots.join(timeout=min(CHUNK_SECONDS, seconds / 4))
        for connection in self.connections:  # some may wait for a slow partner: the others shall not wait for them
            if connection.at_rest and not connection.outbox.awaited:
                connection.close(Reason.SERVER_SHUTTING_DOWN)
        self._slots.join(timeout=seconds / 2)
        for connection in self.connections:
            connection.close(Reason.SERVER_SHUTTING_DOWN)
        self._slots.join(timeout=seconds / 4)
        goodbyes = [
            gevent.spawn(self._see_off, connection, session) for connection, session in self.connections.items()
        ]
        ends = [gevent.spawn(self._end_session, connection) for connection in self.connections]
        leaving = [*goodbyes, *ends, *self._lingering]
        gevent.joinall(leaving, timeout=max(0, deadline - gevent.get_hub().loop.now()))
        gevent.killall(leaving)

    def _make_room(self) -> None:
        """Where as many as may be are seen off, the one that has waited longest for its client to close waits no more:
        clients that do not close would keep those who wait for a place out.
        """
        if self._lingering.full():
            for connection in self._leaving:
                if connection.said_all:
                    connection.stop_reading()
                    break

    def _see_off(self, connection: Connection, session: Session) -> None:
        self._leaving[connection] = None
        try:  # who never logged in has no claim to the time that a slow reader has
            connection.finish(self.context.limits.write_timeout if session.name else LINGER_SECONDS)
        finally:
            del self._leaving[connection]
            if lost := connection.undelivered:
                level = logging.WARNING if session.name else logging.DEBUG
                log.log(level, "%s: %d bytes that waited for this client were never sent", session.label, lost)

    def _end_session(self, connection: Connection) -> None:
        session = self.connections.pop(connection)
        session.end()
        outcome = connection.outcome or "left"
        self.context.counters.disconnects[outcome] += 1
        log.info("%s disconnected: %s", session.label, outcome)


def _converse(connection: Connection, session: Session, context: ServerContext) -> None:
    """Read a chunk, handle it, until there is no more; beyond the rate, read later."""
    limits = context.limits
    if limits.packets_per_second == inf:
        while data := connection.read():
            session.receive(data)
        return
    bucket = TokenBucket(limits.packets_per_second, limits.burst)
    # No packet is smaller than its header, so a read brings no more of them than there are tokens, or what one large
    # packet could have been: that goes on account.
    while data := connection.read(min(RECV_BYTES, max(MAX_PACKET_BYTES, HEADER_BYTES * bucket.tokens))):
        bucket.take(session.receive(data))
        if bucket.tokens < 1:
            context.counters.delays += 1
            connection.pause(bucket.delay)


class Patience:
    """The deadline of a client that does not log in, then of one that says nothing. Runs in the hub, never waits."""

    def __init__(self, limits: Limits, connection: Connection, session: Session) -> None:
        self._limits = limits
        self._connection = connection
        self._session = session
        self._loop = gevent.get_hub().loop
        self._started = self._loop.now()
        self._wait(min(limits.login_timeout, limits.idle_timeout))

    def end(self) -> None:
        """Forget this client."""
        self._timer.close()

    def _wait(self, seconds: float) -> None:
        self._timer = self._loop.timer(seconds)
        self._timer.start(self._look)

    def _look(self) -> None:
        self._timer.close()
        since: float | None
        if self._session.member is None:
            since, patience, reason = self._started, self._limits.login_timeout, Reason.LOGIN_TIMEOUT
        elif self._limits.idle_timeout < inf:
            since, patience, reason = self._connection.waiting_since, self._limits.idle_timeout, None
        else:
            return
        now = self._loop.now()
        left = (now if since is None else since) + patience - now
        if left > 0:
            self._wait(left)
        else:
            self._connection.close(reason, "" if reason else "idle")
