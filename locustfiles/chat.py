"""Load for the chat server (docs/LOADTEST.md): `locust -f locustfiles/chat.py --web-host 127.0.0.1`."""

import random
from argparse import ArgumentTypeError, Namespace
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any, ClassVar

import gevent
from locust import between, events, tag, task
from locust.argument_parser import LocustArgumentParser

from client import PastMessage
from loadtest.chat.features import asked_for, parse_features
from loadtest.chat.users import ChatUser, MailUser, PairedUser
from loadtest.core.pairing import Pairing
from loadtest.locust import PacedUser
from loadtest.locust.options import Range, add_group, number
from protocol import Feature

STAY_SECONDS = (0.2, 2.0)
AWAY_SECONDS = (0.5, 2.0)
NOT_GONE = inf  # in place of the time of a departure
LOOK_BACK = 20  # past messages to ask for


def add_options(parser: LocustArgumentParser) -> None:
    options: dict[str, dict[str, Any]] = {
        "--features": {
            "page": True,
            "type": _features,
            "default": "",
            "metavar": "LIST",
            "help": "extensions that users ask for and test: presence, receipts, history, mailbox, brief, separated by "
            "commas, or all (default: none)",
        },
        "--timeout": {
            "type": number(float, Range(0.1, 3600)),
            "default": 10.0,
            "metavar": "SECONDS",
            "help": "how long a user waits for an answer (default: 10)",
        },
        "--tls-ca": {"metavar": "FILE", "help": "PEM file of the authority to trust, instead of the system's"},
    }
    add_group(parser, "Chat", "The server is at --host tcp://HOST:PORT or tls://HOST:PORT", options)


def _features(text: str) -> str:
    """Check the list; it stays a string, since options travel to the workers. Raises ArgumentTypeError."""
    try:
        parse_features(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return text


events.init_command_line_parser.add_listener(add_options)


class Chatter(PacedUser, PairedUser):
    """Writes to its partner at the pace of the run."""

    weight = 8

    @tag("chat")
    @task
    def chat(self) -> None:
        self.attempt(self.write)

    def write(self) -> None:
        if self.version != self.this_run.pairing.version:
            self.meet()
        if due := self.take_due():
            self.say(due)


class Reconnector(ChatUser):
    """Writes to some other user, leaves, and reconnects after a while."""

    wait_time = between(0.1, 1)

    @tag("reconnect")
    @task
    def reconnect(self) -> None:
        self.attempt(self.look_in)

    def look_in(self) -> None:
        here = self.this_run.pairing.present
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


class WrongHistory(Exception):
    """The history differs from what was sent."""


class Historian(PairedUser):
    """Writes to its partner, and asks for the last messages."""

    wait_time = between(0.1, 1)
    longest = 0  # the most messages that the server has returned

    @classmethod
    def objection(cls, options: Namespace) -> str:
        return "" if Feature.HISTORY in asked_for(options) else f"{cls.__name__} needs --features history"

    @tag("history")
    @task
    def look_back(self) -> None:
        self.attempt(self.remember)

    def remember(self) -> None:
        self.meet()
        self.say(monotonic())
        partner, ledger = self.partner, self.this_run.ledger
        recent = ledger.recent(self.name, partner)
        if not (count := min(LOOK_BACK, recent // 2)):  # half: the latest messages may not be on disk yet
            return
        with suppress(WrongHistory), self.measured("history") as watch:
            past = self.client.history(self.ids[partner], count)
            watch.stop()
            self.handle_events()  # which arrived before
            if ledger.recent(self.name, partner) >= recent:  # otherwise one of the two has reconnected
                self.check_past(past, partner, count)

    def check_past(self, past: list[PastMessage], partner: str, count: int) -> None:
        """Compare a history with the ledger. Raises WrongHistory."""
        if not min(count, self.longest) <= len(past) <= count:
            raise WrongHistory(f"{len(past)} messages, where {count} were asked for")
        self.longest = max(self.longest, len(past))
        texts: dict[str, list[str]] = {self.name: [], partner: []}
        for message in past:
            if message.sender not in texts or message.sender_id != self.ids[message.sender]:
                raise WrongHistory(f"a message by {message.sender} ({message.sender_id})")
            texts[message.sender].append(message.text)
        try:
            for sender, receiver in {(self.name, partner), (partner, self.name)}:
                self.this_run.ledger.check_history(sender, receiver, texts[sender], is_latest=sender == self.name)
        except ValueError as error:
            raise WrongHistory(str(error)) from None


class Traveller(MailUser, PairedUser):
    """Writes to the next Traveller, online or offline; leaves, and reconnects to collect its mail."""

    weight = 3
    leaving: ClassVar[dict[str, float]] = {}  # users not to write to, and since when each is offline
    departure = 0.0  # when to leave, by monotonic()
    _entering: "gevent.Greenlet[[], None] | None" = None

    @classmethod
    def objection(cls, options: Namespace) -> str:
        return "" if Feature.MAILBOX in asked_for(options) else f"{cls.__name__} needs --features mailbox"

    @property
    def pairing(self) -> Pairing:
        return self.this_run.mail_ring

    def wait_time(self) -> float:
        """About as often as a Chatter, but at least once a second."""
        return random.uniform(0, 2 / max(self.this_run.pace.rate, 1))

    @tag("mailbox")
    @task
    def travel(self) -> None:
        self.attempt(self.stay_or_go)

    def stay_or_go(self) -> None:
        if monotonic() < self.departure:
            self.write()
        else:
            self.leave()
            gevent.sleep(random.uniform(*AWAY_SECONDS))

    def write(self) -> None:
        self.meet()
        if self.partner not in self.leaving:
            self.say(monotonic())
        elif self.leaving[self.partner] < NOT_GONE:
            self.watch_departure(self.partner)

    def watch_departure(self, partner: str) -> None:
        """Check whether the server has noticed that the partner left: from then on its mailbox is open."""
        since = self.leaving[partner]
        with self.measured("refresh"):
            online = self.client.refresh()
        if partner not in online and self.leaving.get(partner) == since:
            del self.leaving[partner]
            self.this_run.ledger.open_mailbox(partner)

    def enter(self) -> None:
        """Log in without being interrupted: mail in flight would be lost."""
        self._entering = gevent.spawn(super().enter)
        self._entering.get()
        self.departure = monotonic() + random.uniform(*STAY_SECONDS)

    def log_in(self) -> None:
        if self.name in self.leaving:
            self.leaving[self.name] = NOT_GONE
        super().log_in()

    def go_online(self) -> None:
        super().go_online()
        self.leaving.pop(self.name, None)

    def withdraw(self) -> None:
        self.leaving[self.name] = NOT_GONE if self.is_online else monotonic()

    def on_stop(self) -> None:
        name = self.name
        if self._entering:
            self._entering.join(self.this_run.options.drain)
            self._entering.kill()
        self.pairing.remove(self.number)
        super().on_stop()
        self.leaving.pop(name, None)
