"""Load for the chat server: `locust -f locustfiles/chat.py`, then open http://localhost:8089 (docs/LOADTEST.md)."""

import random
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
from locust import between, events, tag, task
from locust.argument_parser import LocustArgumentParser

sys.path.append(str(Path(__file__).parent.parent))  # locust puts this folder on the path, not the one above

from client import (
    CLOSING,
    ChatClient,
    ChatError,
    ConnectionClosed,
    ErrorReceived,
    Event,
    MessageReceived,
    ServerError,
    backoff,
    parse_address,
    tls_context,
)
from locustload import LoadUser, PacedUser
from locustload.options import Range, add_group, number
from protocol import DEFAULT_PORT, text_room

FAILURES = (ChatError, TimeoutError)
PAUSE_SECONDS = 0.1  # after a refusal, before another try
trusting = cache(tls_context)  # reading the authorities takes longer than connecting


def add_options(parser: LocustArgumentParser) -> None:
    options: dict[str, dict[str, Any]] = {
        "--timeout": {
            "type": number(float, Range(0.1, 3600)),
            "default": 10.0,
            "metavar": "SECONDS",
            "help": "how long a user waits for an answer (default: 10)",
        },
        "--tls-ca": {"metavar": "FILE", "help": "PEM file of the authority to trust, instead of the system's"},
    }
    add_group(parser, "Chat", "How users reach the server, at tcp://HOST:PORT or tls://HOST:PORT", options)


events.init_command_line_parser.add_listener(add_options)


class ChatUser(LoadUser):
    """A user who is logged in while it runs, and comes back when the connection is lost."""

    abstract = True
    host = f"tcp://127.0.0.1:{DEFAULT_PORT}"
    protocol = "chat"
    max_message_bytes = text_room("load-99999")

    client: ChatClient
    partner = ""  # whom the server takes for ours
    has_left = True  # of its own accord, or was never here: who has lost the connection waits before it comes back

    # Coming and going

    def come_in(self) -> None:
        """Connect and log in, again and again until it succeeds."""
        for pause in chain([0.0] if self.has_left else [], backoff()):
            gevent.sleep(pause)
            with suppress(*FAILURES):
                self.client = self.connect()
                try:
                    self.log_in()
                except BaseException:
                    self.client.close()
                    raise
                self.has_left = False
                return

    def connect(self) -> ChatClient:
        options = self.this_run.options
        with self.connecting():
            address = parse_address(self.host)
            tls = trusting(options.tls_ca) if address.tls else None
            return ChatClient(address.host, address.port, options.timeout, tls)

    def log_in(self) -> None:
        with self.measured("login"):
            try:
                self.client.login(self.name)
            except TimeoutError:
                raise TimeoutError("no answer to the login: are there more users than places in the server?") from None
        self.go_online()
        self.spawn(self.listen, self.client)

    def leave(self) -> None:
        """Log out, when nobody writes to us any more and all has arrived."""
        self.this_run.pairing.go(self.number)
        with suppress(*FAILURES):
            self.client.ping(self.this_run.options.drain)  # every Error for what was sent is here
        self.drain()
        self.hang_up()
        self.has_left = True

    def hang_up(self) -> None:
        self.go_offline()
        self.client.close()

    def go_offline(self) -> None:
        super().go_offline()
        self.this_run.pairing.go(self.number)
        self.partner = ""

    def attempt(self, act: Callable[[], None]) -> None:
        """Act, logged in. After a failure that is no refusal the connection is made anew."""
        if not self.is_online:
            self.come_in()
        try:
            act()
        except ServerError:
            gevent.sleep(PAUSE_SECONDS)
        except FAILURES as failure:
            if isinstance(failure, ConnectionClosed):
                self.end_of_connection(failure)
            self.hang_up()

    # Speaking and listening

    def write_to(self, partner: str) -> None:
        """Make this user our partner."""
        if partner != self.partner:
            with self.measured("chat init"):
                self.client.chat(partner)
            self.handle_events()  # Errors that came before belong to the old partner
            self.partner = partner

    def say(self, due: float) -> None:
        """Send our partner a message that was due at this moment of monotonic()."""
        self.send_message(self.partner, due, self.client.send)

    def listen(self, client: ChatClient) -> None:
        """Take in what comes, until the connection ends."""
        try:
            while True:
                self.handle(client.receive(timeout=None))
        except ConnectionClosed as closing:
            if self.client is client:
                self.end_of_connection(closing)

    def end_of_connection(self, closing: ConnectionClosed) -> None:
        """Whoever notices first, a listener or a task, counts it."""
        self.connection_lost(ServerError(closing.reason) if closing.reason else closing)

    def handle_events(self) -> None:
        """Take in what has come already."""
        with suppress(TimeoutError):
            while True:
                self.handle(self.client.receive(timeout=0))

    def handle(self, event: Event) -> None:
        match event:
            case MessageReceived(sender, text):
                self.receive_message(sender, text)
            case ErrorReceived(reason) if reason not in CLOSING:
                self.message_refused(self.partner, ServerError(reason))


class Chatter(PacedUser, ChatUser):
    """Has a partner, and writes at the pace of the run."""

    weight = 8
    version = -1  # of the pairing that the partner is from

    def come_in(self) -> None:
        super().come_in()
        self.version = -1
        self.this_run.pairing.come(self.number)

    @tag("chat")
    @task
    def chat(self) -> None:
        self.attempt(self.write)

    def write(self) -> None:
        pairing = self.this_run.pairing
        while self.version != pairing.version:
            version = pairing.version
            self.write_to(self.this_run.name(pairing.partner(self.number)))
            self.version = version
        if due := self.take_due():
            self.say(due)


class Reconnector(ChatUser):
    """Says something to one of the others, leaves, and comes back after a while."""

    wait_time = between(0.1, 1)

    @tag("reconnect")
    @task
    def reconnect(self) -> None:
        self.attempt(self.look_in)

    def look_in(self) -> None:
        here = self.this_run.pairing.here
        self.write_to(self.this_run.name(random.choice(here)) if here else self.name)
        self.say(monotonic())
        self.leave()


class Refresher(ChatUser):
    """Asks who is online."""

    wait_time = between(0.1, 1)

    @tag("refresh")
    @task
    def refresh(self) -> None:
        self.attempt(self.look)

    def look(self) -> None:
        with self.measured("refresh"):
            self.client.refresh()
