"""An honest user writes to another one who is offline half of the time, with every feature, during attacks."""

import socket
import time
from contextlib import suppress
from typing import Self

import gevent

from client import ChatClient, ChatError, ErrorReceived, ReceiptReceived
from protocol import (
    ALL_FEATURES,
    FROM_SERVER,
    Decoder,
    Level,
    PacketType,
    Reason,
    RemoteProtocolError,
    encode_login,
    parse_text,
    parse_user,
)

SECONDS = 30.0  # within which an answer comes
RECEIPT_SECONDS = 10.0  # ... and the last receipts, when all letters have come
PACE = 0.02  # seconds between two letters
STAY = 0.3  # seconds that the reader is there, and away
WRITER, READER = "letter-writer", "letter-reader"


class Letters:
    """Numbered Messages: each arrives once, in order, through the mailbox or not, and has both its receipts in the end.

    They log in first, the reader before the writer. What goes wrong is in `faults`.
    """

    def __init__(self, address: tuple[str, int], faults: list[str]) -> None:
        self.sent = 0
        self.received = 0
        self._address = address
        self._faults = faults
        self._over = False
        self._accepted: set[int] = set()  # numbers of Messages, as receipts have them
        self._receipts: dict[Level, set[int]] = {level: set() for level in Level}
        self._reader_id = 0
        self._visit(0.0)
        self._client = ChatClient(*address, timeout=SECONDS)
        self._client.login(WRITER, features=ALL_FEATURES)
        self._client.chat(self._reader_id)
        self._greenlets = [gevent.spawn(self._write), gevent.spawn(self._read)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        gevent.killall(self._greenlets)
        self._client.close()

    def finish(self) -> None:
        """Stop writing; check that everything has arrived and that the writer was notified. Both leave."""
        self._over = True
        gevent.joinall(self._greenlets)
        if not self._faults:
            self._visit(STAY)
            if self.received != self.sent:
                self._faults.append(f"{self.sent} letters sent, {self.received} received")
            self._check_receipts()
        self._client.close()

    def _check_receipts(self) -> None:
        deadline = time.monotonic() + RECEIPT_SECONDS
        try:
            while any(told != self._accepted for told in self._receipts.values()) and time.monotonic() < deadline:
                self._client.ping()
                self._take_events()
                gevent.sleep(0.01)
        except (ChatError, TimeoutError) as error:
            self._faults.append(f"{WRITER}: {error}")
        for level, told in self._receipts.items():
            if wrong := sorted(told ^ self._accepted):
                self._faults.append(f"letters of which a receipt is missing, or wrong, {level.name}: {wrong[:9]}")

    # The writer

    def _write(self) -> None:
        try:
            while not self._over:
                numbers = self._client.send(str(self.sent))
                self._client.ping()
                if self._take_events():  # the mailbox is full of what others have written: the same again, later
                    gevent.sleep(STAY)
                    continue
                self._accepted.update(numbers)
                self.sent += 1
                gevent.sleep(PACE)
        except (ChatError, TimeoutError) as error:
            self._faults.append(f"{WRITER} cannot write: {error}")

    def _take_events(self) -> bool:
        """Take all events that have arrived; returns whether the letter was refused."""
        refused = False
        while True:
            try:
                event = self._client.receive(timeout=0)
            except TimeoutError:
                return refused
            match event:
                case ErrorReceived(Reason.MAILBOX_FULL):
                    refused = True
                case ErrorReceived() as error:
                    self._faults.append(f"{WRITER} got {error}")
                case ReceiptReceived(level, first, last):
                    self._receipts[level].update(range(first, last + 1))

    # The reader

    def _read(self) -> None:
        while not self._over:
            gevent.sleep(STAY)
            self._visit(STAY)

    def _visit(self, seconds: float) -> None:
        """Log in, read for so many seconds, half-close, and read to the end, so that nothing sent to us is lost."""
        try:
            with gevent.Timeout(SECONDS), socket.create_connection(self._address) as sock:
                sock.sendall(encode_login(READER))
                leaving = gevent.spawn_later(seconds, _half_close, sock)
                try:
                    self._read_to_end(sock)
                finally:
                    leaving.kill()
        except gevent.Timeout:
            self._faults.append(f"{READER} is not at its end after {SECONDS:.0f} s")
        except (OSError, RemoteProtocolError) as error:
            self._faults.append(f"{READER}: {error}")

    def _read_to_end(self, sock: socket.socket) -> None:
        decoder = Decoder(FROM_SERVER)
        while data := sock.recv(65536):
            for packet_type, body in decoder.packets(data):
                if packet_type == PacketType.CONFIG:
                    _, self._reader_id = parse_user(body)  # the own entry is the last one
                elif packet_type == PacketType.ERROR:
                    self._faults.append(f"{READER} got {parse_text(body).decode()!r}")
                elif packet_type == PacketType.MESSAGE:
                    self._check(parse_text(body).decode())

    def _check(self, text: str) -> None:
        sender, _, content = text.partition(":")
        if sender != WRITER:
            return
        if content != str(self.received):
            self._faults.append(f"{READER} got {content!r} instead of {self.received}")
        self.received += 1


def _half_close(sock: socket.socket) -> None:
    with suppress(OSError):  # the server has gone: who reads is told
        sock.shutdown(socket.SHUT_WR)
