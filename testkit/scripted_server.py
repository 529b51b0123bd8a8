"""A server that a test scripts packet by packet: for what a real server never does, and for exact timing."""

import socket
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, Self, TypeVar

from protocol import (
    ALL_FEATURES,
    EXTRA_FROM_CLIENT,
    FROM_CLIENT,
    Decoder,
    PacketType,
    Reason,
    encode,
    encode_dated,
    encode_error,
    encode_string,
    encode_user,
    parse_login,
)
from testkit import HarnessError

SECONDS = 30.0  # for every wait, including the start of a program
QUIET_SECONDS = 0.3  # without room: only after 0.2 s the kernel asks the receiver again, and may find room once more
P = ParamSpec("P")
T = TypeVar("T")


def message(sender: str, text: str) -> bytes:
    """The Message with which a receiver gets this text."""
    return encode(PacketType.MESSAGE, encode_string(f"{sender}:{text}".encode()))


def past(seconds: int, sender_id: int, *messages: bytes) -> bytes:
    """One message of a replay: its History entry, then its Messages."""
    return encode_dated(seconds, sender_id, 1) + b"".join(messages)


class Peer:
    """The server's end of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._decoder = Decoder(FROM_CLIENT)
        self._decoder.accept_extra(EXTRA_FROM_CLIENT, ALL_FEATURES)
        self._packets: deque[tuple[int, bytes]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> tuple[int, bytes]:
        """(type, body) of the next packet. Raises EOFError when the client has closed."""
        while not self._packets:
            data = self.connection.recv(65536)
            if not data:
                raise EOFError
            self._packets.extend(self._decoder.packets(data))
        return self._packets.popleft()

    def read_to_the_end(self) -> None:
        """Raises EOFError when the client has closed."""
        while True:
            self.read()

    def expect(self, packet_type: PacketType) -> bytes:
        """The body of the next packet. Raises HarnessError if that is of another type."""
        received, body = self.read()
        if received != packet_type:
            raise HarnessError(f"expected a packet of type {packet_type!r}, not {received} {body!r}")
        return body

    def send(self, *packets: bytes) -> None:
        self.connection.sendall(b"".join(packets))

    def pong(self) -> None:
        """Read a Ping and answer it."""
        self.send(encode(PacketType.PONG, self.expect(PacketType.PING)))

    def greet(self) -> None:
        """Answer the terminal program's first Ping, and its repetitions if it had to wait, up to its Config."""
        self.pong()
        while (packet := self.read())[0] == PacketType.PING:
            self.send(encode(PacketType.PONG, packet[1]))
        self._packets.appendleft(packet)

    def log_in(self, name: str, *others: str) -> None:
        """Answer the Config of `name`; the others have ids from 1 on, `name` has the next one."""
        if (received := self.read_name()) != name:
            raise HarnessError(f"expected a login as {name}, not {received}")
        self.let_in(name, *others)

    def read_name(self) -> str:
        """The name in the next packet, which has to be a Config."""
        return parse_login(self.expect(PacketType.CONFIG)).username

    def let_in(self, name: str, *others: str) -> None:
        """Send the list of users that answers the Config of `name`."""
        self.send(*(encode_user(user, number, 1) for number, user in enumerate((*others, name), start=1)))

    def refuse(self, packet_type: PacketType, reason: Reason) -> None:
        self.expect(packet_type)
        self.send(encode_error(reason))

    def close(self) -> None:
        self.connection.close()


class ScriptedServer:
    """Listens on a free port unless told another; connections wait in the queue until a test accepts them."""

    def __init__(self, port: int = 0) -> None:
        self.listener = socket.create_server(("127.0.0.1", port))
        self.listener.settimeout(SECONDS)
        self.host, self.port = self.listener.getsockname()
        self.address = f"{self.host}:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def accept(self) -> Peer:
        connection, _ = self.listener.accept()
        connection.settimeout(SECONDS)
        return Peer(connection)


class ServerStart:
    """Runs a client's call in another thread while the test plays the server."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor

    def __call__(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._executor.submit(call, *args, **kwargs)
