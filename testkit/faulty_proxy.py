"""A proxy between chat clients and the real server that does damage on purpose, to show what clients notice.

A fault is called with each packet that the server sends to a client, and puts what the client is to receive. Make a new
one for each proxy: some keep state. The proxy numbers Messages from 1, over all its clients, as the server sends them.
"""

import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer

from protocol import (
    ALL_FEATURES,
    EXTRA_FROM_SERVER,
    FROM_SERVER,
    HEADER_BYTES,
    STRING_PREFIX_BYTES,
    Decoder,
    PacketType,
    encode,
)

CHUNK_BYTES = 65536

# Called with each packet and its number among the Messages, 0 for any other packet.
Fault = Callable[["ProxiedConnection", bytes, int], object]


@dataclass(eq=False, slots=True)
class Parcel:
    """A packet on its way to a client, held back until `due`."""

    packet: bytes
    due: float


class ProxiedConnection:
    """A client's connection and the connection to the server that the proxy opened for it."""

    def __init__(self, proxy: "FaultyProxy", client: socket.socket, server: socket.socket) -> None:
        self.proxy = proxy
        self.queue: deque[Parcel] = deque()  # to the client, in order: a parcel that is not due yet holds up the rest
        self.ended = False  # the direction from server to client; the client may still send
        self._client = client
        self._server = server
        self._changed = Event()
        for side in (client, server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def put(self, packet: bytes, delay: float = 0.0) -> Parcel:
        """Send a packet to the client, `delay` seconds from now at the earliest."""
        parcel = Parcel(packet, time.monotonic() + delay)
        self.queue.append(parcel)
        self._changed.set()
        return parcel

    def record(self, *messages: bytes) -> None:
        """List these Messages, as the server sent them, in `proxy.damaged`."""
        self.proxy.damaged.extend(_text(message) for message in messages)

    def relay(self) -> None:
        """Copy both ways until both directions have ended."""
        helpers = [gevent.spawn(self._read_server), gevent.spawn(self._write_client)]
        try:
            with suppress(ConnectionError):  # of either side: this direction has ended
                while data := self._client.recv(CHUNK_BYTES):
                    self._server.sendall(data)
            gevent.sleep(self.proxy.linger)
            _half_close(self._server)
            gevent.joinall(helpers)
        finally:
            gevent.killall(helpers)

    def _read_server(self) -> None:
        decoder = Decoder(FROM_SERVER)
        decoder.accept_extra(EXTRA_FROM_SERVER, ALL_FEATURES)
        try:
            with suppress(ConnectionError):
                while data := self._server.recv(CHUNK_BYTES):
                    for packet_type, body in decoder.packets(data):
                        self.proxy.handle(self, encode(PacketType(packet_type), body))
        finally:
            self.ended = True
            self._changed.set()

    def _write_client(self) -> None:
        with suppress(ConnectionError):
            while self.queue or not self.ended:
                if due := self._take_due():
                    self._client.sendall(due)
                else:
                    self._changed.clear()
                    self._changed.wait(max(0.0, self.queue[0].due - time.monotonic()) if self.queue else None)
        self.ended = True
        _half_close(self._client)

    def _take_due(self) -> bytes:
        now = time.monotonic()
        due = bytearray()
        while self.queue and self.queue[0].due <= now:
            due += self.queue.popleft().packet
        return bytes(due)


class FaultyProxy:
    """Listens on a port of its own and relays to a server; without a fault it changes nothing.

    `damaged` lists the text, `sender:text`, of each Message that was lost, changed, repeated or reordered; `messages`
    counts those that the server has sent. `upstream`, the server's host and port, may change: new clients are connected
    to the new one. For `linger` seconds after a client has closed, the server does not learn of it.
    """

    def __init__(self, upstream_host: str, upstream_port: int, fault: Fault | None = None) -> None:
        self.damaged: list[bytes] = []
        self.links: list[ProxiedConnection] = []
        self.upstream = (upstream_host, upstream_port)
        self.linger = 0.0
        self._fault = fault or (lambda link, packet, _: link.put(packet))
        self.messages = 0
        listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = listener.getsockname()
        self.address = f"{self.host}:{self.port}"
        self._listener = StreamServer(listener, self._serve, spawn=Pool())

    def __enter__(self) -> Self:
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.stop(timeout=0)

    def handle(self, link: ProxiedConnection, packet: bytes) -> None:
        """Number a packet from the server and pass it to the fault."""
        is_message = packet[0] == PacketType.MESSAGE
        self.messages += is_message
        self._fault(link, packet, self.messages if is_message else 0)

    def _serve(self, client: socket.socket, _: object) -> None:
        """Serve one client; the caller closes its socket."""
        with suppress(ConnectionRefusedError), socket.create_connection(self.upstream) as server:
            link = ProxiedConnection(self, client, server)
            self.links.append(link)
            try:
                link.relay()
            finally:
                self.links.remove(link)


def _half_close(sock: socket.socket) -> None:
    with suppress(OSError):  # the peer has gone already
        sock.shutdown(socket.SHUT_WR)


def _text(message: bytes) -> bytes:
    return message[HEADER_BYTES + STRING_PREFIX_BYTES :]


def _sender(message: bytes) -> bytes:
    return _text(message).partition(b":")[0]


def _replace(replacements: Callable[[bytes, int], list[bytes]]) -> Fault:
    """Puts what this function returns for a Message and its number in the Message's place."""

    def fault(link: ProxiedConnection, packet: bytes, number: int) -> None:
        packets = replacements(packet, number) if number else [packet]
        if packets != [packet]:
            link.record(packet)
        for each in packets:
            link.put(each)

    return fault


def lose_every(n: int) -> Fault:
    """Every n-th Message is lost."""
    return _replace(lambda message, number: [message] if number % n else [])


def swallow_after(n: int) -> Fault:
    """From the n-th Message on none arrives; all else does."""
    return _replace(lambda message, number: [message] if number < n else [])


def duplicate(n: int) -> Fault:
    """The n-th Message arrives twice."""
    return _replace(lambda message, number: [message, message] if number == n else [message])


def flip(n: int) -> Fault:
    """The n-th Message has the lowest bit of its last byte flipped; an ASCII text stays ASCII.

    Choose a Message with a text: an empty one would lose its colon.
    """
    return _replace(lambda message, number: [message[:-1] + bytes((message[-1] ^ (number == n),))])


def swap(n: int, patience: float = 1.0) -> Fault:
    """The n-th Message and the next one from its sender to its receiver change places.

    Whatever its receiver gets waits for that next one, `patience` seconds at most; if none comes, nothing is damaged.
    """
    first: Parcel | None = None

    def fault(link: ProxiedConnection, packet: bytes, number: int) -> None:
        nonlocal first
        if number == n:
            first = link.put(packet, patience)
        elif first and number and first in link.queue and _sender(packet) == _sender(first.packet):
            link.record(first.packet, packet)
            second, first.packet, first.due = first.packet, packet, 0.0
            link.put(second)
            first = None
        else:
            link.put(packet)

    return fault


def misdeliver(n: int) -> Fault:
    """The n-th Message goes to another client; if there is none, nothing is damaged."""

    def fault(link: ProxiedConnection, packet: bytes, number: int) -> None:
        if number == n and (others := [other for other in link.proxy.links if other is not link and not other.ended]):
            link.record(packet)
            link = others[0]
        link.put(packet)

    return fault


def delay(seconds: float) -> Fault:
    """Everything the server sends arrives this much later, at the rate at which it was sent."""
    return lambda link, packet, _: link.put(packet, seconds)


def stall(after: int, seconds: float) -> Fault:
    """After this many Messages nothing reaches any client for `seconds`, then all of it arrives, in order."""
    until = 0.0

    def fault(link: ProxiedConnection, packet: bytes, number: int) -> None:
        nonlocal until
        link.put(packet, until - time.monotonic())
        if number == after and not until:
            until = time.monotonic() + seconds

    return fault
