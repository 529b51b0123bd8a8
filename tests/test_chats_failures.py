"""What crashes, damaged files, locks, vanished files and full disks do to chats.db."""

import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chatstorage import chat_file as module
from chatstorage.chat_file import ChatFile, DamagedDatabase, copy
from chatstorage.chats import ChatRow
from chatstorage.interface import StorageUnavailable
from testkit.processes import DEADLINE, ROOT, wait_for
from tests.test_chats import ALICE, BOB, CAROL, OtherProgram, batch, everything, ids, names, single
from tests.test_durability import STRACE, Call, is_synced, parse, trace_file
from tests.test_storage_csv import run_python

__all__ = ["trace_file"]  # the fixture

Change = Callable[[], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chats.db"


@pytest.fixture
def chat_file(path: Path) -> Iterator[ChatFile]:
    """Open, and bounded to 100 messages of each pair."""
    with ChatFile(path, 100) as opened:
        yield opened


# What is written meanwhile, in another process: each number once it is stored

WRITER = """
import sys
from pathlib import Path
from chatstorage.chat_file import ChatFile
from tests.test_chats import ALICE, BOB, CAROL, batch

with ChatFile(Path(sys.argv[1]), 1_000_000) as opened:
    number = opened.highest_id()
    while True:
        rows = [batch(number + n, ALICE, BOB, *"abc", waiting=3) for n in range(1, 20)]
        rows.append(batch(number + 20, BOB, CAROL, "x" * 100))
        opened.write(rows, {number: 0})
        number += 20
        print(number, flush=True)
"""


class Writer:
    """A process that writes 20 batches at a time, and says the last id when they are stored."""

    def __init__(self, path: Path) -> None:
        self.said = path.with_name("said")
        with self.said.open("wb") as said:
            self.process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=said)

    @property
    def stored(self) -> int:
        lines = self.said.read_text().split("\n")[:-1]
        return int(lines[-1]) if lines else 0

    def wait(self, stored: int) -> None:
        wait_for(f"{stored} batches", lambda: self.stored >= stored or self.process.poll() is not None)
        assert self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)


def test_a_killed_writer_lost_nothing_stored_and_left_no_half_write(path: Path) -> None:
    stored = 0
    for _ in range(3):
        writer = Writer(path)
        try:
            writer.wait(stored + 200)
        finally:
            writer.kill()
        rows = everything(path)  # first as another program, with what the killed one left
        with ChatFile(path, 1_000_000) as opened:
            assert opened.highest_id() >= writer.stored
            assert opened.highest_id() % 20 == 0
            assert everything(path) == rows
        assert ids(rows) == [*range(1, len(rows) + 1)]
        stored = len(rows)


def test_a_copy_is_of_one_moment_while_another_process_writes(path: Path, tmp_path: Path) -> None:
    writer = Writer(path)
    target = tmp_path / "copies" / "chats.db"
    target.parent.mkdir()
    try:
        writer.wait(20)
        for _ in range(5):
            before = writer.stored
            copy(path, target)
            assert names(target.parent) == ["chats.db"]
            assert target.stat().st_mode & 0o777 == 0o600
            with ChatFile(target, 1_000_000) as opened:
                assert opened.highest_id() >= before
                assert opened.highest_id() % 20 == 0
                assert ids(everything(target)) == [*range(1, opened.highest_id() + 1)]
                opened.write([single(opened.highest_id() + 1, ALICE, BOB)], {})
            writer.wait(writer.stored + 20)
    finally:
        writer.kill()


def test_a_copy_that_fails_leaves_the_old_one(chat_file: ChatFile, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copies" / "chats.db"
    target.parent.mkdir()
    chat_file.write([single(1, ALICE, BOB)], {})
    copy(path, target)
    old = target.read_bytes()
    chat_file.write([batch(2, ALICE, BOB, *["x" * 100] * 1000)], {})
    program = (
        "import pathlib, resource, sys\n"
        "from chatstorage.chat_file import copy\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))\n"
        "copy(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
    )
    result = run_python(program, str(path), str(target))
    assert "StorageUnavailable" in result.stderr
    assert f"{path} cannot be copied to {target}: " in result.stderr
    assert names(target.parent) == ["chats.db"]
    assert target.read_bytes() == old


# On disk when it returns


def traced(trace_file: Path, program: str, *arguments: Path) -> list[Call]:
    """The calls of a program, in the order in which they ended."""
    command = [*STRACE, str(trace_file), sys.executable, "-c", program, *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=DEADLINE, check=True)
    wait_for("the end of the trace", lambda: "+++ exited with 0 +++" in trace_file.read_text())
    return parse(trace_file.read_text())


def test_a_write_is_synced_before_it_returns(trace_file: Path, path: Path) -> None:
    program = (
        "import os, pathlib, sys\n"
        "from chatstorage.chat_file import ChatFile\n"
        "from tests.test_chats import single\n"
        "with ChatFile(pathlib.Path(sys.argv[1]), 100) as opened:\n"
        "    for number in range(1, 4):\n"
        "        os.write(2, b'begin')\n"
        "        opened.write([single(number, 1, 2)], {})\n"
        "        os.write(2, b'stored')\n"
    )
    calls = traced(trace_file, program, path)
    begins = [call for call in calls if call.arguments.startswith(', "begin"')]
    ends = [call for call in calls if call.arguments.startswith(', "stored"')]
    assert len(begins) == len(ends) == 3
    folder = next(call for call in calls if call.is_sync and call.file == str(path.parent))
    assert folder.end < begins[0].begin, "the file itself survives, too"
    for begin, end in zip(begins, ends, strict=True):
        within = [call for call in calls if begin.end < call.begin and call.end < end.begin]
        wal = [call for call in within if call.file == f"{path}-wal"]
        assert wal[0].is_write
        assert [call for call in wal if call.is_sync] == [wal[-1]]


def test_a_copy_is_synced_before_it_takes_its_name(trace_file: Path, path: Path, tmp_path: Path) -> None:
    with ChatFile(path, 100) as opened:
        opened.write([single(1, ALICE, BOB)], {})
    target = tmp_path / "copies" / "chats.db"
    target.parent.mkdir()
    program = "import pathlib, sys; from chatstorage.chat_file import copy; copy(*map(pathlib.Path, sys.argv[1:]))"
    calls = traced(trace_file, program, path, target)
    (rename,) = [call for call in calls if call.name.startswith("rename") and str(target) in call.arguments]
    *_, written = [call for call in calls if call.is_write and call.file == str(target.with_suffix(".tmp"))]
    assert is_synced(written, rename, calls)
    assert any(call.is_sync and call.file == str(target.parent) and rename.end < call.begin for call in calls)


# Opening what it should not


def spoilt(path: Path, *statements: str) -> bytes:
    """A database of ours, with a batch, that somebody else has changed; returns its bytes."""
    with ChatFile(path, 100) as opened:
        opened.write([single(number, ALICE, BOB) for number in range(1, 200)], {})
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    return path.read_bytes()


def refuse(path: Path, problem: str) -> None:
    """Opening must fail, and say of which file and why, and leave it as it is."""
    before = path.read_bytes()
    with pytest.raises(DamagedDatabase, match=problem) as raised:
        ChatFile(path, 100).__enter__()
    assert str(path) in str(raised.value)
    assert path.read_bytes() == before
    with pytest.raises(DamagedDatabase, match=problem):
        everything(path)


def test_a_file_that_is_not_a_database_is_refused(path: Path) -> None:
    path.write_bytes(b"1,alice\n" * 1000)
    refuse(path, "file is not a database")


def test_the_database_of_another_program_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE batches (id INTEGER PRIMARY KEY)")
    refuse(path, "another program")


def test_an_empty_database_of_another_program_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA application_id = 7")
    refuse(path, "another program")


def test_a_newer_version_is_refused(path: Path) -> None:
    spoilt(path, f"PRAGMA user_version = {module.VERSION + 1}")
    refuse(path, f"version {module.VERSION + 1}; this program knows only version {module.VERSION}")


def test_a_truncated_database_is_refused(path: Path) -> None:
    data = spoilt(path)
    path.write_bytes(data[: len(data) - 3 * module.PAGE_BYTES])
    refuse(path, "malformed")


def test_a_database_whose_pages_are_overwritten_is_refused(path: Path) -> None:
    data = spoilt(path)
    path.write_bytes(data[: module.PAGE_BYTES] + b"\xff" * (len(data) - module.PAGE_BYTES))
    refuse(path, "malformed")


@pytest.mark.parametrize("left", ["nothing", "a header"])
def test_a_crash_during_the_first_opening_leaves_a_new_database(path: Path, left: str) -> None:
    path.touch()
    if left == "a header":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        assert path.stat().st_size
    assert everything(path) == []
    with ChatFile(path, 100) as opened:
        opened.write([single(1, ALICE, BOB)], {})
        assert opened.highest_id() == 1


def test_a_folder_that_is_missing_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ChatFile(tmp_path / "missing" / "chats.db", 100).__enter__()


@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o755, 0o666), (0o777, 0o444)])
def test_a_file_without_write_permission_is_refused_at_opening(path: Path, folder_mode: int, file_mode: int) -> None:
    with ChatFile(path, 100) as opened:
        opened.write([single(1, ALICE, BOB)], {})
    before = path.read_bytes()
    path.chmod(file_mode)
    path.parent.chmod(folder_mode)
    program = (
        "import os, pathlib, sys\n"
        "from chatstorage.chat_file import ChatFile\n"
        "os.chdir(sys.argv[1])\n"
        "if os.geteuid() == 0:\n"
        "    os.seteuid(65534)\n"
        "elif os.access('.', os.W_OK):\n"
        "    os.chmod('.', 0o500)\n"
        "ChatFile(pathlib.Path('chats.db'), 100).__enter__()\n"
    )
    result = run_python(program, str(path.parent))
    path.parent.chmod(0o700)
    assert "StorageUnavailable: chats.db cannot be " in result.stderr, result.stderr
    assert path.read_bytes() == before


# Writes that fail


def test_a_row_with_a_used_id_is_a_programming_error_and_changes_nothing(chat_file: ChatFile, path: Path) -> None:
    chat_file.write([single(2, ALICE, BOB, waiting=1)], {})
    with pytest.raises(sqlite3.IntegrityError):
        chat_file.write([single(number, ALICE, CAROL) for number in (1, 3, 2)], {2: 0})
    assert everything(path) == [single(2, ALICE, BOB, waiting=1)]
    chat_file.write([single(4, ALICE, BOB)], {})
    assert ids(everything(path)) == [2, 4]


def test_a_lock_that_another_program_holds_is_waited_for_and_then_the_write_fails(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.2)
    with ChatFile(path, 100) as opened:
        opened.write([single(1, ALICE, BOB, waiting=1)], {})
        other = OtherProgram(path)
        try:
            other.ask("BEGIN IMMEDIATE")
            changes: list[Change] = [
                lambda: opened.write([single(2, ALICE, BOB)], {1: 0}),
                lambda: opened.remove(ALICE),
            ]
            for change in changes:
                with pytest.raises(StorageUnavailable, match=r"chats\.db cannot be written: .*locked") as raised:
                    change()
                assert isinstance(raised.value.__cause__, sqlite3.OperationalError)
            assert everything(path) == [single(1, ALICE, BOB, waiting=1)]
            assert opened.mailbox_sizes() == {BOB: 1}, "what only reads goes on"
            with pytest.raises(StorageUnavailable, match="locked"):
                ChatFile(path, 100).__enter__()
            other.ask("ROLLBACK")
            opened.write([single(2, ALICE, BOB)], {1: 0})
        finally:
            other.end()
        assert everything(path) == [single(1, ALICE, BOB), single(2, ALICE, BOB)]


def test_a_lock_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_AGAIN_SECONDS", DEADLINE)
    program = (
        "import sqlite3, sys, time\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('BEGIN IMMEDIATE')\n"
        "print('locked', flush=True)\n"
        "time.sleep(0.5)\n"
    )
    with ChatFile(path, 100) as opened:
        other = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
        try:
            assert other.stdout
            assert other.stdout.readline() == b"locked\n"
            opened.write([single(1, ALICE, BOB)], {})
        finally:
            other.kill()
            other.communicate()
    assert everything(path) == [single(1, ALICE, BOB)]


@pytest.mark.parametrize("name", ["chats.db", "chats.db-wal"])
@pytest.mark.parametrize("another", [False, True], ids=["none", "another"])
def test_a_file_that_vanished_is_not_written_until_it_is_back(
    chat_file: ChatFile, path: Path, name: str, another: bool
) -> None:
    file, away = path.with_name(name), path.with_name("away")
    chat_file.write([single(1, ALICE, BOB)], {})
    file.rename(away)
    if another:
        shutil.copy(away, file)
    changes: list[Change] = [lambda: chat_file.write([single(2, ALICE, BOB)], {}), lambda: chat_file.remove(ALICE)]
    for change in changes:
        with pytest.raises(StorageUnavailable, match=r"chats\.db cannot be written") as raised:
            change()
        assert isinstance(raised.value.__cause__, FileNotFoundError)
    away.rename(file)
    assert chat_file.last(ALICE, BOB, 10) == [single(1, ALICE, BOB)]
    chat_file.write([single(3, ALICE, BOB)], {})
    assert ids(everything(path)) == [1, 3]


def test_damage_that_shows_later_is_an_error_of_that_call(path: Path) -> None:
    spoilt(path)
    with ChatFile(path, 100) as opened:
        with path.open("r+b") as file:
            file.seek(module.PAGE_BYTES)
            file.write(b"\xff" * (path.stat().st_size - module.PAGE_BYTES))
        with pytest.raises(StorageUnavailable, match=r"chats\.db cannot be read: .*malformed"):
            opened.last(ALICE, BOB, 10)
        with pytest.raises(StorageUnavailable, match=r"chats\.db cannot be written: .*malformed"):
            opened.write([single(1000, ALICE, BOB)], {})


# A full disk


def fill_up(path: Path) -> None:
    """Run in a process of its own: the disk is full at many a place, in each of the files; then there is room again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    failures = 0
    with ChatFile(path, 500) as opened:
        stored: list[ChatRow] = []
        for number in range(1, 4000, 40):
            rows = [batch(number + n, ALICE, BOB, f"{'x' * 80} {n}", waiting=1) for n in range(40)]
            change = {row.id: 0 for row in stored}
            largest = max(file.stat().st_size for file in path.parent.iterdir())
            for room in (0, 1, 100, 5000, 9000, 20_000):
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 2000 + room, hard))
                try:
                    opened.write(rows, change)
                except StorageUnavailable as error:
                    assert isinstance(error.__cause__, sqlite3.OperationalError)
                    failures += 1
                    assert opened.highest_id() == number - 1
                    assert opened.mailbox_sizes() == ({BOB: len(stored)} if stored else {})
                else:
                    break
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            else:
                opened.write(rows, change)
            stored = rows
            assert opened.highest_id() == number + 39
            assert opened.mailbox(BOB, 0, 100_000) == rows
    print(failures)


def test_a_full_disk_refuses_writes_and_loses_nothing_and_they_go_on_when_there_is_room(path: Path) -> None:
    program = "import pathlib, sys, tests.test_chats_failures as failures; failures.fill_up(pathlib.Path(sys.argv[1]))"
    result = run_python(program, str(path))
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 50
    assert ids(everything(path))[-500:] == [*range(3501, 4001)]


def fill_a_file_system(disk: Path) -> None:
    """Run where `disk` is a small file system: full, and with room again."""
    with ChatFile(disk / "chats.db", 1_000_000) as opened:
        number, full = 0, False
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(100_000))
        while not full:
            before = number, opened.mailbox_sizes()
            try:
                opened.write([single(number + n, ALICE, BOB, waiting=1) for n in range(1, 101)], {})
                number += 100
            except StorageUnavailable as error:
                full = True
                assert "full" in str(error), error
                assert (opened.highest_id(), opened.mailbox_sizes()) == before
        ballast.unlink()
        opened.write([single(number + 1, ALICE, BOB)], {})
    assert ids(everything(disk / "chats.db")) == [*range(1, number + 2)]
    print(number)


def test_a_full_file_system_is_survived(tmp_path: Path) -> None:
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed: no file system can be mounted apart from everyone's")
    program = (
        "import pathlib, sys, tests.test_chats_failures as failures\n"
        "failures.fill_a_file_system(pathlib.Path(sys.argv[1]))"
    )
    script = 'mount -t tmpfs -o size=1m none "$1" || exit 77; exec "$2" -c "$3" "$1"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), sys.executable, program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False)
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip(f"no file system can be mounted here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 0
