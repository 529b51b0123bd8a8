"""chats.db: what its calls do beyond test_chats_contract.py, what it costs, and who may read along.

What crashes, damaged files and failing disks do is in test_chats_failures.py.
"""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import gevent
import pytest

from chatstorage import chat_file as module
from chatstorage.chat_file import ChatFile, DamagedDatabase, copy, export
from chatstorage.chats import ChatRow, messages
from protocol import Envelope
from testkit.processes import DEADLINE

ALICE, BOB, CAROL = 1, 2, 3
WRAP = {user: Envelope(name).wrap for user, name in ((ALICE, "alice"), (BOB, "bob"), (CAROL, "carol"))}
NOW = 1_700_000_000


def batch(number: int, sender: int, receiver: int, *texts: str, waiting: int = 0) -> ChatRow:
    """A row with these messages, one packet each."""
    packets = b"".join(WRAP[sender](text.encode()) for text in texts)
    return ChatRow(number, sender, receiver, NOW + number, len(texts), waiting, packets)


def single(number: int, sender: int, receiver: int, waiting: int = 0) -> ChatRow:
    """A row with one message that tells its number."""
    return batch(number, sender, receiver, f"text {number}", waiting=waiting)


def everything(path: Path) -> list[ChatRow]:
    return list(export(path))


def ids(rows: list[ChatRow]) -> list[int]:
    return [row.id for row in rows]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chats.db"


@pytest.fixture
def chat_file(path: Path) -> Iterator[ChatFile]:
    """Open, and bounded to 100 messages of each pair."""
    with ChatFile(path, 100) as opened:
        yield opened


# Batches and messages


def test_a_batch_is_taken_apart_into_its_messages() -> None:
    assert messages(batch(1, ALICE, BOB, "one", "", "three")) == [WRAP[ALICE](text) for text in (b"one", b"", b"three")]
    assert messages(single(1, ALICE, BOB)) == [WRAP[ALICE](b"text 1")]


def test_a_message_of_several_packets_stays_one() -> None:
    packets = WRAP[ALICE](b"x" * 300)
    assert len(packets) > 300
    assert messages(ChatRow(1, ALICE, BOB, NOW, 1, 0, packets)) == [packets]


def test_a_thread_other_than_the_one_that_opened_it_may_call(chat_file: ChatFile, path: Path) -> None:
    gevent.get_hub().threadpool.apply(chat_file.write, ([single(1, ALICE, BOB)], {}))
    assert everything(path) == [single(1, ALICE, BOB)]


def test_undelivered_messages_wait_again(chat_file: ChatFile) -> None:
    chat_file.write([single(2, ALICE, BOB, waiting=1)], {})
    chat_file.write([], {2: 0})
    chat_file.write([], {2: 1})
    assert ids(chat_file.mailbox(BOB, 0, 1)) == [2]


def test_the_highest_id_is_that_of_the_last_batch(chat_file: ChatFile) -> None:
    assert chat_file.highest_id() == 0
    chat_file.write([single(9, ALICE, BOB), single(7, ALICE, BOB)], {})
    assert chat_file.highest_id() == 9


# What stays in the file


def test_the_room_of_deleted_rows_is_used_again(path: Path) -> None:
    long = "x" * 100
    sizes = []
    for begin in range(1, 10_000, 1000):
        with ChatFile(path, 500) as opened:
            opened.write([batch(number, ALICE, BOB, long) for number in range(begin, begin + 1000)], {})
        sizes.append(path.stat().st_size)
    assert len(set(sizes[1:])) == 1, sizes


def test_a_removed_user_disappears_from_every_chat_and_from_the_file(path: Path) -> None:
    secret = ["a secret " * 10] * 50  # more than a page
    with ChatFile(path, 1000) as opened:
        opened.write([batch(1, ALICE, BOB, *secret), batch(2, CAROL, ALICE, "a secret", waiting=1)], {})
        opened.write([single(3, BOB, CAROL, waiting=1), batch(4, ALICE, ALICE, "a secret")], {})
    assert b"a secret" in path.read_bytes()
    with ChatFile(path, 1000) as opened:
        opened.remove(ALICE)
        assert everything(path) == [single(3, BOB, CAROL, waiting=1)]
        assert opened.mailbox_sizes() == {CAROL: 1}
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT * FROM pairs").fetchall() == [(BOB, CAROL, 1)]
        opened.write([single(5, ALICE, BOB)], {})
        assert opened.last(ALICE, BOB, 10) == [single(5, ALICE, BOB)]
    assert b"a secret" not in path.read_bytes()
    assert names(path.parent) == ["chats.db"]


# What it costs

PLANS = {
    "the last messages": (module.LAST, "SEARCH batches USING INDEX batches_of_pair (low=? AND high=?)"),
    "a mailbox": (module.MAILBOX, "SEARCH batches USING INDEX mailbox (receiver=? AND id>?)"),
    "how full the mailboxes are": (module.MAILBOX_SIZES, "SCAN batches USING COVERING INDEX mailbox"),
    "which pairs have too many": (
        module.OVER_THE_BOUND.format("(9)"),
        "SEARCH pairs USING PRIMARY KEY (low=? AND high=?)",
    ),
    "the oldest of a pair": (module.TRIM, "SEARCH batches USING INDEX batches_of_pair (low=? AND high=?)"),
    "what waits no more": (
        module.SET_WAITING.format("(9, 0)"),
        "SEARCH batches USING INTEGER PRIMARY KEY (rowid=?)",
    ),
    "the removal of a pair": (module.REMOVE[0], "SEARCH batches USING INDEX batches_of_pair (low=? AND high=?)"),
    "an export": (module.EXPORT, "SEARCH batches USING INTEGER PRIMARY KEY (rowid>?)"),
}


@pytest.mark.parametrize("what", PLANS)
def test_an_index_leads_to(chat_file: ChatFile, path: Path, what: str) -> None:
    statement, step = PLANS[what]
    chat_file.write([single(1, ALICE, BOB)], {})
    with closing(sqlite3.connect(path)) as connection:
        names = ("one", "other", "count", "receiver", "after", "low", "high", "excess")
        parameters = dict.fromkeys(names, 1) if ":" in statement else [1] * statement.count("?")
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert step in plan
    assert [scan for scan in plan if scan.startswith(("SCAN batches", "SCAN pairs")) and scan != step] == []
    if statement in (module.LAST, module.MAILBOX):
        assert plan == [step], "nothing is sorted"


def test_a_write_of_a_thousand_rows_takes_a_few_statements(path: Path) -> None:
    with ChatFile(path, 100) as opened:
        statements: list[str] = []
        opened._connection.set_trace_callback(statements.append)
        for begin in (1, 1001):
            statements.clear()
            rows = [single(number, ALICE, BOB) for number in range(begin, begin + 1000)]
            opened.write(rows, {row.id - 1000: 0 for row in rows})
            assert len(set(statements)) < 100  # each is told again when a trigger has run


def test_the_wal_file_is_bounded_and_shrinks_after_a_long_reading(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_BYTES", 16 * module.PAGE_BYTES)
    wal = path.with_name("chats.db-wal")
    number = 0

    def largest(opened: ChatFile, writes: int) -> int:
        nonlocal number
        sizes = []
        for _ in range(writes):
            number += 1
            opened.write([single(number, ALICE, BOB)], {})
            sizes.append(wal.stat().st_size)
        return max(sizes)

    with ChatFile(path, 10) as opened, closing(sqlite3.connect(path, isolation_level=None)) as reader:
        usual = 3 * module.CHECKPOINT_BYTES
        assert largest(opened, 200) < usual
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM batches").fetchone()
        assert largest(opened, 200) > usual
        reader.execute("COMMIT")
        largest(opened, 200)
        assert largest(opened, 200) < usual


# The file, and who may read along


def test_all_three_files_are_only_for_the_owner_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        with ChatFile(path, 100) as opened:
            opened.write([single(1, ALICE, BOB)], {})
            modes = {file.name: oct(file.stat().st_mode & 0o777) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("chats.db", "chats.db-wal", "chats.db-shm"), "0o600")


def test_a_name_with_any_characters_is_the_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "50% of ?what#.db"
    with ChatFile(path, 100) as opened:
        opened.write([single(1, ALICE, BOB)], {})
    assert names(tmp_path) == [path.name]
    assert everything(path) == [single(1, ALICE, BOB)]


READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
def count():
    print(connection.execute("SELECT count(*) FROM batches").fetchone()[0], flush=True)
for line in sys.stdin:
    if line == "count\\n":
        count()
    else:
        connection.execute(line)
        print("done", flush=True)
"""


class OtherProgram:
    """Another process that has the database open, and does with it what it is told."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        with gevent.Timeout(DEADLINE):
            return self._process.stdout.readline().strip()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def other_program(chat_file: ChatFile, path: Path) -> Iterator[OtherProgram]:
    chat_file.write([single(1, ALICE, BOB)], {})
    other = OtherProgram(path)
    yield other
    other.end()


def test_another_program_can_read_during_a_write(chat_file: ChatFile, other_program: OtherProgram) -> None:
    with chat_file._transaction():
        chat_file._run(module.INSERT, [single(2, ALICE, BOB)])
        assert other_program.ask("count") == "1"
    assert other_program.ask("count") == "2"


def test_a_long_read_of_another_program_blocks_no_write_and_sees_one_moment(
    chat_file: ChatFile, other_program: OtherProgram
) -> None:
    other_program.ask("BEGIN")
    assert other_program.ask("count") == "1"
    chat_file.write([single(2, ALICE, BOB)], {})
    assert other_program.ask("count") == "1"
    other_program.ask("COMMIT")
    assert other_program.ask("count") == "2"


def test_an_export_has_every_batch_by_id_however_many(chat_file: ChatFile, path: Path) -> None:
    assert everything(path) == []
    rows = [single(number, number % 3 + 1, 1 + number % 2) for number in range(3, 3 * module.EXPORTED_AT_ONCE, 2)]
    chat_file.write(rows[:90], {})
    chat_file.write(rows[90:], {})
    assert ids(everything(path)) == [row.id for row in rows if row in chat_file.last(row.sender, row.receiver, 10_000)]


def test_a_slow_export_sees_later_writes_and_blocks_nothing(path: Path) -> None:
    count = 2 * module.EXPORTED_AT_ONCE
    with ChatFile(path, 10_000) as opened, closing(sqlite3.connect(path)) as checkpointer:
        opened.write([single(number, ALICE, BOB) for number in range(1, count + 1)], {})
        exported = export(path)
        assert next(exported).id == 1
        opened.write([single(count + 1, ALICE, BOB)], {count: 1})
        (busy, *_) = checkpointer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not busy
        *_, changed, new = exported
        assert (changed, new) == (single(count, ALICE, BOB, waiting=1), single(count + 1, ALICE, BOB))


@pytest.mark.parametrize("look", ["export", "copy"])
def test_reading_a_file_that_is_not_a_chat_database_is_refused_and_leaves_no_file(tmp_path: Path, look: str) -> None:
    def see(path: Path) -> None:
        list(export(path)) if look == "export" else copy(path, tmp_path / "copy.db")

    with pytest.raises(FileNotFoundError):
        see(tmp_path / "missing.db")
    (tmp_path / "other.db").write_bytes(b"no database" * 1000)
    with pytest.raises(DamagedDatabase, match=r"other\.db"):
        see(tmp_path / "other.db")
    assert names(tmp_path) == ["other.db"]
