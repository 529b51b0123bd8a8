"""Accepts clients, serves a pool of them at once, and drains their connections at shutdown."""

import logging
import socket
import ssl
import sys
from collections import Counter
from dataclasses import dataclass
from math import inf
from time import monotonic

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer

from chatserver.counters import Counters
from chatserver.messages.delivery import Delivery
from chatserver.people.accounts import Accounts
from chatserver.people.presence import Presence
from chatserver.places import Silence
from chatserver.session import Session
from chatserver.transport.address import ClientAddress, client_address
from chatserver.transport.connection import LINGER_SECONDS, RECV_BYTES, Connection
from chatserver.transport.limits import Limits, TokenBucket
from chatserver.transport.readable import plain_socket
from chatserver.transport.states import Output
from chatserver.transport.tls import TlsStream
from protocol import HEADER_BYTES, MAX_PACKET_BYTES, Reason

SEND_BUFFER_BYTES = 16 * 1024  # with more, a slow reader shows no progress for longer, and more may be lost
RECEIVE_BUFFER_BYTES = 128 * 1024  # by default it grows to megabytes, even for who only waits for a place
KEEPALIVE_IDLE_SECONDS = 30
KEEPALIVE_INTERVAL_SECONDS = 10
KEEPALIVE_PROBES = 3
VANISHED_SECONDS = 60
LAST_TURN_SECONDS = 0.05  # to read what has come before a deadline
FREE_SECONDS = 1.0  # between two looks whether a place is free, after all were taken
UNACKED_OFFSET = 24  # of tcpi_unacked in struct tcp_info, linux/tcp.h; in a listening socket it counts the queue
CHUNK_SECONDS = 0.5  # at shutdown: more than enough to handle what has been read, unless the receiver is slow

log = logging.getLogger("chat")


@dataclass(frozen=True, slots=True)
class ServerContext:
    """What all sessions of one process share; made once, in server.py."""

    presence: Presence
    accounts: Accounts
    delivery: Delivery
    counters: Counters
    limits: Limits
    tls: ssl.SSLContext | None  # None: unencrypted


def listen(host: str, port: int, backlog: int, write_timeout: float, reuse_port: bool = False) -> socket.socket:
    """A listening socket; accepted sockets inherit its options. `write_timeout` in seconds. Raises OSError."""
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
    """Options that detect a vanished peer within about a minute, with data in flight or without."""
    vanished = max(VANISHED_SECONDS, 2 * write_timeout)  # after `Too Slow`, which a peer that is still there may get
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
    """Serves `pool_size` clients at once, each in a place; the next ones wait in the kernel's listen queue, in order.

    Connections whose session is over finish (Connection.finish) in a second pool of the same size, and so hold no place
    unless that pool is full.
    """

    max_accept = 1  # for each report of the loop: looking for a second one in vain costs more than being told of it

    def __init__(self, listener: socket.socket, context: ServerContext, pool_size: int) -> None:
        self._places = Pool(pool_size)
        super().__init__(listener, self.serve, spawn=self._places)
        self.context = context
        self._finishers = Pool(pool_size)
        self._finishing: dict[Connection, None] = {}  # those in it, the oldest first
        self._origins: Counter[str] = Counter()  # connections being served, by address
        self.connections: dict[Connection, Session] = {}
        self.draining = False
        self._is_full = False  # as the log has it

    def do_read(self) -> tuple[socket.socket, ClientAddress] | None:  # type: ignore[override]  # the base, too
        """Accept one connection, as a plain socket; None if none waits."""
        try:
            fileno, address = self.socket._accept()  # type: ignore[attr-defined]  # noqa: SLF001  # as gevent does
        except BlockingIOError:
            return None
        return plain_socket(self.socket, fileno), client_address(address, encrypted=bool(self.context.tls))

    def do_close(self, *_: object) -> None:
        """Leave the socket open: its Connection closes it, after the handler has returned."""

    def serve(self, sock: socket.socket, peer: ClientAddress) -> None:
        """Serve one client in a place of the pool until its session is over, then finish its connection."""
        if self._places.full() and not self._is_full:
            self._is_full = True
            gevent.spawn(self._watch_places)
        connection, session = self._welcome(sock, peer)
        deadline = Deadline(self.context.limits, connection, session)
        try:
            _converse(connection, session, self.context)
        except Exception:
            log.exception("%s: internal error, closing the connection", session.label)
            connection.end_with("internal error")
        finally:
            deadline.cancel()
            connection.set_handled()
            if not self.draining:  # else drain() finishes all, once no session hands anything over any more
                try:
                    self._end_session(connection)
                finally:
                    if connection.is_finished:
                        self._finish(connection, session)
                    else:
                        self._make_room()
                        self._finishers.spawn(self._finish, connection, session)
            self._forget(peer)

    def _watch_places(self) -> None:
        """While all places are taken and others wait, make the client that is silent for longest give up its place.

        Tell the log when all are taken and, later, when one is free again.
        """
        log.warning("all %d places are taken: further clients wait until one is free", self._places.size)
        silence = Silence(self.context.limits.yield_after)
        while self._places.full():
            gevent.sleep(FREE_SECONDS)
            connection = silence.longest(self.connections, monotonic())
            if connection and self.waiting():
                connection.close(Reason.PLACE_NEEDED)
                connection.outbox.stop_waiting()
        self._is_full = False
        if not self.draining:
            log.info("a place is free again")

    def waiting(self) -> int | None:
        """How many connections wait in the listen queue; None if the system cannot tell, or nobody listens."""
        if sys.platform != "linux" or self.closed:
            return None
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, UNACKED_OFFSET + 4)
        return int.from_bytes(info[UNACKED_OFFSET:], sys.byteorder)

    def _welcome(self, sock: socket.socket, peer: ClientAddress) -> tuple[Connection, Session]:
        context, limits = self.context, self.context.limits
        log.info("%s connected", peer.label)
        context.counters.connections += 1
        connection = Connection(
            TlsStream(sock, context.tls) if context.tls else sock,
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
        if self.draining:  # accepted just before drain(), which did not see it
            connection.stop_reading()
        return connection, session

    def kick(self, user_id: int, outcome: str = "ended by an operator") -> bool:
        """End the connection of a user without an Error; False where the user has none. Never waits.

        This also ends a connection that the client has left, while the session still handles what it sent.
        """
        for connection, session in self.connections.items():
            if session.member and session.member.user_id == user_id:
                connection.close(None, outcome)
                connection.outbox.stop_waiting()
                return True
        return False

    def _forget(self, peer: ClientAddress) -> None:
        self._origins[peer.origin] -= 1
        if not self._origins[peer.origin]:
            del self._origins[peer.origin]

    def drain(self, seconds: float) -> None:
        """Stop accepting, handle what has been read, send everyone what is queued and an Error, all in `seconds`."""
        self.close()
        self.draining = True
        deadline = monotonic() + seconds
        for connection in self.connections:
            connection.stop_reading()
        self._places.join(timeout=min(CHUNK_SECONDS, seconds / 4))
        for connection in self.connections:  # a session may wait for a slow receiver; the others go on
            if connection.is_handled and not connection.outbox.awaited:
                connection.close(Reason.SERVER_SHUTTING_DOWN)
        self._places.join(timeout=seconds / 2)
        for connection in self.connections:
            connection.close(Reason.SERVER_SHUTTING_DOWN)
        self._places.join(timeout=seconds / 4)
        finishes = [gevent.spawn(self._finish, *served) for served in self.connections.items()]
        ends = [gevent.spawn(self._end_session, connection) for connection in self.connections]
        last = [*finishes, *ends, *self._finishers]
        gevent.joinall(last, timeout=max(0, deadline - monotonic()))
        gevent.killall(last)

    def _make_room(self) -> None:
        """If the pool for finishing is full, close the connection that has waited longest for its client to close.

        Otherwise clients that do not close would keep new ones from getting a place.
        """
        if self._finishers.full():
            for connection in self._finishing:
                if connection.outbox.state is Output.HALF_CLOSED:
                    connection.stop_reading()
                    break

    def _finish(self, connection: Connection, session: Session) -> None:
        self._finishing[connection] = None
        try:  # a client that never logged in is not given the time that a slow reader is
            connection.finish(self.context.limits.write_timeout if session.name else LINGER_SECONDS)
        finally:
            del self._finishing[connection]
            if lost := connection.undelivered:
                level = logging.WARNING if session.name else logging.DEBUG
                log.log(level, "%s: %d queued bytes were never sent", session.label, lost)

    def _end_session(self, connection: Connection) -> None:
        session = self.connections.pop(connection)
        session.end()
        outcome = connection.outcome or "left"
        self.context.counters.disconnects[outcome] += 1
        log.info("%s disconnected: %s", session.label, outcome)


def _converse(connection: Connection, session: Session, context: ServerContext) -> None:
    """Read a chunk and handle it until the input ends. A client over its rate is throttled: it is read later."""
    limits = context.limits
    if limits.packets_per_second == inf:
        if not context.tls:
            connection.offer = session.offer
        while data := connection.read():
            session.receive(data)
        return
    bucket = TokenBucket(limits.packets_per_second, limits.burst)
    # No packet is smaller than its header, so a read brings at most as many packets as there are tokens. A read of one
    # large packet may bring more, which the bucket then owes.
    while data := connection.read(min(RECV_BYTES, max(MAX_PACKET_BYTES, HEADER_BYTES * bucket.tokens))):
        bucket.take(session.receive(data))
        if bucket.tokens < 1:
            context.counters.delays += 1
            if connection.outbox.turn.gives_up():  # the client has left: what is still unread would hold its place
                connection.end_with("left, with more to read than its rate allows")
                return
            connection.pause(bucket.delay)


class Deadline:
    """Closes a connection that does not log in in time, and later one that is idle too long.

    The server's own time does not count: that of a hash, or of a pause after which input is still to be read. Runs in
    the hub and never waits.
    """

    __slots__ = ("_connection", "_is_late", "_limits", "_loop", "_session", "_started", "_timer")

    def __init__(self, limits: Limits, connection: Connection, session: Session) -> None:
        self._limits = limits
        self._connection = connection
        self._session = session
        self._loop = gevent.get_hub().loop
        self._started = monotonic()
        self._is_late = False  # and has had a last turn
        self._wait(min(limits.login_timeout, limits.idle_timeout))

    def cancel(self) -> None:
        """Stop the timer."""
        self._timer.close()

    def _wait(self, seconds: float) -> None:
        self._timer = self._loop.timer(seconds)
        self._timer.start(self._check)

    def _check(self) -> None:
        self._timer.close()
        since: float | None
        if self._session.member is None:
            since, allowed, reason = self._started, self._limits.login_timeout, Reason.LOGIN_TIMEOUT
        elif self._limits.idle_timeout < inf:
            since, allowed, reason = self._connection.waiting_since, self._limits.idle_timeout, None
        else:
            return
        now = monotonic()
        left = (now if since is None else since) + allowed - now
        if left > 0:
            self._is_late = False
            self._wait(left)
        elif not self._is_late or self._session.is_logging_in:
            self._is_late = True
            self._wait(LAST_TURN_SECONDS)
        else:
            self._connection.close(reason, "" if reason else "idle")
