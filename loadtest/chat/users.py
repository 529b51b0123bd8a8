"""A Locust user over ChatClient: how it comes in, speaks, listens and goes, with the extensions that were asked for."""

import logging
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from itertools import chain
from time import monotonic
from typing import ClassVar, NamedTuple

import gevent
from gevent.pool import Pool
from locust.env import Environment

from client import (
    CLOSING,
    ChatClient,
    ChatError,
    ConnectionClosed,
    ErrorReceived,
    Event,
    MessageReceived,
    ReceiptReceived,
    ServerError,
    backoff,
    parse_address,
    tls_context,
)
from loadtest.core.pair import CameAgain, FaultFound
from loadtest.core.pairing import Pairing
from loadtest.core.receipts import ReceiptLedger, WrongReceipt
from loadtest.locust import LoadUser
from loadtest.locust.run import DELIVER, REPEATED
from protocol import ALL_FEATURES, DEFAULT_PORT, NO_FEATURES, Feature, Level, text_room

FAILURES = (ChatError, TimeoutError)
PAUSE_SECONDS = 0.1  # after a refusal, before another try
COLLECTED_AT_ONCE = 10  # mailboxes, at the end of a run
FEATURES = {str(feature.name).lower(): feature for feature in Feature} | {"all": ALL_FEATURES}
ROWS = {Level.STORED: "stored", Level.DELIVERED: "delivered"}

logger = logging.getLogger(__name__)
trusting = cache(tls_context)  # reading the authorities takes longer than connecting


def parse_features(text: str) -> Feature:
    """The features of a list such as "receipts,history". Raises ValueError."""
    features = NO_FEATURES
    for name in filter(None, map(str.strip, text.split(","))):
        if name not in FEATURES:
            raise ValueError(f"{name!r} is none of {', '.join(FEATURES)}")
        features |= FEATURES[name]
    return features


def asked_for(options: Namespace) -> Feature:
    """The features of a run; none where the web page has set what is no list of them, which check() tells."""
    try:
        return parse_features(options.features)
    except ValueError:
        return NO_FEATURES


class Sent(NamedTuple):
    """A message that waits for its receipts; `mailed` is its number in the ledger if it waits in a mailbox, else 0."""

    due: float
    receiver: str
    mailed: int


class ChatUser(LoadUser):
    """A user who is logged in while it runs, and comes back when the connection is lost."""

    abstract = True
    host = f"tcp://127.0.0.1:{DEFAULT_PORT}"
    protocol = "chat"
    max_message_bytes = text_room("load-99999")
    ids: ClassVar[dict[str, int]] = {}  # by name: of all who have logged in, on whichever server was the last

    client: ChatClient
    features = NO_FEATURES
    receipts: ReceiptLedger[Level, Sent] | None = None  # of this connection
    partner = ""  # whom the server takes for ours
    has_left = True  # of its own accord, or was never here: who has lost the connection waits before it comes back
    came = 0.0  # when the last login was sent, of monotonic()
    _listener: "gevent.Greenlet[..., object] | None" = None

    @classmethod
    def check(cls, options: Namespace) -> str:
        try:
            parse_features(options.features)
        except ValueError as error:
            options.features = ""
            return f"--features: {error}"
        return ""

    def on_start(self) -> None:
        self.features = asked_for(self.this_run.options)
        if Feature.MAILBOX in self.features:
            self.this_run.at_end = partial(collect, self.environment, self.host)
        super().on_start()

    # Coming and going

    @property
    def pairing(self) -> Pairing:
        """Those among whom others find us."""
        return self.this_run.pairing

    def come_in(self) -> None:
        """Connect and log in, again and again until it succeeds."""
        for pause in chain([0.0] if self.has_left else [], backoff()):
            gevent.sleep(pause)
            with suppress(*FAILURES):
                self.client = self.connect()
                try:
                    self.log_in()
                except BaseException:
                    self.hang_up(in_order=True)  # nothing has been sent
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
        ledger = self.this_run.ledger
        if ledger.is_away(self.name):
            ledger.come(self.name)  # what waits may be under way before we hear that we are in
        self.came = monotonic()
        with self.measured("login"):
            try:
                self.client.login(self.name, features=self.features)
            except TimeoutError:
                raise TimeoutError("no answer to the login: are there more users than places in the server?") from None
        self.ids[self.name] = self.client.user_id
        self.partner = ""
        self.receipts = ReceiptLedger(Level) if Feature.RECEIPTS in self.features else None
        if Feature.MAILBOX in self.features and ledger.is_new(self.name):
            self.empty_mailbox()
        self.go_online()
        self._listener = self.spawn(self.listen, self.client)

    def empty_mailbox(self) -> None:
        """What a run before this one has left there is none of its messages."""
        self.client.ping()
        left = 0
        with suppress(TimeoutError):
            while True:
                left += isinstance(self.client.receive(timeout=0), MessageReceived)
        if left:
            logger.info("%d messages of an earlier run were waiting for %s", left, self.name)

    def leave(self) -> None:
        """Log out, when nobody writes to us any more and all has arrived."""
        self.step_back()
        in_order = False
        with suppress(*FAILURES):
            self.client.ping(self.this_run.options.drain)  # every Error for what was sent is here
            in_order = True
        self.drain()
        self.hang_up(in_order)
        self.has_left = True

    def step_back(self) -> None:
        """From now on nobody shall write to us."""
        self.pairing.go(self.number)

    def hang_up(self, in_order: bool = False) -> None:
        self.go_offline(in_order)
        self.client.close()
        if self._listener:  # what has come is ours, and an Error is about our partner, until all is taken in
            self._listener.join()

    def go_offline(self, in_order: bool = False) -> None:
        super().go_offline(in_order)
        self.step_back()

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
                self.client.chat(self.ids[partner] if self.features else partner)
            self.handle_events()  # Errors that came before belong to the old partner
            self.partner = partner

    def say(self, due: float) -> None:
        """Send our partner a message that was due at this moment of monotonic()."""
        if self.receipts is not None:
            ledger = self.this_run.ledger
            mailed = ledger.last(self.name, self.partner) + 1 if ledger.is_away(self.partner) else 0
            self.receipts.expect(self.client.sent + 1, Sent(due, self.partner, mailed))
        self.send_message(self.partner, due, self.client.send)

    def listen(self, client: ChatClient) -> None:
        """Take in what comes, until the connection ends."""
        try:
            while True:
                self.handle(client.receive(timeout=None), client)
        except ConnectionClosed as closing:
            if self.client is client:
                self.end_of_connection(closing)

    def end_of_connection(self, closing: ConnectionClosed) -> None:
        """Whoever notices first, a listener or a task, counts it."""
        was_lost = self.is_online
        self.connection_lost(ServerError(closing.reason) if closing.reason else closing)
        if was_lost and closing.reason is None and Feature.MAILBOX in self.features:
            self.this_run.ledger.crash()

    def handle_events(self) -> None:
        """Take in what has come already."""
        with suppress(TimeoutError):
            while True:
                self.handle(self.client.receive(timeout=0), self.client)

    def handle(self, event: Event, client: ChatClient) -> None:
        match event:
            case MessageReceived(sender, text):
                self.receive_message(sender, text)
            case ErrorReceived(reason) if reason not in CLOSING:
                self.message_refused(self.partner, ServerError(reason))
                if self.receipts:
                    for level in self.receipts.refuse():
                        self.report(ROWS[level], None, WrongReceipt("for one of the messages that were refused"))
            case ReceiptReceived(level, first, last) if self.receipts and client is self.client:
                self.take_receipt(level, *self.receipts.reach(level, first, last))

    def take_receipt(self, level: Level, messages: list[Sent], wrong: str) -> None:
        """Our messages have come to this level. How long one waits in a mailbox is not for the server to answer for."""
        now, ledger = monotonic(), self.this_run.ledger
        for due, receiver, mailed in messages:
            if not (mailed and level is Level.DELIVERED):
                self.report(ROWS[level], now - due)
            elif ledger.has_yet_to_come(self.name, receiver, mailed):
                self.report(ROWS[level], None, WrongReceipt("for a message to somebody who is away"))
            else:
                self.report(ROWS[level], None)
            if mailed and level is Level.STORED:
                ledger.keep(self.name, receiver, mailed)
        if wrong:
            self.report(ROWS[level], None, WrongReceipt(wrong))


class PairedUser(ChatUser):
    """Has a partner, by the pairing."""

    abstract = True
    version = -1  # of the pairing that the partner is from

    def come_in(self) -> None:
        super().come_in()
        self.version = -1
        self.pairing.come(self.number)

    def meet(self) -> None:
        """See that our partner is whom the pairing says."""
        pairing = self.pairing
        while self.version != pairing.version:
            version = pairing.version
            self.write_to(self.this_run.name(pairing.partner(self.number)))
            self.version = version


class MailUser(ChatUser):
    """Gets messages out of a mailbox: they count from when it came for them."""

    abstract = True

    def receive_message(self, sender: str, text: str) -> None:
        try:
            seconds, since = self.this_run.ledger.receive(sender, self.name, text), monotonic() - self.came
            row = "mailbox" if seconds > since else DELIVER
            self.report(row, min(seconds, since), size=len(text))
        except FaultFound as fault:
            self.report(DELIVER, None, fault)
        except CameAgain:
            self.report(REPEATED, None, size=len(text))

    def fetch(self, name: str) -> None:
        """Come for what waits for this user, once."""
        self.name = name
        self.features = asked_for(self.this_run.options)
        with suppress(*FAILURES):
            self.client = self.connect()
            try:
                self.log_in()
                self.client.ping()
                self.handle_events()
                self.this_run.ledger.settle(name)
            finally:
                self.hang_up(in_order=True)


def collect(environment: Environment, host: str) -> None:
    """All users have stopped: come for what still waits in mailboxes. What nobody can come for is in flight."""
    run = ChatUser.this_run
    pool = Pool(COLLECTED_AT_ONCE)
    for name in run.ledger.awaited():
        user = MailUser(environment)
        user.host = host
        pool.spawn(user.fetch, name)
    if not pool.join(run.options.drain):
        pool.kill()
    for name in run.ledger.awaited():
        run.ledger.end(name)
