"""Users, password hashes and who is online: the `Storage` interface, and its database of plain CSV files.

Look-ups are answered from memory. Whatever survives a restart is on disk before a call returns, and before a look-up
can see it. Names and hashes are opaque here: who may have which is decided elsewhere, save that two names that look
alike cannot both sign up.
"""

import csv
import fcntl
import itertools
import logging
import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Self

USERS = "users.csv"
PASSWORDS = "passwords.csv"
STATUS = "status.csv"
LOCK = "lock"

logger = logging.getLogger("storage")


@dataclass(frozen=True, slots=True)
class User:
    """Who has signed up."""

    id: int
    name: str


class StorageError(Exception):
    """What every error of a storage is, save an OSError while it opens."""


class NameTaken(StorageError):
    """Somebody has this name, or one that looks like it."""


class UserLimitReached(StorageError):
    """There are as many users as there may be, or no id is left."""


class StorageUnavailable(StorageError):
    """The database cannot be written now; nothing has changed. The OSError is the cause."""


class FolderInUse(StorageError):
    """Another server has this folder open."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} is in use by another server")


class DamagedFile(StorageError):
    """A line that makes no sense. Nothing has been written."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}, line {line}: {problem}")
        self.path = path
        self.line = line


class Storage(ABC):
    """A database of users, open within a `with` block; everyone is offline when it opens.

    The look-ups never block. The writing calls (`sign_up` and the two `set_`) may block, and come from one thread at a
    time, while look-ups go on in another. They raise StorageUnavailable, and ValueError for a text that cannot be
    stored: empty, not UTF-8, or with a NUL or a line end in it.
    """

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *error: object) -> None: ...

    @abstractmethod
    def users(self) -> list[User]:
        """Everyone, by ascending id."""

    @abstractmethod
    def find(self, name: str) -> User | None:
        """The user of exactly this name."""

    @abstractmethod
    def look_alike(self, name: str) -> User | None:
        """The user whose name looks like this one (see `skeleton`), or is this one."""

    @abstractmethod
    def password_hash(self, user_id: int) -> str | None:
        """What was stored last for this user, if anything was."""

    @abstractmethod
    def is_online(self, user_id: int) -> bool:
        """The status that was stored last."""

    @abstractmethod
    def check_sign_up(self, name: str) -> None:
        """Raises NameTaken, or else UserLimitReached, where `sign_up` would."""

    @abstractmethod
    def sign_up(self, name: str, password_hash: str | None) -> User:
        """Add a user, whose id is the highest one + 1. Raises NameTaken, or else UserLimitReached."""

    @abstractmethod
    def set_password(self, user_id: int, password_hash: str) -> None:
        """Give a user this hash in place of any other. Raises KeyError for an unknown user."""

    @abstractmethod
    def set_status(self, user_id: int, online: bool) -> None:
        """Store who is online; it need not survive a restart. Raises KeyError for an unknown user."""


def skeleton(name: str) -> str:
    """What is the same for two names that look alike: compatibility forms and case folded away."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


class CsvStorage(Storage):
    """Three files in `folder`, UTF-8, a line each ending in LF, quoted where RFC 4180 needs it.

    users.csv      UserID,Username       appended to; a whole line here is what makes a sign-up
    passwords.csv  UserID,argon2id hash  appended to; the last line of an id counts
    status.csv     UserID,Status         1 online, 0 offline; one byte overwritten in place

    A missing folder (mode 0700) or file (0600) is made. What a crash can leave is repaired on opening, with a warning
    in the log: a last line without its LF never happened, a password without a user must not pass to the next user of
    that id.

    Opening raises FolderInUse, DamagedFile for any other line that makes no sense, and OSError where the folder
    cannot be made, read or written. `max_id` is the highest id that can be numbered.
    """

    def __init__(self, folder: Path, max_users: int, max_id: int) -> None:
        self._folder = folder
        self._max_users = max_users
        self._max_id = max_id
        self._users: dict[int, User] = {}  # by ascending id
        self._by_skeleton: dict[str, User] = {}
        self._passwords: dict[int, str] = {}
        self._online: set[int] = set()
        self._status_offsets: dict[int, int] = {}
        self._files: dict[str, FileIO] = {}
        self._lengths: dict[str, int] = {}  # in bytes, of what has been committed
        self._uncommitted = False  # bytes past those lengths may be in the files
        self._open_files = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            _make_folder(self._folder)
            lock = stack.enter_context(_open(self._folder / LOCK))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderInUse(self._folder) from None
            torn_user = self._load()
            self._files = {name: stack.enter_context(_open(self._folder / name)) for name in (PASSWORDS, STATUS, USERS)}
            _fsync_folder(self._folder)
            self._lengths = {name: os.fstat(file.fileno()).st_size for name, file in self._files.items()}
            self._lengths[USERS] -= len(torn_user)
            self._cut_back()  # its fsync matters too: a killed server may have left whole lines that are not on disk
            self._open_files = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open_files.close()

    # Look-ups

    def users(self) -> list[User]:
        return list(self._users.values())

    def find(self, name: str) -> User | None:
        user = self.look_alike(name)
        return user if user is not None and user.name == name else None

    def look_alike(self, name: str) -> User | None:
        return self._by_skeleton.get(skeleton(name))

    def password_hash(self, user_id: int) -> str | None:
        return self._passwords.get(user_id)

    def is_online(self, user_id: int) -> bool:
        return user_id in self._online

    def check_sign_up(self, name: str) -> None:
        if self.look_alike(name) is not None:
            raise NameTaken(name)
        if len(self._users) >= self._max_users or self._next_id() > self._max_id:
            raise UserLimitReached(name)

    def _next_id(self) -> int:
        return next(reversed(self._users), 0) + 1

    # Writing

    def sign_up(self, name: str, password_hash: str | None) -> User:
        self.check_sign_up(name)
        user = User(self._next_id(), name)
        lines = {STATUS: _line(user.id, "0"), USERS: _line(user.id, name)}  # users.csv last: it is the commit
        if password_hash is not None:
            lines = {PASSWORDS: _line(user.id, password_hash), **lines}
        self._append(lines)
        self._status_offsets[user.id] = self._lengths[STATUS] - len("0\n")
        if password_hash is not None:
            self._passwords[user.id] = password_hash
        self._publish(user)
        return user

    def set_password(self, user_id: int, password_hash: str) -> None:
        if user_id not in self._users:
            raise KeyError(user_id)
        self._append({PASSWORDS: _line(user_id, password_hash)})
        self._passwords[user_id] = password_hash

    def set_status(self, user_id: int, online: bool) -> None:
        offset = self._status_offsets[user_id]
        try:
            os.pwrite(self._files[STATUS].fileno(), b"1" if online else b"0", offset)
        except OSError as error:
            raise StorageUnavailable(f"{self._folder / STATUS} cannot be written: {error}") from error
        (self._online.add if online else self._online.discard)(user_id)

    def _append(self, lines: dict[str, bytes]) -> None:
        """Append one line to each of these files, each on disk before the next is begun: all of them or none."""
        try:
            if self._uncommitted:
                self._cut_back()
            self._uncommitted = True
            for name, line in lines.items():
                _write(self._files[name].fileno(), line, self._lengths[name])
                os.fsync(self._files[name].fileno())
        except OSError as error:
            with suppress(OSError):  # the next append tries again, before it writes
                self._cut_back()
            raise StorageUnavailable(f"{self._folder} cannot be written: {error}") from error
        self._uncommitted = False
        for name, line in lines.items():
            self._lengths[name] += len(line)

    def _cut_back(self) -> None:
        """Leave in the files only what was committed, on disk."""
        for name in (USERS, STATUS, PASSWORDS):  # in this order no crash leaves a user without the password
            os.ftruncate(self._files[name].fileno(), self._lengths[name])
            os.fsync(self._files[name].fileno())
        self._uncommitted = False

    def _publish(self, user: User) -> None:
        self._users[user.id] = user
        self._by_skeleton[skeleton(user.name)] = user

    # Opening

    def _load(self) -> bytes:
        """Read and verify all three files, then repair the last two; return the torn last line of users.csv."""
        self._users, self._by_skeleton, self._passwords, self._online = {}, {}, {}, set()
        statuses: set[int] = set()

        def add_status(user_id: int, status: str) -> None:
            if status not in ("0", "1"):
                raise ValueError(f"status {status!r} is neither 0 nor 1")
            statuses.add(user_id)

        torn_user = _read(self._folder / USERS, self._add_user)
        torn_password = _read(self._folder / PASSWORDS, self._passwords.__setitem__)
        torn_status = _read(self._folder / STATUS, add_status)
        self._users = dict(sorted(self._users.items()))
        users, strays = self._users.keys(), self._passwords.keys() - self._users.keys()
        for name, fault, repair in (
            (USERS, torn_user, f"cut off a sign-up that was never finished: {torn_user!r}"),
            (PASSWORDS, torn_password, f"cut off a torn last line of {len(torn_password)} bytes"),
            (PASSWORDS, strays, f"removed {len(strays)} without a user"),
            (STATUS, torn_status, f"cut off a torn last line: {torn_status!r}"),
            (STATUS, statuses - users, f"removed {len(statuses - users)} without a user"),
            (STATUS, users - statuses, f"added {len(users - statuses)} that users lacked"),
        ):
            if fault:
                logger.warning("%s: %s", self._folder / name, repair)
        if torn_password or strays:
            self._passwords = {user_id: text for user_id, text in self._passwords.items() if user_id in users}
            _replace(self._folder / PASSWORDS, [_line(user_id, text) for user_id, text in self._passwords.items()])
        self._reset_status()
        return torn_user

    def _reset_status(self) -> None:
        """Let status.csv say that everyone is offline."""
        lines = [_line(user_id, "0") for user_id in self._users]
        path = self._folder / STATUS
        if not path.exists() or path.read_bytes() != b"".join(lines):  # a server that ended well starts on a full disk
            _replace(path, lines)
        ends = itertools.accumulate(len(line) for line in lines)
        self._status_offsets = {user_id: end - len("0\n") for user_id, end in zip(self._users, ends, strict=True)}

    def _add_user(self, user_id: int, name: str) -> None:
        if user_id > self._max_id:
            raise ValueError(f"user id {user_id} is above the highest id that this server can number ({self._max_id})")
        if user_id in self._users:
            raise ValueError(f"user id {user_id} is there twice")
        if (other := self.look_alike(name)) is not None:
            raise ValueError(f"name {name!r} is the same as, or looks like, that of user {other.id}")
        self._publish(User(user_id, name))


# Lines


def _line(user_id: int, text: str) -> bytes:
    """A line, LF included. Raises ValueError for a text that could not be read back."""
    quoted = '"' + text.replace('"', '""') + '"' if '"' in text or "," in text else text
    line = f"{user_id},{quoted}".encode()
    _parse(line)
    return line + b"\n"


def _parse(line: bytes) -> tuple[int, str]:
    """(user id, text) of a line without its LF. Raises ValueError, its text for whoever mends the file."""
    text = line.decode()
    if stray := [character for character in "\0\r\n" if character in text]:
        raise ValueError(f"{stray[0]!r} has no place in a line")
    try:
        fields = next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise ValueError(f"this is not CSV: {error}") from error
    if len(fields) != 2:
        raise ValueError(f"{len(fields)} fields instead of 2")
    user_id, value = fields
    if not (user_id.isascii() and user_id.isdecimal() and int(user_id) > 0):
        raise ValueError(f"user id {user_id!r} is not a number from 1 up")
    if not value:
        raise ValueError("nothing comes after the user id")
    return int(user_id), value


def _read(path: Path, add: Callable[[int, str], None]) -> bytes:
    """Pass each whole line to `add`, which raises ValueError for what makes no sense; return a torn last line.

    A line end in quotes is not read as CSV allows: none is ever written, and a quote left open by whoever edited the
    file would otherwise swallow all lines after it, to be cut off as torn. Raises DamagedFile.
    """
    *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines, start=1):
        try:
            add(*_parse(line))
        except ValueError as error:
            raise DamagedFile(path, number, str(error)) from error
    return torn


# Files


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _fsync_folder(folder.parent)


def _open(path: Path) -> FileIO:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    while data:  # a write may be short where the disk is nearly full
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _replace(path: Path, lines: list[bytes]) -> None:
    """Write a whole file so that a crash leaves either the old or the new one. The folder is left to be synced."""
    temporary = path.with_suffix(".tmp")
    with _open(temporary) as file:
        os.ftruncate(file.fileno(), 0)
        _write(file.fileno(), b"".join(lines), 0)
        os.fsync(file.fileno())
    temporary.replace(path)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
