"""Copies a whole database from the files of one server into Redis, for a group, and back.

It leaves the source unchanged. The target is marked as unfinished until it is whole: in Redis no server starts on it,
and in a folder users.csv comes last. A migration that finds such a mark starts again, so that it may be interrupted at
any moment and repeated.
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
from chatstorage.interface import FolderInUse, StorageError, User
from chatstorage.lines import end_line, line, read_lines
from chatstorage.names import skeleton
from cluster.chats import RedisChats
from cluster.engine import Argument, Engine, Script
from storage import CHATS, LOCK, PASSWORDS, STATUS, USERS, CsvStorage

BEGIN, STILL, END = Script("begin_migration"), Script("still_migrating"), Script("end_migration")

HIGHEST_ID = 2**32 - 1
EVERYTHING = 2**48  # messages of each pair: keep all
AT_ONCE = 1000  # users, or rows
GONE_MS = 60_000  # so long after its lease, a paused node may come back

UNFINISHED = "unfinished"  # the file that marks a folder
PARTS = {CHATS, f"{CHATS}-wal", f"{CHATS}-shm", PASSWORDS, STATUS}
PARTS |= {Path(name).with_suffix(".tmp").name for name in (PASSWORDS, STATUS, USERS)}  # as chatstorage.files has them

Say = Callable[[str], object]  # how far it is


class CannotMigrate(StorageError):
    """The migration failed; the text says why."""


@dataclass(frozen=True)
class MigratedDatabase:
    """A whole database, as the migration sees it."""

    users: list[User]
    passwords: dict[int, str]
    last_id: int  # the highest id ever given
    rows: Callable[[], Iterator[ChatRow]]


class Mark:
    """A mark on a database in Redis: no node joins, and of several migrations only the latest goes on."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._token = secrets.token_hex(8)

    def set(self, direction: str) -> str:
        """Set it, to go "in" or "out"; returns what is there: "empty", "half" or "whole". Raises CannotMigrate."""
        found: str = self._engine.run(BEGIN, self._token, direction, GONE_MS).decode()
        if found == "running":
            raise CannotMigrate(f"servers of the group {self._engine.prefix} are running; stop them first")
        return found

    def check(self) -> None:
        """Raises CannotMigrate if the mark is no longer ours."""
        if not self._engine.run(STILL, self._token):
            raise CannotMigrate("another migration has begun meanwhile")

    def end(self, written: MigratedDatabase) -> None:
        """Remove it: the database is whole. Raises CannotMigrate."""
        counts = (len(written.users), len(written.passwords), written.last_id)
        if not self._engine.run(END, self._token, *counts):
            raise CannotMigrate("the database was changed during the migration; run it again")

    @contextmanager
    def while_reading(self) -> Iterator[None]:
        """Keep the mark while reading, then remove it."""
        try:
            yield
        finally:
            with suppress(StorageError):  # the mark expires by itself
                self._engine.run(END, self._token)


def carry(folder: Path, engine: Engine, say: Say) -> str:
    """Copy the database in this folder into Redis; returns a summary for the operator.

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
                    raise CannotMigrate(f"there is half of another database, with the user {stranger.name}")
        messages = _write_redis(engine, source, mark, say)
        mark.end(source)
    return _carried(source, messages)


def carry_back(engine: Engine, folder: Path, say: Say) -> str:
    """Copy the database in Redis into this folder, which it creates; otherwise as `carry`."""
    mark = Mark(engine)
    match mark.set("out"):
        case "empty":
            raise CannotMigrate(f"there is no database of a group {engine.prefix}; --redis-prefix says which")
        case "half":
            raise CannotMigrate("a migration to Redis was interrupted: run it again first")
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
    """A user who cannot have come from this source, even if that has been in use since."""
    names = {user.id: user.name for user in source.users}
    for user in target.users:
        if names.get(user.id, user.name) != user.name or user.id > source.last_id:
            return user
    return None


def _carried(source: MigratedDatabase, messages: int) -> str:
    return f"copied {len(source.users)} users, {len(source.passwords)} passwords and {messages} messages"


def _compare(source: MigratedDatabase, target: MigratedDatabase, mark: Mark, say: Say, place: str) -> str:
    """A whole database in the target must equal the source: then an earlier migration finished unnoticed."""
    if (source.users, source.passwords, source.last_id) == (target.users, target.passwords, target.last_id):
        prints = []
        for database in (source, target):
            total = 0  # a sum, since the two orders differ
            for rows in _in_parts(database, mark, say):
                total += sum(int.from_bytes(sha256(repr(row).encode()).digest()) for row in rows)
            prints.append(total)
        if prints[0] == prints[1]:
            return f"nothing to copy: {place} already has all of it"
    raise CannotMigrate(f"{place} already has another database")


def _in_parts(database: MigratedDatabase, mark: Mark, say: Say) -> Iterator[list[ChatRow]]:
    """All rows, as long as the mark is ours."""
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
    return {int(user_id): text.decode() for page in engine.scan(name) for user_id, text in page.items()}


def _write_redis(engine: Engine, source: MigratedDatabase, mark: Mark, say: Say) -> int:
    """Replace whatever is there; returns the number of messages."""
    chats = RedisChats(engine, EVERYTHING)
    chats.clear()
    engine.call("UNLINK", *map(engine.key, ("users", "names", "looks", "passwords", "last-id")))
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
    """Leaves out chats of removed users, which the next start of a server erases."""
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
    """A locked folder, empty except for the mark of an unfinished migration. Raises CannotMigrate, FolderInUse."""
    _check_free(folder)
    make_folder(folder)
    with open_file(folder / LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(folder) from None
        _check_free(folder)  # again, now that it is locked
        replace(folder / UNFINISHED, [b"python admin.py migrate --back was interrupted: run it again\n"])
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
    """Write all files; returns the number of messages."""
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
