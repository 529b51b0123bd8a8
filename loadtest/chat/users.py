"""Locust users over ChatClient: they log in, send, listen and leave, with the extensions that the run asks for."""

import logging
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from itertools import chain
from time import monotonic
from typing import ClassVar, NamedTuple

import gevent
from gevent import GreenletExit
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
from loadtest.chat.features import asked_for, parse_features
from loadtest.core.pair import AllowedRepeat, FaultFound
from loadtest.core.pairing import Pairing
from loadtest.core.receipts import ReceiptLedger, WrongReceipt
from loadtest.locust import LoadUser
from loadtest.locust.run import DELIVER, REPEATED
from protocol import DEFAULT_PORT, NO_FEATURES, Feature, Level, text_room

FAILURES = (ChatError, TimeoutError)
PAUSE_SECONDS = 0.1  # between a refusal and the next attempt
PATIENCE_SECONDS = 1.0  # a login that takes longer waits for a place
COLLECTED_AT_ONCE = 10  # mailboxes emptied at once, at the end of a run
ROWS = {Level.STORED: "stored", Level.DELIVERED: "delivered"}

logger = logging.getLogger(__name__)
cached_tls_context = cache(tls_context)  # reading the authorities takes longer than connecting


class Sent(NamedTuple):
    """A message without all its receipts; `mailed` is its number in the ledger if it went to a mailbox, else 0."""

    due: float
    receiver: str
    mailed: int


class ChatUser(LoadUser):
    """A user who is logged in while it runs, and reconnects when the connection is lost."""

    abstract = True
    host = f"tcp://127.0.0.1:{DEFAULT_PORT}"
    protocol = "chat"
    max_message_bytes = text_room("load-99999")
    ids: ClassVar[dict[str, int]] = {}  # by name: of all users who have logged in, at the latest server

    client: ChatClient
    features = NO_FEATURES
    receipts: ReceiptLedger[Level, Sent] | None = None  # of this connection
    partner = ""  # as chosen at the server
    has_left = True  # on purpose, or was never online; after a lost connection the user waits before it reconnects
    login_began = 0.0  # when the last login was sent, by monotonic()
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
            self.this_run.after_users = partial(collect, self.environment, self.host)
        super().on_start()

    # Login and departure

    @property
    def pairing(self) -> Pairing:
        """Where other users find this one."""
        return self.this_run.pairing

    def enter(self) -> None:
        """Connect and log in, repeatedly until it succeeds."""
        for pause in chain([0.0] if self.has_left else [], backoff()):
            gevent.sleep(pause)
            with suppress(*FAILURES):
                self.client = self.connect()
                try:
                    self.log_in()
                except BaseException:
                    self.disconnect(in_order=True)  # nothing was sent
                    raise
                self.has_left = False
                return

    def connect(self) -> ChatClient:
        options = self.this_run.options
        with self.connecting():
            address = parse_address(self.host)
            tls = cached_tls_context(options.tls_ca) if address.tls else None
            return ChatClient(address.host, address.port, options.timeout, tls)

    def log_in(self) -> None:
        ledger = self.this_run.ledger
        if ledger.is_offline(self.name):
            ledger.connect(self.name)  # mail may be in flight before the answer to the login arrives
        self.login_began = monotonic()
        with self.measured("login"):
            try:
                self.client.login(self.name, features=self.features)
            except TimeoutError:
                self.this_run.note_unanswered()
                raise TimeoutError("no answer to the login: are there more users than places in the server?") from None
            except GreenletExit:  # the run has ended
                if monotonic() - self.login_began > PATIENCE_SECONDS:
                    self.this_run.note_unanswered()
                raise
        self.ids[self.name] = self.client.user_id
        self.partner = ""
        self.receipts = ReceiptLedger(Level) if Feature.RECEIPTS in self.features else None
        if Feature.MAILBOX in self.features and ledger.is_new(self.name):
            self.empty_mailbox()
        self.go_online()
        self._listener = self.spawn(self.listen, self.client)

    def empty_mailbox(self) -> None:
        """Remove the mail of an earlier run, which this run's ledger does not know."""
        self.client.ping()
        left = 0
        with suppress(TimeoutError):
            while True:
                left += isinstance(self.client.receive(timeout=0), MessageReceived)
        if left:
            logger.info("%d messages of an earlier run were waiting for %s", left, self.name)

    def leave(self) -> None:
        """Leave, once nobody writes to this user any more and everything has arrived."""
        self.withdraw()
        in_order = False
        with suppress(*FAILURES):
            self.client.ping(self.this_run.options.drain)  # now every Error for sent messages has arrived
            in_order = True
        self.drain()
        self.disconnect(in_order)
        self.has_left = True

    def withdraw(self) -> None:
        """Stop others from choosing this user as a partner."""
        self.pairing.remove(self.number)

    def disconnect(self, in_order: bool = False) -> None:
        self.go_offline(in_order)
        self.client.close()
        if self._listener:  # let it handle what has arrived, while the name and the partner are still valid
            self._listener.join()

    def go_offline(self, in_order: bool = False) -> None:
        super().go_offline(in_order)
        self.withdraw()

    def attempt(self, act: Callable[[], None]) -> None:
        """Log in if necessary, then act. After a failure other than a refusal, the user reconnects."""
        if not self.is_online:
            self.enter()
        try:
            act()
        except ServerError:
            gevent.sleep(PAUSE_SECONDS)
        except FAILURES as failure:
            if isinstance(failure, ConnectionClosed):
                self.end_of_connection(failure)
            self.disconnect()

    # Sending and receiving

    def write_to(self, partner: str) -> None:
        """Choose this partner."""
        if partner != self.partner:
            with self.measured("chat init"):
                self.client.chat(self.ids[partner] if self.features else partner)
            self.handle_events()  # earlier Errors belong to the old partner
            self.partner = partner

    def say(self, due: float) -> None:
        """Send the partner a message that was due at this time of monotonic()."""
        if self.receipts is not None:
            ledger = self.this_run.ledger
            mailed = ledger.last_number(self.name, self.partner) + 1 if ledger.is_offline(self.partner) else 0
            self.receipts.expect(self.client.sent + 1, Sent(due, self.partner, mailed))
        self.send_message(self.partner, due, self.client.send)

    def listen(self, client: ChatClient) -> None:
        """Handle events until the connection ends."""
        try:
            while True:
                self.handle(client.receive(timeout=None), client)
        except ConnectionClosed as closing:
            if self.client is client:
                self.end_of_connection(closing)

    def end_of_connection(self, closing: ConnectionClosed) -> None:
        """Count the end of a connection once, whether a listener or a task notices it first."""
        was_lost = self.is_online
        self.connection_lost(ServerError(closing.reason) if closing.reason else closing)
        if was_lost and closing.reason is None and Feature.MAILBOX in self.features:
            self.this_run.ledger.crash()

    def handle_events(self) -> None:
        """Handle the events that have arrived."""
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
                        self.report(ROWS[level], None, WrongReceipt("for a message that was refused"))
            case ReceiptReceived(level, first, last) if self.receipts and client is self.client:
                self.take_receipt(level, *self.receipts.reach(level, first, last))

    def take_receipt(self, level: Level, messages: list[Sent], wrong: str) -> None:
        """Handle a receipt. The time that a message waits in a mailbox is not counted against the server."""
        now, ledger = monotonic(), self.this_run.ledger
        for due, receiver, mailed in messages:
            if not (mailed and level is Level.DELIVERED):
                self.report(ROWS[level], now - due)
            elif ledger.is_in_mailbox(self.name, receiver, mailed):
                self.report(ROWS[level], None, WrongReceipt("for a message to an offline user"))
            else:
                self.report(ROWS[level], None)
            if mailed and level is Level.STORED:
                ledger.mark_durable(self.name, receiver, mailed)
        if wrong:
            self.report(ROWS[level], None, WrongReceipt(wrong))


class PairedUser(ChatUser):
    """A user whose partner follows from the pairing."""

    abstract = True
    version = -1  # of the pairing when the partner was chosen

    def enter(self) -> None:
        super().enter()
        self.version = -1
        self.pairing.add(self.number)

    def meet(self) -> None:
        """Choose the partner that the pairing says."""
        pairing = self.pairing
        while self.version != pairing.version:
            version = pairing.version
            self.write_to(self.this_run.name(pairing.partner(self.number)))
            self.version = version


class MailUser(ChatUser):
    """A user with a mailbox. The time of a message from the mailbox counts from the login."""

    abstract = True

    def receive_message(self, sender: str, text: str) -> None:
        try:
            seconds, since = self.this_run.ledger.receive(sender, self.name, text), monotonic() - self.login_began
            row = "mailbox" if seconds > since else DELIVER
            self.report(row, min(seconds, since), size=len(text))
        except FaultFound as fault:
            self.report(DELIVER, None, fault)
        except AllowedRepeat:
            self.report(REPEATED, None, size=len(text))

    def fetch(self, name: str) -> None:
        """Log in once as this user, to collect its mail."""
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
                self.disconnect(in_order=True)


def collect(environment: Environment, host: str) -> None:
    """After all users have stopped, collect the mail in mailboxes. What cannot be collected counts as in flight."""
    run = ChatUser.this_run
    pool = Pool(COLLECTED_AT_ONCE)
    for name in run.ledger.receivers_with_mail():
        user = MailUser(environment)
        user.host = host
        pool.spawn(user.fetch, name)
    if not pool.join(run.options.drain):
        pool.kill()
    for name in run.ledger.receivers_with_mail():
        run.ledger.disconnect(name)
