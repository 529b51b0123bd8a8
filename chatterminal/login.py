"""Logs in: connects, waits for a free place, asks for the password."""

import ssl
import sys
from dataclasses import dataclass
from getpass import getpass

from chatterminal.display import notice, visible
from client import ChatClient, ConnectionClosed, LoginRefused
from protocol import Feature, Reason

PATIENCE_SECONDS = 1.0  # without an answer, before the program says that it waits
PASSWORD_TRIES = 3  # the third wrong password closes (section 5)


@dataclass
class Credentials:
    """How to log in, now and when reconnecting."""

    name: str
    host: str
    port: int
    password: str
    features: Feature  # to ask for
    tls: ssl.SSLContext | None = None
    warned: bool = False  # of a password that others could read


def connect(account: Credentials) -> ChatClient:
    """Connect, and wait for as long as it takes until a full server has a free place. Raises ChatError."""
    client = ChatClient(account.host, account.port, tls=account.tls)
    try:
        try:
            client.ping(PATIENCE_SECONDS)
        except TimeoutError:
            notice(f"no answer from {client.address} yet: waiting for a free place (Ctrl-C gives up)")
            client.ping(timeout=None)
    except BaseException:
        client.close()
        raise
    return client


def log_in(account: Credentials, ask: bool) -> ChatClient:
    """Connect and log in. With `ask`, ask for the password as often as the server allows. Raises ChatError."""
    client = connect(account)
    tries, typed = 0, False
    while True:
        warn(account, client)
        try:
            client.login(account.name, account.password, timeout=None, features=account.features)
        except LoginRefused as refusal:
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
            return client


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
