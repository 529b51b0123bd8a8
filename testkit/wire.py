"""A client that speaks plain bytes to a server."""

import socket
import struct
from typing import Self

from protocol import PacketType, Reason, encode, encode_chat_init, encode_error, encode_message
from testkit import HarnessError
from testkit.processes import DEADLINE


def reset_on_close(sock: socket.socket) -> None:
    """Let close() reset the connection, as when a program is killed with data unread."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # on, for 0 seconds


class Wire:
    """The plainest possible client: bytes out, packets in, a deadline on each read. Surprises raise HarnessError."""

    def __init__(self, host: str, port: int, receive_buffer: int | None = None, source: str = "") -> None:
        """`source` is the address to connect from, where that matters; `receive_buffer` is SO_RCVBUF in bytes."""
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.socket.settimeout(DEADLINE)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect((host, port))
        self._buffer = b""
        self._at = 0  # how much of the buffer has been read
        self.users: dict[str, int] = {}

    def send(self, *packets: bytes) -> None:
        self.socket.sendall(b"".join(packets))

    def read(self) -> tuple[int, bytes] | None:
        """The next packet as (type, body); None at the end of the stream."""
        header = self._take(2)
        if not header:
            return None
        body = self._take(header[1])
        if len(body) != header[1]:
            raise HarnessError(f"the stream ended after a header: {header!r}")
        return header[0], body

    def expect(self, packet: bytes) -> None:
        received = self.read()
        if received != (packet[0], packet[2:]):
            raise HarnessError(f"expected {packet!r}, not {received!r}")

    def expect_error(self, reason: Reason) -> None:
        self.expect(encode_error(reason))

    def expect_end(self) -> None:
        if (packet := self.read()) is not None:
            raise HarnessError(f"expected the end of the stream, not {packet!r}")

    def expect_pong(self) -> None:
        """The server has handled everything sent so far, and this answer is all there is to read."""
        self.send(encode(PacketType.PING, b"barrier"))
        self.expect(encode(PacketType.PONG, b"barrier"))

    def read_list(self, own_name: str) -> None:
        """Read the list of users, up to this client's own entry, into `users`."""
        self.users = {}
        while own_name not in self.users:
            packet = self.read()
            if packet is None:
                raise HarnessError("the connection ended before the list was complete")
            if packet[0] != PacketType.CONFIG:
                raise HarnessError(f"expected an entry of the list, not {packet!r}")
            length = int.from_bytes(packet[1][:2], "big")
            self.users[packet[1][2 : 2 + length].decode()] = int.from_bytes(packet[1][2 + length :], "big")

    def chat_with(self, user_id: int) -> None:
        self.send(encode_chat_init(user_id))
        self.expect_pong()

    def say(self, text: str) -> None:
        self.send(encode_message(text.encode()))

    def expect_message(self, text: str) -> None:
        self.expect(encode_message(text.encode()))

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < self._at + count:
            chunk = self.socket.recv(65536)
            rest = self._buffer[self._at :]
            if rest and not chunk:
                raise HarnessError(f"the stream ended inside a packet: {rest!r}")
            if not chunk:
                return b""
            self._buffer, self._at = rest + chunk, 0
        self._at += count
        return self._buffer[self._at - count : self._at]
