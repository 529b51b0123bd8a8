"""A relay as one writes it first on gevent: for each packet two `recv`s and one `sendall`.

python -m benchmarks.relays.naive_gevent PORT
"""

from gevent import monkey

monkey.patch_all()

import socket
import sys

from gevent.server import StreamServer

from benchmarks.relays.directory import Directory
from protocol import HEADER_BYTES, Envelope, PacketType, encode, parse_login, parse_text, parse_user_id

directory: Directory[socket.socket] = Directory()


def serve(sock: socket.socket, _: object) -> None:
    """One client."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    partner, envelope = 0, Envelope("")
    while header := receive(sock, HEADER_BYTES):
        kind, length = header
        body = receive(sock, length)
        if kind == PacketType.MESSAGE:
            directory.clients[partner].sendall(envelope.wrap(parse_text(body)))
        elif kind == PacketType.CHAT_INIT:
            partner = parse_user_id(body)
        elif kind == PacketType.CONFIG:
            name = parse_login(body).username
            envelope = Envelope(name)
            sock.sendall(directory.log_in(name, sock))
        elif kind == PacketType.PING:
            sock.sendall(encode(PacketType.PONG, body))


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly so many bytes; b"" at the end."""
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            return b""
        data += more
    return data


if __name__ == "__main__":
    StreamServer(("127.0.0.1", int(sys.argv[1])), serve, backlog=1024).serve_forever()
