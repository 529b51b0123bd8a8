"""Users, password hashes and who is online: the `Storage` interface, and its database of plain CSV files.

Memory answers the look-ups. What survives a restart is on disk before a call returns, and before a look-up can see it.
Names and hashes are opaque here; other modules decide who may have which. One rule is kept here: two names that look
alike cannot both sign up.
"""

import fcntl
import itertools
import logging
import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from typing import Self, TypeAlias

from chatstorage.files import fsync_folder, make_folder, open_file, replace, write
from chatstorage.interface import (
    DamagedFile,
    FolderInUse,
    MissingFile,
    NameTaken,
    Storage,
    StorageError,
    StorageUnavailable,
    User,
    UserLimitReached,
)
from chatstorage.lines import end_line, line, read_lines
from chatstorage.names import looks, skeleton

__all__ = [
    "CsvStorage",
    "DamagedFile",
    "FolderInUse",
    "MissingFile",
    "NameTaken",
    "Storage",
    "StorageError",
    "StorageUnavailable",
    "User",
    "UserLimitReached",
]

USERS = "users.csv"
PASSWORDS = "passwords.csv"
STATUS = "status.csv"
CHATS = "chats.db"  # in the same folder, but written by chatstorage/chat_file.py
LOCK = "lock"

Mark: TypeAlias = tuple[int, int, int, int]  # device, inode, size, time of the last change in nanoseconds

logger = logging.getLogger("storage")


class CsvStorage(Storage):
    """Three files in `folder`, in UTF-8; each line ends in LF and is quoted where RFC 4180 requires it.

    users.csv      UserID,Username       appended to; a whole line here is what makes a sign-up
    passwords.csv  UserID,argon2id hash  appended to; the last line of an id counts
    status.csv     UserID,Status         1 online, 0 offline; one byte overwritten in place

    The line "7," removes user 7 in users.csv, and the password of user 7 in passwords.csv. The next opening erases
    everything else about a removed user from the disk; only the fact that the id was used remains.

    Creates a missing folder (mode 0700) or file (0600). Opening repairs what a crash can leave, and logs a warning: a
    last line without its LF never happened; a password without a user must not pass to the next user with that id.

    Opening raises FolderInUse; DamagedFile for any other invalid line; MissingFile if there are users and no
    passwords.csv, unless the accounts are meant to be open; and OSError if the folder cannot be made, read or written.
    """

    def __init__(self, folder: Path, max_users: int, max_id: int, open_accounts: bool = False) -> None:
        """`max_id` is the highest id that the id width can number. `open_accounts`: nobody has a password any more if
        passwords.csv is missing.
        """
        self._folder = folder
        self._max_users = max_users
        self._max_id = max_id
        self._open_accounts = open_accounts
        self._users: dict[int, User] = {}  # by ascending id
        self._removed: dict[int, bool] = {}  # at the opening: whether the name is still in the file, by id
        self._highest_id = 0  # of those ever given
        self._by_look: dict[str, User] = {}  # each of the name's looks
        self._passwords: dict[int, str] = {}
        self._online: set[int] = set()
        self._status_offsets: dict[int, int] = {}
        self._files: dict[str, FileIO] = {}
        self._lengths: dict[str, int] = {}  # committed bytes, by file
        self._marks: dict[str, Mark] = {}  # by which a change by another program is noticed, by file
        self._uncommitted = False  # the files may have bytes beyond these lengths
        self._open_files = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            make_folder(self._folder)
            self._lock(stack)
            torn_user = self._load()
            self._files = {
                name: stack.enter_context(open_file(self._folder / name)) for name in (PASSWORDS, STATUS, USERS)
            }
            fsync_folder(self._folder)
            self._lengths = {name: os.fstat(file.fileno()).st_size for name, file in self._files.items()}
            self._lengths[USERS] -= len(torn_user)
            self._cut_back()  # also for its fsync: a killed server may have left whole lines that are not on disk
            self._remember(self._files)
            self._open_files = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open_files.close()

    def _lock(self, stack: ExitStack) -> None:
        """Keep other servers out of the folder, until the stack is closed. Raises FolderInUse.

        The folder itself is locked, too: somebody may take the lock file for a leftover and delete it.
        """
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, folder)
        stack.callback(fcntl.flock, folder, fcntl.LOCK_UN)  # at once: where gevent closes, it does so a little later
        for opened in (stack.enter_context(open_file(self._folder / LOCK)).fileno(), folder):
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderInUse(self._folder) from None
            except OSError:
                if opened != folder:  # which some network file systems cannot lock
                    raise

    # Look-ups

    def users(self) -> list[User]:
        return list(self._users.values())

    def count(self) -> int:
        return len(self._users)

    def find(self, name: str) -> User | None:
        user = self._by_look.get(skeleton(name))
        return user if user is not None and user.name == name else None

    def is_user(self, user_id: int) -> bool:
        return user_id in self._users

    def look_alike(self, name: str) -> User | None:
        return next((user for look in looks(name) if (user := self._by_look.get(look))), None)

    def password_hash(self, user_id: int) -> str | None:
        return self._passwords.get(user_id)

    def is_online(self, user_id: int) -> bool:
        return user_id in self._online

    def check_sign_up(self, name: str) -> None:
        if self.look_alike(name) is not None:
            raise NameTaken(name)
        if len(self._users) >= self._max_users or self._highest_id >= self._max_id:
            raise UserLimitReached(name)

    def committed(self) -> dict[str, int]:
        self._check_unchanged(self._files)
        return {name: self._lengths[name] for name in (PASSWORDS, STATUS, USERS)}

    # Writing

    def sign_up(self, name: str, password_hash: str | None) -> User:
        self.check_sign_up(name)
        user = User(self._highest_id + 1, name)
        lines = {STATUS: line(user.id, "0"), USERS: line(user.id, name)}  # users.csv last: it is the commit
        if password_hash is not None:
            lines = {PASSWORDS: line(user.id, password_hash), **lines}
        self._append(lines)
        self._status_offsets[user.id] = self._lengths[STATUS] - len("0\n")
        if password_hash is not None:
            self._passwords[user.id] = password_hash
        self._highest_id = user.id
        self._publish(user)
        return user

    def remove(self, user_id: int) -> None:
        name = self._users[user_id].name
        self._append({USERS: end_line(user_id)})
        self._forget(name)  # first, so that nobody finds a user without the password
        del self._users[user_id]
        del self._status_offsets[user_id]
        self._online.discard(user_id)
        self._passwords.pop(user_id, None)

    def set_password(self, user_id: int, password_hash: str | None) -> None:
        if user_id not in self._users:
            raise KeyError(user_id)
        if password_hash is not None:
            self._append({PASSWORDS: line(user_id, password_hash)})
            self._passwords[user_id] = password_hash
        elif user_id in self._passwords:
            self._append({PASSWORDS: end_line(user_id)})
            del self._passwords[user_id]

    def set_status(self, user_id: int, online: bool) -> None:
        offset = self._status_offsets[user_id]
        self._check_unchanged([STATUS])
        try:
            os.pwrite(self._files[STATUS].fileno(), b"1" if online else b"0", offset)
            self._remember([STATUS])
        except OSError as error:
            raise StorageUnavailable(f"{self._folder / STATUS} cannot be written: {error}") from error
        (self._online.add if online else self._online.discard)(user_id)

    def _append(self, lines: dict[str, bytes]) -> None:
        """Append one line to each of these files, each on disk before the next one begins: all or none."""
        self._check_unchanged(self._files)
        try:
            if self._uncommitted:
                self._cut_back()
            self._uncommitted = True
            for name, line in lines.items():
                write(self._files[name].fileno(), line, self._lengths[name])
                os.fsync(self._files[name].fileno())
        except OSError as error:
            with suppress(OSError):  # the next append tries again, before it writes
                self._cut_back()
            raise StorageUnavailable(f"{self._folder} cannot be written: {error}") from error
        finally:
            self._remember(self._files)
        self._uncommitted = False
        for name, line in lines.items():
            self._lengths[name] += len(line)

    def _check_unchanged(self, names: Iterable[str]) -> None:
        """Raises StorageUnavailable if another program has changed, replaced or deleted one of these files.

        What it wrote, nobody here knows; what would be written here, nobody would find there.
        """
        for name in names:
            path = self._folder / name
            try:
                is_unchanged = _mark_of(path.stat()) == self._marks[name]
            except OSError:
                is_unchanged = False
            if not is_unchanged:
                raise StorageUnavailable(
                    f"{path} was changed by another program: a restart of the server reads it again"
                )

    def _remember(self, names: Iterable[str]) -> None:
        """These files are as this process has left them."""
        for name in names:
            self._marks[name] = _mark_of(os.fstat(self._files[name].fileno()))

    def _cut_back(self) -> None:
        """Truncate the files to what was committed, on disk."""
        for name in (USERS, STATUS, PASSWORDS):  # in this order, no crash leaves a user without the password
            os.ftruncate(self._files[name].fileno(), self._lengths[name])
            os.fsync(self._files[name].fileno())
        self._uncommitted = False

    def _publish(self, user: User) -> None:
        self._users[user.id] = user
        own, *others = looks(user.name)
        self._by_look[own] = user
        for look in others:
            self._by_look.setdefault(look, user)  # users from before this rule may share one

    def _forget(self, name: str) -> None:
        user = self._by_look[skeleton(name)]
        for look in looks(name):
            if self._by_look.get(look) is user:
                del self._by_look[look]

    # Opening

    def _load(self) -> bytes:
        """Read and verify all three files, then repair them; returns a torn last line that is still in users.csv."""
        self._users, self._by_look, self._passwords, self._online = {}, {}, {}, set()
        self._removed, statuses = {}, set[int]()

        def add_status(user_id: int, status: str) -> None:
            if status not in ("0", "1"):
                raise ValueError(f"status {status!r} is neither 0 nor 1")
            statuses.add(user_id)

        torn_user = read_lines(self._folder / USERS, self._add_user)
        torn_password = read_lines(self._folder / PASSWORDS, self._add_password)
        torn_status = read_lines(self._folder / STATUS, add_status)
        if self._users and not self._open_accounts and not (self._folder / PASSWORDS).exists():
            raise MissingFile(
                f"{self._folder / PASSWORDS} is missing, and without it every account is open: bring it back, or start "
                "the server once with --open-accounts"
            )
        self._users = dict(sorted(self._users.items()))
        self._highest_id = max((*self._users, *self._removed), default=0)
        users, known = self._users.keys(), self._users.keys() | self._removed.keys()
        strays = self._passwords.keys() - users
        for name, fault, repair in (
            (USERS, torn_user, f"removed an unfinished last line: {torn_user!r}"),
            (PASSWORDS, torn_password, f"removed a torn last line of {len(torn_password)} bytes"),
            (PASSWORDS, strays - known, f"removed lines without a user: {len(strays - known)}"),
            (STATUS, torn_status, f"removed a torn last line: {torn_status!r}"),
            (STATUS, statuses - known, f"removed lines without a user: {len(statuses - known)}"),
            (STATUS, users - statuses, f"added missing lines: {len(users - statuses)}"),
        ):
            if fault:
                logger.warning("%s: %s", self._folder / name, repair)
        if torn_password or strays:
            self._passwords = {user_id: text for user_id, text in self._passwords.items() if user_id in users}
            replace(self._folder / PASSWORDS, [line(user_id, text) for user_id, text in self._passwords.items()])
        self._reset_status()
        if any(self._removed.values()):
            names = [line(user.id, user.name) for user in self._users.values()]
            replace(self._folder / USERS, [*map(end_line, sorted(self._removed)), *names])
            return b""
        return torn_user

    def _reset_status(self) -> None:
        """Write that all users are offline into status.csv."""
        lines = [line(user_id, "0") for user_id in self._users]
        path = self._folder / STATUS
        if not path.exists() or path.read_bytes() != b"".join(
            lines
        ):  # unchanged after a clean stop, so that a full disk does not prevent a start
            replace(path, lines)
        ends = itertools.accumulate(map(len, lines))
        self._status_offsets = {user_id: end - len("0\n") for user_id, end in zip(self._users, ends, strict=True)}

    def _add_user(self, user_id: int, name: str) -> None:
        if user_id > self._max_id:
            raise ValueError(f"user id {user_id} is above the highest id that this server can number ({self._max_id})")
        if user_id in self._removed:
            raise ValueError(f"user id {user_id} was removed in an earlier line")
        if not name:
            user = self._users.pop(user_id, None)
            self._removed[user_id] = user is not None
            if user:
                self._forget(user.name)
            return
        if user_id in self._users:
            raise ValueError(f"user id {user_id} appears twice")
        other = self._by_look.get(skeleton(name))
        if other is not None and skeleton(other.name) == skeleton(name):
            raise ValueError(f"name {name!r} is the same as, or looks like, that of user {other.id}")
        self._publish(User(user_id, name))

    def _add_password(self, user_id: int, password_hash: str) -> None:
        if password_hash:
            self._passwords[user_id] = password_hash
        elif self._passwords.pop(user_id, None) is None:  # a damaged hash must not open the account to everyone
            raise ValueError(f"the line removes the password of user {user_id}, who has none")


def _mark_of(found: os.stat_result) -> Mark:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
