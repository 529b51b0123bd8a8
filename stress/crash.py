"""Kills the server at random moments, under load and while it starts, and looks for anything that was lost.

After each kill the files are read as they lie, and again after the next start, which repairs them; a few accounts also
log in, all of them at the end. What a client was told must be there; a request that got no answer may have been done or
not, but nothing between. Exit status: 0 when nothing was lost, 1 otherwise, 130 after Ctrl-C.
"""

import argparse
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from client import ChatClient, ChatError, LoginRefused, MessageReceived
from protocol import Reason
from stress.records import Account, Inspector
from tests.processes import ServerProcess, launch_server, run_server

CLIENTS = 8
SECURING_CLIENTS = 2  # of them use passwords: the server hashes two at once, and more would only queue for that
LOAD_SECONDS = (0.05, 0.3, 2.0)  # a kill comes at any moment of one of these
START_SECONDS = 0.002  # ... or of this, from the first change that a start makes in the folder
START_SHARE = 0.25  # of the kills
SAMPLE = 2  # accounts of each client that log in after a start
TIMEOUT = 30.0
OPTIONS = ("--id-width", 2, "--max-users", 65535, "--login-attempts", "off")  # many wrong passwords are given
FIGURES = ("kills", "starts killed", "sign-ups confirmed", "passwords accepted", "logins", "ambiguous", "of them done")
REPAIRS = re.compile(
    r"users\.csv: cut off a sign-up that was never finished"
    r"|passwords\.csv: (cut off a torn last line|removed \d+ without a user)"
    r"|status\.csv: (cut off a torn last line|removed \d+ without a user|added \d+ that users lacked)"
)


class Client:
    """One of those who use the server at once. The accounts are its own, so that it knows what is right."""

    def __init__(self, number: int, seed: object, faults: list[str], figures: Counter[str]) -> None:
        self.accounts: list[Account] = []
        self.random = random.Random(f"{seed}-{number}")
        self.figures = figures
        self.secures = number < SECURING_CLIENTS
        self._number = number
        self._names = 0
        self._faults = faults

    def fault(self, text: str) -> None:
        self._faults.append(text)

    def new_account(self) -> Account:
        self._names += 1
        name = f"{self._number}-{self._names}"
        self.accounts.append(Account(name if self._names % 5 else f'"{name}"'))
        return self.accounts[-1]

    def some_account(self, *, secured: bool | None = None) -> Account | None:
        """One that has a password, or has none, or either; None where there is no such account."""
        found = [one for one in self.accounts if one.user_id and secured in (None, bool(one.password))]
        return self.random.choice(found) if found else None

    def log_in(self, chat: ChatClient, account: Account, password: str) -> bool:
        """Whether the password was taken. Any other outcome is put down as a fault."""
        while True:
            try:
                user_id = chat.login(account.name, password)
            except LoginRefused as refused:
                if refused.reason == Reason.USER_ALREADY_ONLINE:  # of a connection that we have just closed
                    time.sleep(0.002)
                    continue
                account.refused()
                if refused.reason not in (Reason.WRONG_PASSWORD, Reason.PASSWORD_REQUIRED):
                    self.fault(f"{account.name!r}: {refused.reason}")
                return False
            if account.user_id not in (0, user_id):
                self.fault(f"{account.name!r}: was told id {account.user_id}, and now {user_id}")
            account.granted(user_id)
            self.figures["logins"] += 1
            return True


# What clients do. Each is one connection; Account.begin() comes before what changes the database.


def sign_up(client: Client, chat: ChatClient) -> None:
    account = client.new_account()
    account.begin(_new_password(client) if client.secures and client.random.random() < 0.5 else "")
    if client.log_in(chat, account, account.pending or ""):
        client.figures["sign-ups confirmed"] += 1
        client.figures["passwords accepted"] += bool(account.password)


def set_first_password(client: Client, chat: ChatClient) -> None:
    account = client.some_account(secured=False)
    if account and client.secures:
        password = _new_password(client)
        account.begin(password)
        if client.log_in(chat, account, password):
            client.figures["passwords accepted"] += 1


def log_in(client: Client, chat: ChatClient) -> None:
    if account := client.some_account():
        verify(client, chat, account)


def guess(client: Client, chat: ChatClient) -> None:
    if account := client.some_account(secured=True):
        verify(client, chat, account, guesses=True)


def talk(client: Client, chat: ChatClient) -> None:
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


def stay(client: Client, chat: ChatClient) -> None:
    account = client.some_account()
    if account and client.log_in(chat, account, account.password):
        while True:  # until the server is killed, with somebody online: the next start has something to repair
            time.sleep(0.01)
            chat.ping()


OPERATIONS: dict[Callable[[Client, ChatClient], None], int] = {  # how often, against each other
    sign_up: 20,
    log_in: 10,
    talk: 4,
    guess: 2,
    stay: 1,
    set_first_password: 3,
}


def verify(client: Client, chat: ChatClient, account: Account, guesses: bool = False) -> None:
    """The password of this account works, and no other."""
    if guesses and account.password and client.log_in(chat, account, account.password + "x"):
        client.fault(f"user {account.user_id}, {account.name!r}: a wrong password was taken")
    elif not client.log_in(chat, account, account.password):
        client.fault(f"user {account.user_id}, {account.name!r}: the password {account.password!r} was refused")


def _new_password(client: Client) -> str:
    return f"secret-{client.random.getrandbits(40):x}"


# Kills


class CrashTest:
    """One database, some clients, and a server that is killed and started again. `faults` is what was lost."""

    def __init__(self, folder: Path, seed: object) -> None:
        """The database and the logs go to `folder`."""
        self.faults: list[str] = []
        self.figures: Counter[str] = Counter()
        self._data = folder / "data"
        self._random = random.Random(f"{seed}")
        self._inspector = Inspector()
        self._clients = [Client(number, seed, self.faults, self.figures) for number in range(CLIENTS)]
        self._killed = threading.Event()
        self._cut_off: list[str] = []  # apart from the faults: Ctrl-C reaches the server, too, and ends its clients

    def run(self, kills: int, progress: Callable[[str], None]) -> None:
        """Kill the server so many times, or until a fault is found."""
        try:
            while self.figures["kills"] < kills and not self.faults:
                (self._kill_a_start if self._random.random() < START_SHARE else self._kill_under_load)()
                self.figures["kills"] += 1
                self._inspect(repaired=False)
                progress(self.summary())
            if not self.faults:
                progress("every account logs in ...")
                with run_server(self._data, *OPTIONS) as server:
                    self._look_around(server, everyone=True)
                self._inspect(repaired=True)
        except AssertionError as failed:
            self.faults.append(f"the server does not start, or ends badly: {failed}")

    def summary(self) -> str:
        """The figures so far, on a line."""
        return ", ".join([*(f"{name} {self.figures[name]}" for name in FIGURES), f"lost {len(self.faults)}"])

    def _kill_under_load(self) -> None:
        with run_server(self._data, *OPTIONS) as server:
            self._inspect(repaired=True)
            self._look_around(server, everyone=False)
            self._killed.clear()
            threads = [
                threading.Thread(target=self._use, args=(one, server.port), daemon=True) for one in self._clients
            ]
            for thread in threads:
                thread.start()
            time.sleep(self._random.uniform(0, self._random.choice(LOAD_SECONDS)))
            self._killed.set()
            server.stop(signal.SIGKILL)
            for thread in threads:
                thread.join(TIMEOUT)
                if thread.is_alive():
                    self.faults.append(f"a client still waits, {TIMEOUT} s after the server was killed")
        self.faults += self._cut_off

    def _kill_a_start(self) -> None:
        before = self._data.stat().st_mtime_ns if self._data.exists() else 0
        server = launch_server(self._data, *OPTIONS)
        try:
            while server.process.poll() is None and "listening on" not in server.log:
                if self._data.exists() and self._data.stat().st_mtime_ns != before:
                    break
            time.sleep(self._random.uniform(0, START_SECONDS))
            if server.process.poll() is not None:
                self.faults.append(f"the server does not start: {server.log}")
        finally:
            server.stop(signal.SIGKILL)
        self.figures["starts killed"] += "listening on" not in server.log

    def _look_around(self, server: ServerProcess, everyone: bool) -> None:
        for line in server.log.splitlines():
            if not (" INFO " in line or REPAIRS.search(line)):
                self.faults.append(f"the log says: {line}")
        for client in self._clients:
            accounts = (
                client.accounts if everyone else client.random.sample(client.accounts, len(client.accounts))[:SAMPLE]
            )
            for account in accounts:
                with ChatClient(server.host, server.port, TIMEOUT) as chat:
                    verify(client, chat, account, guesses=everyone)

    def _use(self, client: Client, port: int) -> None:
        """Runs in a thread: use the server until it is killed."""
        operations, weights = list(OPERATIONS), list(OPERATIONS.values())
        try:
            while not self._killed.is_set():
                (operation,) = client.random.choices(operations, weights)
                with ChatClient("127.0.0.1", port, TIMEOUT) as chat:
                    operation(client, chat)
        except (ChatError, TimeoutError) as error:
            if not self._killed.is_set():
                self._cut_off.append(f"a client was cut off while the server ran: {error}")

    def _inspect(self, repaired: bool) -> None:
        accounts = [account for client in self._clients for account in client.accounts]
        before = {account.name: (account.user_id, account.password) for account in accounts if account.ambiguous}
        self.faults += self._inspector.inspect(self._data, accounts, repaired)
        after = {account.name: (account.user_id, account.password) for account in accounts}
        self.figures["ambiguous"] += len(before)
        self.figures["of them done"] += sum(after[name] != before[name] for name in before)
        for client in self._clients:
            client.accounts = [account for account in client.accounts if account.user_id]


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="make crash-test", description=__doc__)
    parser.add_argument("--kills", type=int, metavar="N", default=200, help="default: %(default)s")
    parser.add_argument(
        "--seed", type=int, metavar="N", default=random.randrange(10**6), help="repeats the same choices"
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="crash-test-"))
    test = CrashTest(folder, options.seed)
    print(f"seed {options.seed}, at most {options.kills} kills, in {folder}", flush=True)
    status = 1
    try:
        test.run(options.kills, _show)
        status = 1 if test.faults else 0
    except KeyboardInterrupt:
        status = 130
    print(f"\n{'interrupted' if status == 130 else 'done'} (seed {options.seed}): {test.summary()}")
    if test.faults:
        print(*test.faults, f"the database and the logs are kept in {folder}", sep="\n")
        return 1
    shutil.rmtree(folder)
    return status


def _show(line: str) -> None:
    print(f"\r\x1b[K{line}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
