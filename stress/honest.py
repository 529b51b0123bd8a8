"""Two honest users who chat through a server while others attack it."""

import itertools
import time
from typing import Self

import gevent
from gevent import Greenlet

from client import ChatClient, ChatError, ErrorReceived, MessageReceived

SECONDS = 30.0  # the longest wait for a message
PACE = 0.02  # seconds between two messages of one user
NAMES = ("honest-one", "honest-two")


class HonestPair:
    """They log in first, as ids 1 and 2, and send numbered messages to each other. Adds what goes wrong to `faults`."""

    def __init__(self, address: tuple[str, int], faults: list[str]) -> None:
        self.sent = 0
        self.received = 0
        self.slowest = 0.0  # seconds that the slowest message took
        self._faults = faults
        self._over = False
        self._sent_at: dict[str, list[float]] = {name: [] for name in NAMES}
        self._clients = [ChatClient(*address, timeout=SECONDS) for _ in NAMES]
        for client, name in zip(self._clients, NAMES, strict=True):
            client.login(name)
        self._greenlets: list[Greenlet[..., None]] = []
        for client, partner in zip(self._clients, reversed(NAMES), strict=True):
            client.chat(partner)
            self._greenlets += [gevent.spawn(self._write, client), gevent.spawn(self._listen, client, partner)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        gevent.killall(self._greenlets)
        for client in self._clients:
            client.close()

    def finish(self) -> None:
        """Stop writing; check that every message has arrived, and that all other users are offline."""
        self._over = True
        deadline = time.monotonic() + SECONDS
        while self.received < self.sent and not self._faults and time.monotonic() < deadline:
            gevent.sleep(0.01)
        if self.slowest > SECONDS:
            self._faults.append(f"an honest message took {self.slowest:.0f} s")
        if self.received != self.sent:
            self._faults.append(f"{self.sent} honest messages sent, {self.received} received")
        self._check_list(deadline)

    def _check_list(self, deadline: float) -> None:
        try:
            while set(online := self._clients[0].refresh()) != set(NAMES):
                if time.monotonic() > deadline:
                    self._faults.append(f"still online: {online}")
                    return
                gevent.sleep(0.1)
        except (ChatError, TimeoutError) as error:
            self._faults.append(f"an honest client: {error}")

    def _write(self, client: ChatClient) -> None:
        try:
            for number in itertools.count():
                if self._over:
                    return
                self._sent_at[client.username].append(time.monotonic())
                self.sent += 1
                client.send(text(number))
                gevent.sleep(PACE)
        except (ChatError, TimeoutError) as error:
            self._faults.append(f"{client.username} cannot send: {error}")

    def _listen(self, client: ChatClient, partner: str) -> None:
        expected = 0
        try:
            while True:
                match client.receive():
                    case MessageReceived(sender, content) if sender == partner:
                        if content != text(expected):
                            self._faults.append(f"{client.username} got {content!r} instead of {text(expected)!r}")
                            return
                        self.slowest = max(self.slowest, time.monotonic() - self._sent_at[partner][expected])
                        expected += 1
                        self.received += 1
                    case ErrorReceived() as error:
                        self._faults.append(f"{client.username} got {error}")
        except (ChatError, TimeoutError) as error:
            self._faults.append(f"{client.username} got no more: {error}")


def text(number: int) -> str:
    """The text of the message with this number; it fits one packet."""
    return f"{number} {'abc' * (number % 40)}"
