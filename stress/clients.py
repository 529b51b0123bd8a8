"""What clients of the crash test do: sign up, log in, change passwords, guess, talk, stay, write letters.

Each keeps its own record of what the server has confirmed.
"""

import random
import time
from collections import Counter
from collections.abc import Callable

from client import ChatClient, LoginRefused, MessageReceived, ReceiptReceived
from protocol import NO_FEATURES, Feature, Level, Reason
from stress.records import ExpectedAccount, Letter

SECURING_CLIENTS = 2  # clients that use passwords: the server hashes two at once, and more would only queue
LETTERS = 20  # written at once


class CrashClient:
    """One of several concurrent clients. No other uses its accounts, so it knows their right state."""

    def __init__(self, number: int, seed: object, faults: list[str], figures: Counter[str]) -> None:
        self.accounts: list[ExpectedAccount] = []
        self.friend: ExpectedAccount | None = None  # receives the letters, and stays offline until the end
        self.stored: list[Letter] = []  # those with a `stored` receipt
        self.random = random.Random(f"{seed}-{number}")
        self.figures = figures
        self.secures = number < SECURING_CLIENTS
        self._number = number
        self._names = 0
        self.letters = 0
        self._faults = faults

    def fault(self, text: str) -> None:
        self._faults.append(text)

    def new_account(self) -> ExpectedAccount:
        self._names += 1
        name = f"{self._number}-{self._names}"
        self.accounts.append(ExpectedAccount(name if self._names % 5 else f'"{name}"'))
        return self.accounts[-1]

    def some_account(self, *, secured: bool | None = None) -> ExpectedAccount | None:
        """A random account with (True) or without (False) a password, or any; None if there is no such account."""
        found = [
            one
            for one in self.accounts
            if one.user_id and one is not self.friend and secured in (None, bool(one.password))
        ]
        return self.random.choice(found) if found else None

    def log_in(
        self, chat: ChatClient, account: ExpectedAccount, password: str, features: Feature = NO_FEATURES
    ) -> bool:
        """Whether the server accepted the password. An outcome that is neither acceptance nor refusal is a fault."""
        while True:
            try:
                user_id = chat.login(account.name, password, features=features)
            except LoginRefused as refused:
                if refused.reason == Reason.USER_ALREADY_ONLINE:  # the connection that we have just closed
                    time.sleep(0.002)
                    continue
                account.refused()
                if refused.reason not in (Reason.WRONG_PASSWORD, Reason.PASSWORD_REQUIRED):
                    self.fault(f"{account.name!r}: {refused.reason}")
                return False
            if account.user_id not in (0, user_id):
                self.fault(f"{account.name!r}: had id {account.user_id}, and has {user_id} now")
            account.granted(user_id)
            self.figures["logins"] += 1
            return True


# What clients do. Each call uses one connection; ExpectedAccount.begin() precedes each change of the database.


def sign_up(client: CrashClient, chat: ChatClient) -> None:
    account = client.new_account()
    account.begin(_new_password(client) if client.secures and client.random.random() < 0.5 else "")
    if client.log_in(chat, account, account.pending or ""):
        client.figures["sign-ups confirmed"] += 1
        client.figures["passwords accepted"] += bool(account.password)


def set_first_password(client: CrashClient, chat: ChatClient) -> None:
    account = client.some_account(secured=False)
    if account and client.secures:
        password = _new_password(client)
        account.begin(password)
        if client.log_in(chat, account, password):
            client.figures["passwords accepted"] += 1


def log_in(client: CrashClient, chat: ChatClient) -> None:
    if account := client.some_account():
        verify(client, chat, account)


def guess(client: CrashClient, chat: ChatClient) -> None:
    if account := client.some_account(secured=True):
        verify(client, chat, account, guesses=True)


def talk(client: CrashClient, chat: ChatClient) -> None:
    account = client.some_account(secured=False)
    if account and client.log_in(chat, account, ""):
        chat.chat(account.user_id)
        texts = [f"text {number}" for number in range(50)]
        for text in texts:
            chat.send(text)
        for text in texts:
            event = chat.receive()
            if not isinstance(event, MessageReceived) or event.text != text:
                client.fault(f"{account.name!r}: sent {text!r}, and received {event}")


def stay(client: CrashClient, chat: ChatClient) -> None:
    account = client.some_account()
    if account and client.log_in(chat, account, account.password):
        while True:  # until the server is killed with this user online, which the next start has to repair
            time.sleep(0.01)
            chat.ping()


def write_letters(client: CrashClient, chat: ChatClient) -> None:
    if client.friend is None or not client.friend.user_id:
        client.friend = client.new_account()
        client.friend.begin("")
        client.log_in(chat, client.friend, "")
        return
    account = client.some_account(secured=False)
    if account and client.log_in(chat, account, "", Feature.MAILBOX | Feature.RECEIPTS):
        chat.chat(client.friend.user_id)
        letters: dict[int, Letter] = {}
        for _ in range(LETTERS):
            client.letters += 1
            text = f"letter {client.letters}"
            letters |= dict.fromkeys(chat.send(text), (account.user_id, client.friend.user_id, text))
        while letters:
            event = chat.receive()
            if isinstance(event, ReceiptReceived) and event.level is Level.STORED:
                confirmed = [letters.pop(number) for number in range(event.first, event.last + 1)]
                client.stored += confirmed
                client.figures["letters stored"] += len(confirmed)


OPERATIONS: dict[Callable[[CrashClient, ChatClient], None], int] = {  # with their weights
    sign_up: 20,
    log_in: 10,
    talk: 4,
    guess: 2,
    stay: 1,
    write_letters: 8,
    set_first_password: 3,
}


def verify(client: CrashClient, chat: ChatClient, account: ExpectedAccount, guesses: bool = False) -> None:
    """Check that the account's password works and, with `guesses`, that a wrong one does not."""
    if guesses and account.password and client.log_in(chat, account, account.password + "x"):
        client.fault(f"user {account.user_id}, {account.name!r}: a wrong password was accepted")
    elif not client.log_in(chat, account, account.password):
        client.fault(f"user {account.user_id}, {account.name!r}: the password {account.password!r} was refused")


def _new_password(client: CrashClient) -> str:
    return f"secret-{client.random.getrandbits(40):x}"
