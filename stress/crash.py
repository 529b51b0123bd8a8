"""Kills the server at random moments, under load and while it starts, and checks that nothing is lost.

After each kill it reads the files as they are, and again after the next start, which repairs them. A few accounts also
log in after each start, and all of them at the end. Everything that the server confirmed must be there, including each
Message with a `stored` receipt. A request without an answer may have been carried out or not, but never in part. Exit
status: 0 if nothing was lost, 1 otherwise, 130 after Ctrl-C.
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
from contextlib import suppress
from pathlib import Path

from client import ChatClient, ChatError, MessageReceived
from stress.clients import OPERATIONS, CrashClient, verify
from stress.records import Inspector, find_missing
from testkit import HarnessError
from testkit.server import ServerProcess, launch_server, run_server

CLIENTS = 8
LOAD_SECONDS = (0.05, 0.3, 2.0)  # a kill under load comes at a random moment within one of these
START_SECONDS = 0.002  # a kill of a start comes within this time after the start's first change of the folder
START_SHARE = 0.25  # of all kills
SAMPLE = 2  # accounts of each client that log in after each start
TIMEOUT = 30.0
OPTIONS = (  # for many wrong passwords and many letters
    *("--id-width", 2, "--max-users", 65535, "--login-attempts", "off"),
    *("--mailbox-messages", 10**6, "--history-messages", 10**6),
)
FIGURES = (
    *("kills", "starts killed", "sign-ups confirmed", "passwords accepted", "logins", "letters stored"),
    *("ambiguous", "of them done"),
)
REPAIRS = re.compile(
    r"users\.csv: removed an unfinished last line"
    r"|passwords\.csv: (removed a torn last line|removed lines without a user: \d+)"
    r"|status\.csv: (removed a torn last line|removed lines without a user: \d+|added missing lines: \d+)"
)


class CrashTest:
    """One database, some clients, and a server that is killed and restarted. `faults` lists what was lost."""

    def __init__(self, folder: Path, seed: object) -> None:
        """The database and the logs go to `folder`."""
        self.faults: list[str] = []
        self.figures: Counter[str] = Counter()
        self._data = folder / "data"
        self._random = random.Random(f"{seed}")
        self._inspector = Inspector()
        self._clients = [CrashClient(number, seed, self.faults, self.figures) for number in range(CLIENTS)]
        self._killed = threading.Event()
        self._cut_off: list[
            str
        ] = []  # kept apart from the faults: Ctrl-C stops the server, too, and thereby its clients

    def run(self, kills: int, progress: Callable[[str], None]) -> None:
        """Kill the server this many times, or until a fault is found."""
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
        except HarnessError as failed:
            self.faults.append(f"the server does not start, or does not end cleanly: {failed}")

    def summary(self) -> str:
        """The figures so far, on one line."""
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
        self.faults += [f"the log says: {line}" for line in server.warnings if not REPAIRS.search(line)]
        for client in self._clients:
            accounts = (
                client.accounts if everyone else client.random.sample(client.accounts, len(client.accounts))[:SAMPLE]
            )
            if not everyone:  # the friend's letters must wait in the mailbox until the end
                accounts = [account for account in accounts if account is not client.friend]
            for account in accounts:
                with ChatClient(server.host, server.port, TIMEOUT) as chat:
                    verify(client, chat, account, guesses=everyone)
                    if account is client.friend and everyone:
                        self._read_letters(client, chat)

    def _read_letters(self, client: CrashClient, chat: ChatClient) -> None:
        """Check that all letters that were stored for the friend arrive, in order."""
        chat.ping()
        received = []
        with suppress(TimeoutError):
            while isinstance(event := chat.receive(timeout=0), MessageReceived):
                received.append(event.text)
        stored = {text for *_, text in client.stored}
        if [text for text in received if text in stored] != sorted(stored, key=lambda text: int(text.split()[1])):
            self.faults.append(f"{client.friend}: {len(stored)} letters were stored, but these arrived: {received}")

    def _use(self, client: CrashClient, port: int) -> None:
        """Use the server until it is killed. Runs in a thread."""
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
        self.faults += find_missing(self._data, [letter for client in self._clients for letter in client.stored])
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
        "--seed",
        type=int,
        metavar="N",
        default=random.randrange(10**6),
        help="repeat the random choices of the run with this seed",
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
