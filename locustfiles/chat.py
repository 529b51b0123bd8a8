"""Load for the chat server: `locust -f locustfiles/chat.py`, then open http://localhost:8089 (docs/LOADTEST.md)."""

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
from loadtest.chat.users import ChatUser, MailUser, PairedUser, asked_for, parse_features
from loadtest.core.pairing import Pairing
from loadtest.locust import PacedUser
from loadtest.locust.options import Range, add_group, number
from protocol import Feature

STAY_SECONDS = (0.2, 2.0)
AWAY_SECONDS = (0.5, 2.0)
NOT_GONE = inf  # instead of the moment at which somebody left
LOOK_BACK = 20  # past messages to ask for


def add_options(parser: LocustArgumentParser) -> None:
    options: dict[str, dict[str, Any]] = {
        "--features": {
            "page": True,
            "type": _features,
            "default": "",
            "metavar": "LIST",
            "help": "what users ask for at the login, and then test: presence, receipts, history, mailbox, brief, "
            "separated by commas, or all (default: nothing)",
        },
        "--timeout": {
            "type": number(float, Range(0.1, 3600)),
            "default": 10.0,
            "metavar": "SECONDS",
            "help": "how long a user waits for an answer (default: 10)",
        },
        "--tls-ca": {"metavar": "FILE", "help": "PEM file of the authority to trust, instead of the system's"},
    }
    add_group(parser, "Chat", "How users reach the server, at tcp://HOST:PORT or tls://HOST:PORT", options)


def _features(text: str) -> str:
    """Stays a string: options travel to the workers."""
    try:
        parse_features(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return text


events.init_command_line_parser.add_listener(add_options)


class Chatter(PacedUser, PairedUser):
    """Has a partner, and writes at the pace of the run."""

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


class WrongHistory(Exception):
    """What the server remembers is not what was said."""


class Historian(PairedUser):
    """Says something to its partner, and asks for what was said last."""

    wait_time = between(0.1, 1)
    longest = 0  # so many messages the server has been seen to remember

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
        if not (count := min(LOOK_BACK, recent // 2)):  # half: what has just arrived may be on its way to the disk
            return
        with suppress(WrongHistory), self.measured("history") as watch:
            past = self.client.history(self.ids[partner], count)
            watch.stop()
            self.handle_events()  # what came before
            if ledger.recent(self.name, partner) >= recent:  # otherwise one of us has begun anew
                self.judge(past, partner, count)

    def judge(self, past: list[PastMessage], partner: str, count: int) -> None:
        """Raises WrongHistory."""
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
                self.this_run.ledger.recall(sender, receiver, texts[sender], is_latest=sender == self.name)
        except ValueError as error:
            raise WrongHistory(str(error)) from None


class Traveller(MailUser, PairedUser):
    """Writes to the next of its kind, who is here or away; goes away, and comes back to what was written meanwhile."""

    weight = 3
    leaving: ClassVar[dict[str, float]] = {}  # who is not to be written to; since when it is gone, if it is
    departure = 0.0  # when to go, of monotonic()
    _coming: "gevent.Greenlet[[], None] | None" = None

    @classmethod
    def objection(cls, options: Namespace) -> str:
        return "" if Feature.MAILBOX in asked_for(options) else f"{cls.__name__} needs --features mailbox"

    @property
    def pairing(self) -> Pairing:
        return self.this_run.circle

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
            self.see_off(self.partner)

    def see_off(self, partner: str) -> None:
        """Look whether the server has noticed that our partner is gone: from then on its mailbox is open."""
        since = self.leaving[partner]
        with self.measured("refresh"):
            online = self.client.refresh()
        if partner not in online and self.leaving.get(partner) == since:
            del self.leaving[partner]
            self.this_run.ledger.leave(partner)

    def come_in(self) -> None:
        """Nothing stops who is coming: what is on its way out of the mailbox would be lost."""
        self._coming = gevent.spawn(super().come_in)
        self._coming.get()
        self.departure = monotonic() + random.uniform(*STAY_SECONDS)

    def log_in(self) -> None:
        if self.name in self.leaving:
            self.leaving[self.name] = NOT_GONE
        super().log_in()

    def go_online(self) -> None:
        super().go_online()
        self.leaving.pop(self.name, None)

    def step_back(self) -> None:
        self.leaving[self.name] = NOT_GONE if self.is_online else monotonic()

    def on_stop(self) -> None:
        name = self.name
        if self._coming:
            self._coming.join(self.this_run.options.drain)
            self._coming.kill()
        self.pairing.go(self.number)
        super().on_stop()
        self.leaving.pop(name, None)
