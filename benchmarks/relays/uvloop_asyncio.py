"""A relay on asyncio with uvloop: a callback for each chunk, one write for all Messages in it.

python -m benchmarks.relays.uvloop_asyncio PORT
"""

import asyncio
import sys
from typing import cast

import uvloop

from benchmarks.relays.directory import Directory
from protocol import (
    FROM_CLIENT,
    Decoder,
    Envelope,
    PacketType,
    encode,
    parse_login,
    parse_user_id,
)

directory: Directory[asyncio.Transport] = Directory()


class Client(asyncio.Protocol):
    """One client."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._decoder = Decoder(FROM_CLIENT)
        self._partner = 0
        self._envelope = Envelope("")

    def data_received(self, data: bytes) -> None:
        self._decoder.feed(data)
        while self._decoder.has_more:
            messages, count = self._decoder.messages(self._envelope)
            if count:
                directory.clients[self._partner].write(messages)
            if not (packet := self._decoder.next()):
                break
            kind, body = packet
            if kind == PacketType.CHAT_INIT:
                self._partner = parse_user_id(body)
            elif kind == PacketType.CONFIG:
                name = parse_login(body).username
                self._envelope = Envelope(name)
                self._transport.write(directory.log_in(name, self._transport))
            elif kind == PacketType.PING:
                self._transport.write(encode(PacketType.PONG, body))


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
