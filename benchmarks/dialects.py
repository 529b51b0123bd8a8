"""How a client of each server logs in, and one message as bytes sent and received."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from protocol import (
    FROM_SERVER,
    Decoder,
    Feature,
    PacketType,
    encode,
    encode_chat_init,
    encode_login,
    encode_message,
    parse_user,
)

DEADLINE = 30.0  # seconds, for any one answer
Connect = Callable[[], socket.socket]


class WrongAnswer(Exception):
    """The server sent a wrong answer, or none."""


@dataclass(slots=True, eq=False)
class BenchmarkClient:
    """A logged-in client, whose socket blocks. `address` is what its dialect has to know about it, if anything."""

    name: str
    sock: socket.socket
    address: str = ""


class Dialect(Protocol):
    """The protocol of a server that is compared."""

    def log_in(self, client: BenchmarkClient) -> None:
        """Log in, until messages to this client would arrive. Raises WrongAnswer, OSError."""

    def pair(self, sender: BenchmarkClient, receiver: BenchmarkClient) -> None:
        """Exchange what has to precede the first message. Raises WrongAnswer, OSError."""

    def sent(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        """One message as the sender sends it."""

    def received(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        """The same message as the receiver receives it."""


class ChatDialect:
    """Our own protocol. A login requests its own entry alone, since the peers do not list online users either."""

    def log_in(self, client: BenchmarkClient) -> None:
        client.sock.sendall(encode_login(client.name, features=Feature.BRIEF))
        decoder = Decoder(FROM_SERVER)
        packets: list[tuple[int, bytes]] = []
        while not packets:
            packets += decoder.packets(_receive(client))
        if len(packets) > 1 or packets[0][0] != PacketType.CONFIG or parse_user(packets[0][1])[0] != client.name:
            raise WrongAnswer(f"{client.name} received {packets} at its login")
        client.address = str(parse_user(packets[0][1])[1])

    def pair(self, sender: BenchmarkClient, receiver: BenchmarkClient) -> None:
        sender.sock.sendall(encode_chat_init(int(receiver.address)) + encode(PacketType.PING, b""))
        _expect(sender, encode(PacketType.PONG, b""))

    def sent(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        return encode_message(text)

    def received(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        return encode_message(f"{sender.name}:".encode() + text)  # docs/PROTOCOL.md, section 3.5


class Mqtt:
    """MQTT 3.1.1: each client subscribes, with QoS 0, to a topic of its own name."""

    def log_in(self, client: BenchmarkClient) -> None:
        connect = _mqtt_string("MQTT") + bytes((4, 2, 0, 0)) + _mqtt_string(client.name)  # clean session, no keep-alive
        subscribe = bytes((0, 1)) + _mqtt_string(client.name) + bytes((0,))
        client.sock.sendall(_mqtt_packet(0x10, connect) + _mqtt_packet(0x82, subscribe))
        _expect(client, _mqtt_packet(0x20, bytes((0, 0))) + _mqtt_packet(0x90, bytes((0, 1, 0))))

    def pair(self, sender: BenchmarkClient, receiver: BenchmarkClient) -> None:
        """Nothing has to precede."""

    def sent(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        return _mqtt_packet(0x30, _mqtt_string(receiver.name) + text)

    received = sent


def _mqtt_string(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()


def _mqtt_packet(head: int, body: bytes) -> bytes:
    """Section 2.2 of MQTT 3.1.1, for bodies of at most 16,383 bytes."""
    low, high = len(body) & 0x7F, len(body) >> 7
    return (bytes((head, low | 0x80, high)) if high else bytes((head, low))) + body


class Nats:
    """NATS: each client subscribes to a subject of its own name."""

    def log_in(self, client: BenchmarkClient) -> None:
        _read_until(client, b"\r\n")  # INFO
        client.sock.sendall(f'CONNECT {{"verbose":false,"pedantic":false}}\r\nSUB {client.name} 1\r\nPING\r\n'.encode())
        _expect(client, b"PONG\r\n")

    def pair(self, sender: BenchmarkClient, receiver: BenchmarkClient) -> None:
        """Wait for the Ping that the server sends each new client two seconds after its login."""
        for client in {sender, receiver}:
            if not client.address:
                _expect(client, b"PING\r\n")
                client.sock.sendall(b"PONG\r\n")
                client.address = "has been pinged"

    def sent(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        return f"PUB {receiver.name} {len(text)}\r\n".encode() + text + b"\r\n"

    def received(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        return f"MSG {receiver.name} 1 {len(text)}\r\n".encode() + text + b"\r\n"


class Redis:
    """RESP3, so that a subscriber may publish: each client subscribes to a channel of its own name, replies off."""

    def log_in(self, client: BenchmarkClient) -> None:
        client.sock.sendall(_resp(b"*", b"HELLO", b"3") + _resp(b"*", b"SUBSCRIBE", client.name.encode()))
        _read_until(client, f"subscribe\r\n${len(client.name)}\r\n{client.name}\r\n:1\r\n".encode())
        client.sock.sendall(_resp(b"*", b"CLIENT", b"REPLY", b"OFF"))

    def pair(self, sender: BenchmarkClient, receiver: BenchmarkClient) -> None:
        """Nothing has to precede."""

    def sent(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        return _resp(b"*", b"PUBLISH", receiver.name.encode(), text)

    def received(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        return _resp(b">", b"message", receiver.name.encode(), text)


def _resp(kind: bytes, *parts: bytes) -> bytes:
    return kind + b"%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


class Irc:
    """RFC 2812: private messages."""

    def log_in(self, client: BenchmarkClient) -> None:
        client.sock.sendall(f"NICK {client.name}\r\nUSER u 0 * :u\r\n".encode())
        greeting = _read_until(client, b" 422 ", b" 376 ")  # no message of the day, or its end
        while not greeting.endswith(b"\r\n"):
            greeting += _receive(client)
        client.address = (
            greeting.partition(b" 001 ")[2].partition(b"\r\n")[0].rpartition(b" ")[2].decode()
        )  # nick!user@host

    def pair(self, sender: BenchmarkClient, receiver: BenchmarkClient) -> None:
        """Nothing has to precede."""

    def sent(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        return f"PRIVMSG {receiver.name} :".encode() + text + b"\r\n"

    def received(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        return f":{sender.address} ".encode() + self.sent(sender, receiver, text)


def _receive(client: BenchmarkClient) -> bytes:
    data = client.sock.recv(4096)
    if not data:
        raise WrongAnswer(f"{client.name}'s connection was closed")
    return data


def _read_until(client: BenchmarkClient, *ends: bytes) -> bytes:
    received = b""
    while not any(end in received for end in ends):
        received += _receive(client)
    return received


def _expect(client: BenchmarkClient, answer: bytes) -> None:
    received = b""
    while len(received) < len(answer):
        received += _receive(client)
    if received != answer:
        raise WrongAnswer(f"{client.name} received {received!r} instead of {answer!r}")
