"""`chats.db`: past chats and mailboxes in an SQLite file, which other programs may read meanwhile.

Each batch is one row. Few statements write many rows: the writing thread releases the interpreter's lock at each step
of a statement, and in a busy server it has to wait to get the lock back. It needs SQLite 3.33 or later.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import Any, Self

from chatstorage.chats import ChatRow, Chats
from chatstorage.files import fsync_folder, open_file
from chatstorage.interface import StorageError, StorageUnavailable

APPLICATION_ID = 0x43686174  # "Chat": what file(1) shows
VERSION = 1
BUSY_SECONDS = 5.0  # how long opening waits for a lock that another program holds
BUSY_AGAIN_SECONDS = 1.0  # ... and each later write, which can be tried again
PAGE_BYTES = 4096
CACHE_BYTES = 8 << 20  # of pages in memory; the prepared statements need 1 MiB more and keep 127 batches
CHECKPOINT_BYTES = 8 << 20  # of the -wal file; then SQLite moves it to the database and starts it again
ROWS_PER_STATEMENT = 64  # at most, and a power of two: so each statement has seven texts, all kept prepared
EXPORTED_AT_ONCE = 200  # rows: one long read would keep the -wal file from being reset
OVERSHOOT = 8  # a pair may exceed its bound by 1/8, so that not every commit has to delete

SCHEMA = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
    """
    CREATE TABLE batches (
        id INTEGER PRIMARY KEY,     -- the order over all
        sender INTEGER NOT NULL,
        receiver INTEGER NOT NULL,
        time INTEGER NOT NULL,      -- in seconds of Unix time
        count INTEGER NOT NULL,     -- of messages: one in any number of packets, or several of one packet each
        waiting INTEGER NOT NULL,   -- how many of the last ones are still to be delivered from the mailbox
        packets BLOB NOT NULL,      -- Message packets as the receiver gets them
        connection INTEGER NOT NULL,  -- of the sender: a number that no other has, or 0 if it asked for no receipts
        first INTEGER NOT NULL,     -- the number of the first message on that connection
        low INTEGER AS (min(sender, receiver)),
        high INTEGER AS (max(sender, receiver))
    )
    """,
    "CREATE INDEX batches_of_pair ON batches (low, high)",
    "CREATE INDEX mailbox ON batches (receiver, id, waiting) WHERE waiting > 0",
    """
    CREATE TABLE pairs (
        low INTEGER NOT NULL,
        high INTEGER NOT NULL,
        messages INTEGER NOT NULL,  -- that are kept, both ways: the triggers see to it
        PRIMARY KEY (low, high)
    ) WITHOUT ROWID
    """,
    """
    CREATE TRIGGER added AFTER INSERT ON batches BEGIN
        INSERT INTO pairs VALUES (new.low, new.high, new.count)
        ON CONFLICT (low, high) DO UPDATE SET messages = messages + excluded.messages;
    END
    """,
    """
    CREATE TRIGGER deleted AFTER DELETE ON batches BEGIN
        UPDATE pairs SET messages = messages - old.count WHERE low = old.low AND high = old.high;
    END
    """,
)

# {} stands for rows of parameters, "(?, ?), (?, ?)"
INSERT = "INSERT INTO batches (id, sender, receiver, time, count, waiting, packets, connection, first) VALUES {}"
SET_WAITING = """
WITH new (id, waiting) AS (VALUES {})
UPDATE batches SET waiting = new.waiting FROM new WHERE batches.id = new.id
"""
OVER_THE_BOUND = """
SELECT low, high, messages FROM pairs
WHERE messages > ? AND (low, high) IN (SELECT low, high FROM batches WHERE id IN (VALUES {}))
"""
TRIM = """
DELETE FROM batches WHERE id IN (
    SELECT id FROM (
        SELECT id, waiting, sum(count) OVER (ORDER BY id) AS gone FROM (
            SELECT id, waiting, count FROM batches WHERE low = :low AND high = :high ORDER BY id LIMIT :excess
        )
    ) WHERE gone <= :excess AND waiting = 0
)
"""
PAIRS_OF = "SELECT low, high FROM pairs WHERE low = :user OR high = :user"
REMOVE = ("DELETE FROM batches WHERE low = ? AND high = ?", "DELETE FROM pairs WHERE low = ? AND high = ?")
HIGHEST_ID = "SELECT ifnull(max(id), 0) FROM batches"
USERS = "SELECT low FROM pairs UNION SELECT high FROM pairs ORDER BY 1"
MAILBOX_SIZES = "SELECT receiver, sum(waiting) FROM batches WHERE waiting > 0 GROUP BY receiver"
LAST = """
SELECT id, sender, receiver, time, count, waiting, packets, connection, first FROM batches
WHERE low = min(:one, :other) AND high = max(:one, :other) ORDER BY id DESC LIMIT :count
"""
MAILBOX = """
SELECT id, sender, receiver, time, count, waiting, packets, connection, first FROM batches
WHERE waiting > 0 AND receiver = :receiver AND id > :after ORDER BY id
"""
EXPORT = """
SELECT id, sender, receiver, time, count, waiting, packets, connection, first FROM batches
WHERE id > :after ORDER BY id LIMIT :count
"""


class DamagedDatabase(StorageError):
    """A file that is not a database of chats, or not one for this version. It is left unchanged."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class ChatFile(Chats):
    """The database, open within a `with` block, for one thread at a time.

    Creates a missing file with mode 0600. Opening raises DamagedDatabase, StorageUnavailable, and OSError if the file
    cannot be created. Every call raises StorageUnavailable; its cause is the sqlite3.Error or the OSError. Opening
    waits up to BUSY_SECONDS for another program that writes. What a call writes is on disk when it returns.

    For each pair of users it keeps the last `history_messages` messages, the rest of the oldest batch, up to an eighth
    more, and what waits in a mailbox. The file does not shrink; free room is used again.
    """

    def __init__(self, path: Path, history_messages: int) -> None:
        self._path = path
        self._history_messages = history_messages
        self._connection: sqlite3.Connection
        self._files: dict[Path, os.stat_result] = {}
        self._ids: Iterator[int] = count(1)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if not self._path.exists():
            open_file(self._path).close()  # never an existing one: this process would lose its locks on it
        with ExitStack() as stack:
            self._connection = stack.enter_context(closing(_opened(self._path, "rw")))
            with _errors(self._path, "written"):
                _set_up(self._connection)
                real = self._path.resolve()
                self._files = {path: path.stat() for path in (real, real.with_name(f"{real.name}-wal"))}
                fsync_folder(real.parent)
            self._ids = count(self.highest_id() + 1)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def new_id(self) -> int:
        return next(self._ids)

    # Reading

    def highest_id(self) -> int:
        """0 if there is no batch."""
        with _errors(self._path, "read"):
            (highest,) = self._connection.execute(HIGHEST_ID).fetchone()
        return int(highest)

    def users(self) -> list[int]:
        with _errors(self._path, "read"):
            return [user for (user,) in self._connection.execute(USERS)]

    def mailbox_sizes(self) -> dict[int, int]:
        with _errors(self._path, "read"):
            return dict(self._connection.execute(MAILBOX_SIZES).fetchall())

    def last(self, one: int, other: int, count: int) -> list[ChatRow]:
        parameters = {"one": one, "other": other, "count": count}
        return self._take(LAST, parameters, lambda row: row.count, count)[::-1]

    def mailbox(self, receiver: int, after: int, max_bytes: int) -> list[ChatRow]:
        parameters = {"receiver": receiver, "after": after}
        return self._take(MAILBOX, parameters, lambda row: len(row.packets), max_bytes)

    def _take(
        self, query: str, parameters: dict[str, int], size: Callable[[ChatRow], int], enough: int
    ) -> list[ChatRow]:
        """The first rows, until their sizes add up to `enough`."""
        rows = []
        with _errors(self._path, "read"), closing(self._connection.execute(query, parameters)) as found:
            for row in map(ChatRow._make, found):
                rows.append(row)
                enough -= size(row)
                if enough <= 0:
                    break
        return rows

    # Writing

    def write(self, new: Sequence[ChatRow], waiting: Mapping[int, int]) -> None:
        """All or nothing. The ids of `new` must be new; here more messages may wait than before."""
        with self._transaction():
            self._run(INSERT, new)
            self._run(SET_WAITING, [*waiting.items()])
            self._trim([(batch,) for batch in chain((row.id for row in new), waiting)])

    def remove(self, user: int) -> None:
        """Also overwrites the bytes in the file.

        The -wal file may hold them longer, until it is reset or the database is closed.
        """
        with self._transaction():
            self._connection.execute("PRAGMA secure_delete = ON")
            try:
                pairs = self._connection.execute(PAIRS_OF, {"user": user}).fetchall()
                for statement in REMOVE:
                    self._connection.executemany(statement, pairs)
            finally:
                self._connection.execute("PRAGMA secure_delete = FAST")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Everything done within is on disk at the end, or nothing is."""
        with _errors(self._path, "written"):
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._check_files()
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.rollback()
                raise

    def _check_files(self) -> None:
        """Raises FileNotFoundError: SQLite itself would go on writing to a deleted file."""
        for path, opened in self._files.items():
            if not os.path.samestat(path.stat(), opened):
                raise FileNotFoundError(f"{path} is no longer the file that was opened")

    def _trim(self, touched: list[tuple[int]]) -> None:
        """Apply the bound to the pairs of these batches. A deleted batch has as many newer messages as are kept."""
        bound = self._history_messages
        for low, high, kept in set(self._run(OVER_THE_BOUND, touched, bound + bound // OVERSHOOT)):
            self._connection.execute(TRIM, {"low": low, "high": high, "excess": kept - bound})

    def _run(self, statement: str, rows: Sequence[tuple[Any, ...]], *before: int) -> list[tuple[Any, ...]]:
        """Run a statement for these rows, 2^n at once, after the `before` parameters; returns the rows it finds."""
        found = []
        start = 0
        while left := len(rows) - start:
            count = 1 << min(left, ROWS_PER_STATEMENT).bit_length() - 1
            parameters = [*before, *chain.from_iterable(rows[start : start + count])]
            found += self._connection.execute(_for_rows(statement, count, len(rows[0])), parameters).fetchall()
            start += count
        return found


@cache
def _for_rows(statement: str, count: int, columns: int) -> str:
    row = ", ".join("?" * columns)
    return statement.format(", ".join([f"({row})"] * count))


def _set_up(connection: sqlite3.Connection) -> None:
    for setting in (
        f"page_size = {PAGE_BYTES}",
        "journal_mode = WAL",
        "synchronous = FULL",
        f"wal_autocheckpoint = {CHECKPOINT_BYTES // PAGE_BYTES}",
        f"journal_size_limit = {2 * CHECKPOINT_BYTES}",
        f"cache_size = -{CACHE_BYTES >> 10}",
        "temp_store = MEMORY",
        "secure_delete = FAST",
        f"busy_timeout = {round(BUSY_AGAIN_SECONDS * 1000)}",
    ):
        connection.execute(f"PRAGMA {setting}")
    connection.execute("BEGIN IMMEDIATE")  # fails here if the file may not be written
    if _is_empty(connection):
        for statement in SCHEMA:
            connection.execute(statement)
    connection.execute("COMMIT")


# For an operator, with or without a server that has the file open


def export(path: Path) -> Iterator[ChatRow]:
    """All batches, by id. Read in parts: a batch written meanwhile may be included, and a deleted one missing.

    Raises DamagedDatabase, StorageUnavailable, and OSError if there is no such file.
    """
    after = 0
    with closing(_opened(path, "ro")) as connection:
        while not _is_empty(connection):
            with _errors(path, "read"):
                rows = connection.execute(EXPORT, {"after": after, "count": EXPORTED_AT_ONCE}).fetchall()
            if not rows:
                break
            yield from map(ChatRow._make, rows)
            after = rows[-1][0]


def copy(source: Path, target: Path) -> None:
    """Copy the database as of one moment: whole and on disk, or not at all. Replaces an existing target.

    Raises DamagedDatabase, StorageUnavailable, and OSError if there is no such file.
    """
    temporary = target.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    try:
        with closing(_opened(source, "ro")) as original, _errors(source, f"copied to {target}"):
            open_file(temporary).close()
            with closing(_connect(temporary, "rw")) as copied:
                copied.execute("PRAGMA journal_mode = OFF")
                copied.execute("PRAGMA synchronous = OFF")
                original.backup(copied)
            with open_file(temporary) as file:
                os.fsync(file.fileno())
            temporary.replace(target)
            fsync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


# Connections


def _opened(path: Path, mode: str) -> sqlite3.Connection:
    """Connect to a database of chats, or to an empty file.

    Raises DamagedDatabase, StorageUnavailable, and OSError if there is no such file.
    """
    path.stat()
    with _errors(path, "opened"), ExitStack() as stack:
        connection = stack.enter_context(closing(_connect(path, mode)))
        try:
            _verify(connection, path)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            raise DamagedDatabase(path, str(error)) from error
        stack.pop_all()
    return connection


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,  # transactions begin explicitly
        check_same_thread=False,
    )


def _verify(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application == 0 and _is_empty(connection):
        return
    if application != APPLICATION_ID:
        raise DamagedDatabase(path, "this database belongs to another program")
    if version != VERSION:
        raise DamagedDatabase(path, f"this database has version {version}; this program knows only version {VERSION}")
    connection.execute(HIGHEST_ID).fetchone()


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None


@contextmanager
def _errors(path: Path, done: str) -> Iterator[None]:
    """Turn an error of the file into StorageUnavailable; not a programming error (an id stored twice)."""
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(f"{path} cannot be {done}: {error}") from error
    except sqlite3.DatabaseError as error:
        if not isinstance(error, sqlite3.OperationalError) and not _is_damage(error):
            raise
        raise StorageUnavailable(f"{path} cannot be {done}: {error}") from error


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
