"""Logs in: connects, waits for a free place, asks for the password."""

import ssl
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from getpass import getpass
from math import inf
from time import monotonic, sleep

from chatterminal.display import notice, visible
from client import ChatClient, ConnectionClosed, Event, LoginRefused
from protocol import Feature, Reason

CONNECT_SECONDS = 10.0
PATIENCE_SECONDS = 1.0  # without an answer, before the program says that it waits
RELOGIN_SECONDS = 0.05  # between two tries while the server has not noticed yet that a connection has ended ...
RELOGIN_LIMIT = 5.0  # ... for at most so long
GREETING_SECONDS = 1.0  # to read what arrived with the mailbox, however fast others write
PASSWORD_TRIES = 3  # the third wrong password closes (section 5)


@dataclass
class Credentials:
    """How to log in, now and when reconnecting."""

    name: str
    host: str
    port: int
    password: str
    features: Feature  # to ask for
    timeout: float | None = None  # for a free place, and for each answer while nobody watches; None waits for ever
    secure: bool = False  # a name without a password gets one
    tls: ssl.SSLContext | None = None
    waited: list[Event] = field(default_factory=list)  # what came to a login that was not kept
    warned: bool = False  # of a password that others could read


def connect(account: Credentials) -> ChatClient:
    """Connect, and wait until a full server has a free place. Raises ChatError, TimeoutError."""
    limit = inf if account.timeout is None else account.timeout
    client = ChatClient(account.host, account.port, min(limit, CONNECT_SECONDS), account.tls)
    try:
        try:
            client.ping(min(limit, PATIENCE_SECONDS))
        except TimeoutError:
            if limit <= PATIENCE_SECONDS:
                raise
            notice(f"no answer from {client.address} yet: waiting for a free place (Ctrl-C gives up)")
            client.ping(None if account.timeout is None else limit - PATIENCE_SECONDS)
    except BaseException:
        client.close()
        raise
    return client


def log_in(account: Credentials, ask: bool) -> ChatClient:
    """Connect and log in. With `ask`, ask for the password as often as the server allows. Raises ChatError,
    TimeoutError.

    If the account is to be secured, the first login is without a password: the server asks for one if the name has one.
    Otherwise the person types a new one twice, while this login keeps the name.
    """
    client = connect(account)
    tries, typed, relogin_until = 0, False, 0.0
    while True:
        warn(account, client)
        looks = account.secure and not account.password
        try:
            client.login(account.name, account.password, account.timeout, account.features)
        except LoginRefused as refusal:
            if refusal.reason == Reason.USER_ALREADY_ONLINE and account.secure and monotonic() < relogin_until:
                sleep(RELOGIN_SECONDS)
                continue
            tries += refusal.reason == Reason.WRONG_PASSWORD
            asked_for = refusal.reason in (Reason.PASSWORD_REQUIRED, Reason.WRONG_PASSWORD)
            if not (ask and asked_for and tries < PASSWORD_TRIES):
                client.close()
                raise
            print(f"* {refusal.reason}")
            account.password, typed = getpass(f"password of {account.name}: "), True
        except ConnectionClosed as closing:
            client.close()
            if not (typed and closing.reason == Reason.LOGIN_TIMEOUT):  # the person typed for too long
                raise
            client, typed = connect(account), False
        else:
            if not looks:
                return client
            account.password = ask_twice(account.name)
            account.waited += read_mailbox(client)
            client.close()
            client, relogin_until = connect(account), monotonic() + RELOGIN_LIMIT


def read_mailbox(client: ChatClient) -> list[Event]:
    """The messages from our mailbox: they follow the list, before the server handles anything else (section 7.4)."""
    with suppress(ConnectionClosed):  # receive() reports it
        client.ping(timeout=None)
    events: list[Event] = []
    deadline = monotonic() + GREETING_SECONDS
    with suppress(ConnectionClosed, TimeoutError):
        while monotonic() < deadline:
            events.append(client.receive(timeout=0))
    return events


def warn(account: Credentials, client: ChatClient) -> None:
    """Warn once before sending a password that others could read."""
    if account.password and client.exposed and not account.warned:
        account.warned = True
        text = f"the password goes to {client.address} unencrypted; tls://{client.address} encrypts, if the server does"
        print(f"! {visible(text)}", file=sys.stderr)


def ask_twice(name: str) -> str:
    while True:
        password = getpass(f"password of {name}: ")
        if not password:
            print("* the password is empty; Ctrl-C gives up")
        elif password == getpass("once more: "):
            return password
        else:
            print("* the passwords differ")
