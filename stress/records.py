"""What the server confirmed to clients, and whether the database's files hold all of it and nothing else.

This module reads the files with code of its own: storage.py could not see a bug that its writer and reader share.
"""

import re
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

Letter = tuple[int, int, str]  # the sender's id, the receiver's, the text
LINE = re.compile(r'([1-9][0-9]*),(?:"((?:[^"]|"")+)"|([^",]+))')


@dataclass
class ExpectedAccount:
    """What a client knows of its account; it records each answer when it arrives."""

    name: str
    user_id: int = 0  # as the server confirmed it; 0 before that
    password: str = ""  # the one accepted last; "" is none
    pending: str | None = None  # the password, or "", of a sign-up or a change without an answer yet

    def begin(self, password: str) -> None:
        """Call this before sending a sign-up or a change of the password."""
        self.pending = password

    def granted(self, user_id: int) -> None:
        """The server has answered with this id: from now on nothing may be lost."""
        self.user_id = user_id
        if self.pending is not None:
            self.password, self.pending = self.pending, None

    def refused(self) -> None:
        """The server has refused, and so has changed nothing."""
        self.pending = None

    @property
    def ambiguous(self) -> bool:
        """Whether the server was killed before it answered: the request was carried out completely or not at all."""
        return self.pending is not None


@dataclass
class FoundDatabase:
    """The contents of the files."""

    users: list[tuple[int, str]]
    hashes: dict[int, str]  # by id; an id's last line counts
    statuses: list[tuple[int, str]]
    faults: list[str]


@dataclass
class Inspector:
    """Compares accounts with a folder. It checks each hash only once, since that takes long."""

    _checked: dict[tuple[str, str], bool] = field(default_factory=dict)

    def inspect(self, folder: Path, accounts: Sequence[ExpectedAccount], repaired: bool) -> list[str]:
        """Returns the faults, one line each. Resolves ambiguous accounts: one that does not exist has no id after this.

        `repaired` means that a server has opened the folder since: every line must be whole and every user offline.
        """
        database = read_database(folder, repaired)
        faults = [*database.faults, *find_doubles(database.users)]
        if repaired:
            faults += find_untidy(database)
        by_name = {name: user_id for user_id, name in database.users}
        faults += [
            f"user {by_name[name]}, {name!r}: no client signed this name up"
            for name in by_name.keys() - _names(accounts)
        ]
        for account in accounts:
            user_id = by_name.get(account.name, 0)
            if user_id or account.user_id:
                faults += self._compare(account, user_id, database.hashes.get(user_id))
        return faults

    def _compare(self, account: ExpectedAccount, user_id: int, stored: str | None) -> list[str]:
        confirmed, who = account.user_id, f"user {account.user_id or user_id}, {account.name!r}"
        if not user_id:
            return [f"{who}: was signed up, and is lost"]
        allowed = [account.password] if confirmed else []
        if account.pending is not None:
            allowed.append(account.pending)
        account.user_id, account.pending = user_id, None
        if confirmed and confirmed != user_id:
            return [f"{who}: has id {user_id} now"]
        for password in allowed:
            if self._matches(stored, password):
                account.password = password
                return []
        return [f"{who}: {'none' if stored is None else 'another'} is stored in place of the password {allowed}"]

    def _matches(self, stored: str | None, password: str) -> bool:
        if stored is None or not password:
            return stored is None and not password
        if (stored, password) not in self._checked:
            try:
                self._checked[stored, password] = PasswordHasher().verify(stored, password)
            except (InvalidHashError, VerificationError):
                self._checked[stored, password] = False
        return self._checked[stored, password]


def read_database(folder: Path, repaired: bool) -> FoundDatabase:
    """Reads the three files; a last line without its LF is a fault only if the files have been `repaired`."""
    faults: list[str] = []
    users, passwords, statuses = (
        _read_lines(folder / name, repaired, faults) for name in ("users.csv", "passwords.csv", "status.csv")
    )
    return FoundDatabase(users, dict(passwords), statuses, faults)


def _read_lines(path: Path, whole: bool, faults: list[str]) -> list[tuple[int, str]]:
    *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    if torn and whole:
        faults.append(f"{path.name}: the last line is torn: {torn!r}")
    fields = []
    for number, line in enumerate(lines, start=1):
        found = LINE.fullmatch(line.decode(errors="replace"))
        if found:
            fields.append((int(found[1]), found[3] or found[2].replace('""', '"')))
        else:
            faults.append(f"{path.name}, line {number}: this is no line: {line!r}")
    return fields


def read_letters(folder: Path) -> list[Letter]:
    """The letters in chats.db, oldest first, one packet each. Reads a copy, since reading would repair the file."""
    with tempfile.TemporaryDirectory() as copy:
        for path in folder.glob("chats.db*"):
            shutil.copy(path, copy)
        with closing(sqlite3.connect(Path(copy) / "chats.db")) as database:
            batches = database.execute("SELECT sender, receiver, packets FROM batches ORDER BY id").fetchall()
    letters: list[Letter] = []
    for sender, receiver, packets in batches:
        while packets:
            body, packets = packets[4 : 2 + packets[1]], packets[2 + packets[1] :]
            letters.append((sender, receiver, body.partition(b":")[2].decode()))
    return letters


def find_missing(folder: Path, stored: Sequence[Letter]) -> list[str]:
    """The letters with a `stored` receipt that are not in the folder exactly once, one line each."""
    found = Counter(read_letters(folder)) if stored else Counter()
    return [
        f"chats.db: {letter} has a stored receipt, and is there {found[letter]} times"
        for letter in stored
        if found[letter] != 1
    ]


def find_doubles(users: Sequence[tuple[int, str]]) -> list[str]:
    """Ids and names that occur more than once."""
    ids, names = [user_id for user_id, _ in users], [name for _, name in users]
    doubles = [
        f"users.csv: id {user_id} is there {count} times" for user_id, count in Counter(ids).items() if count > 1
    ]
    return doubles + [
        f"users.csv: {name!r} is there {count} times" for name, count in Counter(names).items() if count > 1
    ]


def find_untidy(database: FoundDatabase) -> list[str]:
    """Faults that a start should have repaired."""
    ids = [user_id for user_id, _ in database.users]
    faults = [f"passwords.csv: id {user_id} has no user" for user_id in sorted(database.hashes.keys() - set(ids))]
    faults += [f"status.csv: user {user_id} is {status!r}" for user_id, status in database.statuses if status != "0"]
    if [user_id for user_id, _ in database.statuses] != ids:
        faults.append("status.csv: there is not one line for each user")
    return faults


def _names(accounts: Sequence[ExpectedAccount]) -> set[str]:
    return {account.name for account in accounts}
