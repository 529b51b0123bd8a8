"""How a client of each server logs in, and what one message looks like: bytes in, bytes out."""

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
    """The server said what it should not have, or nothing."""


@dataclass(slots=True, eq=False)
class BenchmarkClient:
    """A logged-in client, whose socket blocks. `address` is what the dialect needs to write to it, or to know it."""

    name: str
    sock: socket.socket
    address: str = ""


class Dialect(Protocol):
    """One protocol of the servers that are compared."""

    def log_in(self, client: BenchmarkClient) -> None:
        """Until messages to this client would arrive. Raises WrongAnswer, OSError."""

    def pair(self, sender: BenchmarkClient, receiver: BenchmarkClient) -> None:
        """What has to be said once, before messages. Raises WrongAnswer, OSError."""

    def sent(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        """One message as it is sent."""

    def received(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        """The same as it arrives."""


class ChatDialect:
    """Our own protocol. A login asks for its own entry alone, as the peers do not tell who is online."""

    def log_in(self, client: BenchmarkClient) -> None:
        client.sock.sendall(encode_login(client.name, features=Feature.BRIEF))
        decoder = Decoder(FROM_SERVER)
        packets: list[tuple[int, bytes]] = []
        while not packets:
            packets += decoder.packets(_receive(client))
        if len(packets) > 1 or packets[0][0] != PacketType.CONFIG or parse_user(packets[0][1])[0] != client.name:
            raise WrongAnswer(f"{client.name} is told {packets} at its login")
        client.address = str(parse_user(packets[0][1])[1])

    def pair(self, sender: BenchmarkClient, receiver: BenchmarkClient) -> None:
        sender.sock.sendall(encode_chat_init(int(receiver.address)) + encode(PacketType.PING, b""))
        _expect(sender, encode(PacketType.PONG, b""))

    def sent(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        return encode_message(text)

    def received(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        return encode_message(f"{sender.name}:".encode() + text)  # section 3.5


class Mqtt:
    """MQTT 3.1.1: everyone subscribes, with QoS 0, to a topic of its own name."""

    def log_in(self, client: BenchmarkClient) -> None:
        connect = _mqtt_string("MQTT") + bytes((4, 2, 0, 0)) + _mqtt_string(client.name)  # clean session, no keep-alive
        subscribe = bytes((0, 1)) + _mqtt_string(client.name) + bytes((0,))
        client.sock.sendall(_mqtt_packet(0x10, connect) + _mqtt_packet(0x82, subscribe))
        _expect(client, _mqtt_packet(0x20, bytes((0, 0))) + _mqtt_packet(0x90, bytes((0, 1, 0))))

    def pair(self, sender: BenchmarkClient, receiver: BenchmarkClient) -> None:
        """Nothing."""

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
    """NATS: everyone subscribes to a subject of its own name."""

    def log_in(self, client: BenchmarkClient) -> None:
        _read_until(client, b"\r\n")  # INFO
        client.sock.sendall(f'CONNECT {{"verbose":false,"pedantic":false}}\r\nSUB {client.name} 1\r\nPING\r\n'.encode())
        _expect(client, b"PONG\r\n")

    def pair(self, sender: BenchmarkClient, receiver: BenchmarkClient) -> None:
        """The server sends each new client one Ping of its own, two seconds after its login."""
        for client in {sender, receiver}:
            if not client.address:
                _expect(client, b"PING\r\n")
                client.sock.sendall(b"PONG\r\n")
                client.address = "has been asked"

    def sent(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        return f"PUB {receiver.name} {len(text)}\r\n".encode() + text + b"\r\n"

    def received(self, sender: BenchmarkClient, receiver: BenchmarkClient, text: bytes) -> bytes:
        return f"MSG {receiver.name} 1 {len(text)}\r\n".encode() + text + b"\r\n"


class Redis:
    """RESP3 (a subscriber may publish, too): everyone subscribes to a channel of its own name, and wants no replies."""

    def log_in(self, client: BenchmarkClient) -> None:
        client.sock.sendall(_resp(b"*", b"HELLO", b"3") + _resp(b"*", b"SUBSCRIBE", client.name.encode()))
        _read_until(client, f"subscribe\r\n${len(client.name)}\r\n{client.name}\r\n:1\r\n".encode())
        client.sock.sendall(_resp(b"*", b"CLIENT", b"REPLY", b"OFF"))

    def pair(self, sender: BenchmarkClient, receiver: BenchmarkClient) -> None:
        """Nothing."""

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
        said = _read_until(client, b" 422 ", b" 376 ")  # no message of the day, or its end
        while not said.endswith(b"\r\n"):
            said += _receive(client)
        client.address = (
            said.partition(b" 001 ")[2].partition(b"\r\n")[0].rpartition(b" ")[2].decode()
        )  # nick!user@host

    def pair(self, sender: BenchmarkClient, receiver: BenchmarkClient) -> None:
        """Nothing."""

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
    said = b""
    while not any(end in said for end in ends):
        said += _receive(client)
    return said


def _expect(client: BenchmarkClient, answer: bytes) -> None:
    said = b""
    while len(said) < len(answer):
        said += _receive(client)
    if said != answer:
        raise WrongAnswer(f"{client.name} is told {said!r} instead of {answer!r}")
