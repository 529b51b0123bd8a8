"""Carries a whole database from the files of one server into Redis, for a group, and back.

What it reads it leaves as it is. What it writes is marked as unfinished until it is whole: no server starts on it in
Redis, and in a folder users.csv comes last. Whoever finds such a mark begins anew, so that it may be broken off at any
moment and run again.
"""

import fcntl
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path

from chatstorage.chat_file import ChatFile, export
from chatstorage.chats import ChatRow
from chatstorage.files import fsync_folder, make_folder, open_file, replace
from chatstorage.interface import FolderInUse, StorageError, User, skeleton
from chatstorage.lines import end_line, line, read_lines
from cluster.chats import RedisChats
from cluster.engine import Argument, Engine, Script
from storage import CHATS, LOCK, PASSWORDS, STATUS, USERS, CsvStorage

BEGIN, STILL, END = Script("begin_migration"), Script("still_migrating"), Script("end_migration")

HIGHEST_ID = 2**32 - 1
EVERYTHING = 2**48  # messages of each pair: none goes
AT_ONCE = 1000  # users, or rows
GONE_MS = 60_000  # after its lease a node that stood still may come back

UNFINISHED = "unfinished"  # the file that marks a folder
PARTS = {CHATS, f"{CHATS}-wal", f"{CHATS}-shm", PASSWORDS, STATUS}
PARTS |= {Path(name).with_suffix(".tmp").name for name in (PASSWORDS, STATUS, USERS)}  # as chatstorage.files has them

Say = Callable[[str], object]  # how far it is


class CannotMigrate(StorageError):
    """Why nothing, or not everything, was carried."""


@dataclass(frozen=True)
class MigratedDatabase:
    """All that there is to carry."""

    users: list[User]
    passwords: dict[int, str]
    last_id: int  # that was ever given
    rows: Callable[[], Iterator[ChatRow]]


class Mark:
    """On a database in Redis: no node joins, and the last one of several migrations goes on, alone."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._token = secrets.token_hex(8)

    def set(self, direction: str) -> str:
        """To go "in" or "out"; what was there: an "empty", "half" or "whole" database. Raises CannotMigrate."""
        found: str = self._engine.run(BEGIN, self._token, direction, GONE_MS).decode()
        if found == "running":
            raise CannotMigrate(f"servers of the group {self._engine.prefix} are running; stop them first")
        return found

    def check(self) -> None:
        """It is there still. Raises CannotMigrate."""
        if not self._engine.run(STILL, self._token):
            raise CannotMigrate("another admin.py migrate has begun meanwhile")

    def end(self, written: MigratedDatabase) -> None:
        """This is all there now. Raises CannotMigrate."""
        counts = (len(written.users), len(written.passwords), written.last_id)
        if not self._engine.run(END, self._token, *counts):
            raise CannotMigrate("somebody else has changed what was written; run it again")

    @contextmanager
    def while_reading(self) -> Iterator[None]:
        """And no longer."""
        try:
            yield
        finally:
            with suppress(StorageError):  # it goes by itself
                self._engine.run(END, self._token)


def carry(folder: Path, engine: Engine, say: Say) -> str:
    """The database in this folder into Redis; returns what was carried, for the operator.

    Raises StorageError: CannotMigrate, FolderInUse, StorageUnavailable and so on; OSError.
    """
    mark = Mark(engine)
    with CsvStorage(folder, HIGHEST_ID, HIGHEST_ID) as storage:
        source, target = _in_folder(folder, storage), _in_redis(engine)
        match mark.set("in"):
            case "whole":
                with mark.while_reading():
                    return _compare(source, target, mark, say, f"the group {engine.prefix}")
            case "half":
                if stranger := _stranger(source, target):
                    raise CannotMigrate(f"half of another database is in the way, with {stranger.name}")
        messages = _write_redis(engine, source, mark, say)
        mark.end(source)
    return _carried(source, messages)


def carry_back(engine: Engine, folder: Path, say: Say) -> str:
    """The database in Redis into this folder, which is made; the rest as in `carry`."""
    mark = Mark(engine)
    match mark.set("out"):
        case "empty":
            raise CannotMigrate(f"there is no database of a group {engine.prefix}; --redis-prefix says which")
        case "half":
            raise CannotMigrate("a migration to Redis was broken off: run it again first")
    with mark.while_reading():
        source = _in_redis(engine)
        if (folder / USERS).exists():
            with CsvStorage(folder, HIGHEST_ID, HIGHEST_ID) as storage:
                compared = _compare(source, _in_folder(folder, storage), mark, say, str(folder))
            (folder / UNFINISHED).unlink(missing_ok=True)
            return compared
        with _new_folder(folder):
            return _carried(source, _write_folder(folder, source, mark, say))


def _id(user: User) -> int:
    return user.id


def _stranger(source: MigratedDatabase, target: MigratedDatabase) -> User | None:
    """Who cannot have been carried from this source, also where that has been in use since."""
    names = {user.id: user.name for user in source.users}
    for user in target.users:
        if names.get(user.id, user.name) != user.name or user.id > source.last_id:
            return user
    return None


def _carried(source: MigratedDatabase, messages: int) -> str:
    return f"carried {len(source.users)} users, {len(source.passwords)} passwords and {messages} messages"


def _compare(source: MigratedDatabase, target: MigratedDatabase, mark: Mark, say: Say, place: str) -> str:
    """Where there is a whole database already it must be this one, from a migration that was not told to be done."""
    if (source.users, source.passwords, source.last_id) == (target.users, target.passwords, target.last_id):
        prints = []
        for database in (source, target):
            total = 0  # a sum, as the two do not come in the same order
            for rows in _in_parts(database, mark, say):
                total += sum(int.from_bytes(sha256(repr(row).encode()).digest()) for row in rows)
            prints.append(total)
        if prints[0] == prints[1]:
            return f"nothing to carry: all of it is in {place} already"
    raise CannotMigrate(f"there is a database in {place} already, and not this one")


def _in_parts(database: MigratedDatabase, mark: Mark, say: Say) -> Iterator[list[ChatRow]]:
    """All rows, as long as nobody else interferes."""
    rows, done = database.rows(), 0
    while part := list(islice(rows, AT_ONCE)):
        mark.check()
        yield part
        done += sum(row.count for row in part)
        say(f"{done} messages")


# Redis


def _in_redis(engine: Engine) -> MigratedDatabase:
    return MigratedDatabase(
        [User(user_id, name) for user_id, name in sorted(_hash(engine, "users").items())],
        _hash(engine, "passwords"),
        int(engine.call("GET", engine.key("last-id")) or 0),
        RedisChats(engine, EVERYTHING).export,
    )


def _hash(engine: Engine, name: str) -> dict[int, str]:
    found: dict[int, str] = {}
    cursor = 0
    while True:
        cursor, page = engine.call("HSCAN", engine.key(name), cursor, "COUNT", AT_ONCE)
        found |= {int(user_id): text.decode() for user_id, text in page.items()}
        if not int(cursor):
            return found


def _write_redis(engine: Engine, source: MigratedDatabase, mark: Mark, say: Say) -> int:
    """In place of whatever is there; how many messages it was."""
    chats = RedisChats(engine, EVERYTHING)
    chats.clear()
    engine.call("UNLINK", *map(engine.key, ("users", "names", "passwords", "last-id")))
    for start in range(0, len(source.users), AT_ONCE):
        mark.check()
        users = source.users[start : start + AT_ONCE]
        fields: dict[str, list[tuple[Argument, Argument]]] = {
            "users": [(user.id, user.name) for user in users],
            "names": [(skeleton(user.name), user.id) for user in users],
            "passwords": [(user.id, source.passwords[user.id]) for user in users if user.id in source.passwords],
        }
        for name, pairs in fields.items():
            if pairs:
                engine.call("HSET", engine.key(name), *chain.from_iterable(pairs))
        say(f"{start + len(users)} of {len(source.users)} users")
    messages = 0
    for rows in _in_parts(source, mark, say):
        chats.write(rows, {})
        messages += sum(row.count for row in rows)
    return messages


# A folder


def _in_folder(folder: Path, storage: CsvStorage) -> MigratedDatabase:
    """Without chats of users who have been removed, which the next start of a server erases."""
    users = storage.users()
    passwords = {user.id: text for user in users if (text := storage.password_hash(user.id)) is not None}
    known, ids = {user.id for user in users}, [0]
    read_lines(folder / USERS, lambda user_id, _: ids.append(user_id))

    def rows() -> Iterator[ChatRow]:
        if (folder / CHATS).exists():
            with ChatFile(folder / CHATS, EVERYTHING):  # an export alone would leave files beside it
                yield from (row for row in export(folder / CHATS) if {row.sender, row.receiver} <= known)

    return MigratedDatabase(users, passwords, max(ids), rows)


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Empty but for the mark of an unfinished one, and ours alone. Raises CannotMigrate, FolderInUse."""
    _check_free(folder)
    make_folder(folder)
    with open_file(folder / LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(folder) from None
        _check_free(folder)  # nobody can come any more
        replace(folder / UNFINISHED, [b"python admin.py migrate --back was broken off: run it again\n"])
        fsync_folder(folder)
        for name in PARTS:
            (folder / name).unlink(missing_ok=True)
        yield
        (folder / UNFINISHED).unlink()
        fsync_folder(folder)


def _check_free(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()} if folder.exists() else set[str]()
    others = names - {LOCK, UNFINISHED, f"{UNFINISHED}.tmp"} - (PARTS if UNFINISHED in names else set())
    if others:
        raise CannotMigrate(f"{folder} is not empty")


def _write_folder(folder: Path, source: MigratedDatabase, mark: Mark, say: Say) -> int:
    """How many messages it was."""
    messages = 0
    with ChatFile(folder / CHATS, EVERYTHING) as chats:
        for rows in _in_parts(source, mark, say):
            chats.write(rows, {})
            messages += sum(row.count for row in rows)
    replace(folder / PASSWORDS, [line(user_id, text) for user_id, text in sorted(source.passwords.items())])
    replace(folder / STATUS, [line(user.id, "0") for user in source.users])
    fsync_folder(folder)
    mark.check()
    given = [] if source.last_id in {0, *map(_id, source.users)} else [end_line(source.last_id)]
    replace(folder / USERS, [*given, *(line(user.id, user.name) for user in source.users)])
    fsync_folder(folder)
    return messages
