"""The CSV files: their bytes, their order on disk, the descriptors and the lock."""

import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gevent
import pytest

from storage import CsvStorage, DamagedFile, FolderInUse, StorageUnavailable, User

HASH = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g"
OTHER_HASH = HASH[::-1]
FILES = ("users.csv", "passwords.csv", "status.csv")

View = list[tuple[User, str | None]]


def opened(folder: Path, max_users: int = 100_000, max_id: int = 255) -> CsvStorage:
    return CsvStorage(folder, max_users, max_id)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write(folder: Path, **files: bytes) -> None:
    """Make a folder whose `users`, `passwords` (none by default) and `status` hold these bytes."""
    folder.mkdir(exist_ok=True)
    for name, data in {"passwords": b"", **files}.items():
        (folder / f"{name}.csv").write_bytes(data)


def view(storage: CsvStorage) -> View:
    return [(user, storage.password_hash(user.id)) for user in storage.users()]


def view_of(folder: Path) -> View:
    with opened(folder) as storage:
        return view(storage)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


# The files


def test_the_files_hold_what_the_table_in_the_docstring_says(folder: Path) -> None:
    with opened(folder) as storage:
        storage.sign_up("alice", HASH)
        storage.sign_up('"bob"', None)
        storage.set_password(2, "plain")
        storage.set_status(2, online=True)
    assert contents(folder) == {
        "lock": b"",
        "users.csv": b'1,alice\n2,"""bob"""\n',
        "passwords.csv": b'1,"' + HASH.encode() + b'"\n2,plain\n',
        "status.csv": b"1,0\n2,1\n",
    }


def test_a_removal_is_one_line_and_the_next_start_erases_all_but_the_id_without_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(folder) as storage:
        storage.sign_up("alice", "a")
        storage.sign_up("bob", "b")
        storage.sign_up("carol", "c")
        storage.set_status(2, online=True)
        storage.set_password(3, None)
        storage.remove(2)
        assert (folder / "users.csv").read_bytes() == b"1,alice\n2,bob\n3,carol\n2,\n"
        assert (folder / "passwords.csv").read_bytes() == b"1,a\n2,b\n3,c\n3,\n"
    for _ in range(2):
        with opened(folder):
            assert contents(folder) == {
                "lock": b"",
                "users.csv": b"2,\n1,alice\n3,carol\n",
                "passwords.csv": b"1,a\n",
                "status.csv": b"1,0\n3,0\n",
            }
    assert caplog.records == []


def test_after_a_removal_the_status_of_the_others_is_still_theirs(folder: Path) -> None:
    with opened(folder) as storage:
        for name in ("alice", "bob", "carol"):
            storage.sign_up(name, None)
        storage.remove(2)
        storage.set_status(3, online=True)
        storage.sign_up("dave", None)
        storage.set_status(4, online=True)
        assert (folder / "status.csv").read_bytes() == b"1,0\n2,0\n3,1\n4,1\n"


def test_a_copy_of_what_is_committed_opens_without_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder) as storage:
        storage.sign_up("alice", "a")
        storage.sign_up("bob", None)
        storage.remove(1)
        before, committed = view(storage), storage.committed()
        fail_after(monkeypatch, "ftruncate", 0, failures=9)
        fail_after(monkeypatch, "fsync", 2, failures=1)
        with pytest.raises(StorageUnavailable):
            storage.sign_up("carol", "leaves bytes behind")
        assert storage.committed() == committed
        assert list(committed)[-1] == "users.csv"
        (tmp_path / "copy").mkdir()
        for name, length in committed.items():
            assert length < (folder / name).stat().st_size
            (tmp_path / "copy" / name).write_bytes((folder / name).read_bytes()[:length])
        monkeypatch.undo()
    assert view_of(tmp_path / "copy") == before
    assert caplog.records == []


def test_pythons_csv_module_reads_the_files(folder: Path) -> None:
    names = ["alice", 'a"b', '"', "żółć", "\N{OLD ITALIC LETTER A}", "\N{NO-BREAK SPACE}\N{LINE SEPARATOR}\x85"]
    with opened(folder) as storage:
        for name in names:
            storage.sign_up(name, HASH)
    for file, texts in zip(FILES, (names, [HASH] * len(names), ["0"] * len(names)), strict=True):
        with (folder / file).open(newline="", encoding="utf-8") as stream:
            assert list(csv.reader(stream, strict=True)) == [[str(n), text] for n, text in enumerate(texts, start=1)]
        assert b"\r" not in (folder / file).read_bytes()


def test_the_folder_and_its_files_are_for_their_owner_only(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        with opened(tmp_path / "new" / "data") as storage:
            storage.sign_up("alice", HASH)
    finally:
        os.umask(mask)
    folder = tmp_path / "new" / "data"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        (*FILES, "lock"), 0o600
    )


def test_a_folder_that_is_there_keeps_its_mode(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    before = folder.stat().st_mode
    with opened(folder):
        assert folder.stat().st_mode == before


def test_a_folder_that_cannot_be_made_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), opened(tmp_path / "file" / "data"):
        pass


def test_ids_need_not_be_in_order_or_without_gaps(folder: Path) -> None:
    write(folder, users=b"7,grace\n3,carol\n", passwords=b"7,x\n3,y\n", status=b"7,1\n3,0\n")
    with opened(folder) as storage:
        assert view(storage) == [(User(3, "carol"), "y"), (User(7, "grace"), "x")]
        storage.set_status(7, online=True)
        assert storage.sign_up("heidi", None) == User(8, "heidi")
        storage.set_status(8, online=True)
        assert (folder / "status.csv").read_bytes() == b"3,0\n7,1\n8,1\n"
    assert (folder / "users.csv").read_bytes() == b"7,grace\n3,carol\n8,heidi\n"


def test_at_a_start_all_users_are_written_as_offline(folder: Path) -> None:
    write(folder, users=b"1,alice\n2,bob\n", passwords=b"", status=b"1,1\n2,1\n")
    with opened(folder):
        assert (folder / "status.csv").read_bytes() == b"1,0\n2,0\n"


def test_a_sound_start_leaves_no_warning_and_only_the_four_files(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(folder) as storage:
        storage.sign_up("alice", HASH)
    before = contents(folder)
    with opened(folder):
        assert contents(folder) == before
    assert caplog.records == []


# Descriptors


def descriptors(folder: Path) -> list[str]:
    """The names of what this process has open in the folder, or of the folder."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("there is no /proc here to count the open descriptors with")
    gevent.idle()  # where os.close is patched, a folder is closed in the next round of the loop
    targets = [path.resolve() for path in Path("/proc/self/fd").iterdir()]
    return sorted(path.name for path in targets if path.is_relative_to(folder.parent))


def test_all_descriptors_are_closed_at_the_end(folder: Path) -> None:
    with opened(folder) as storage:
        for n in range(20):
            storage.sign_up(f"user{n}", HASH)
            storage.set_status(n + 1, online=True)
        assert descriptors(folder) == sorted([folder.name, *FILES, "lock"])
    assert descriptors(folder) == []


def test_all_descriptors_are_closed_after_an_error_in_the_block(folder: Path) -> None:

    def run() -> None:
        with opened(folder):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run()
    assert descriptors(folder) == []


@pytest.mark.parametrize("damaged", FILES)
def test_a_damaged_file_leaves_no_descriptor_and_no_lock(folder: Path, damaged: str) -> None:
    write(folder, users=b"1,alice\n")
    (folder / damaged).write_bytes(b"x\n")
    for _ in range(2):  # a lock left behind would make the second a FolderInUse
        with pytest.raises(DamagedFile), opened(folder):
            pass
        assert descriptors(folder) == []


def test_a_folder_in_use_leaves_no_descriptor(folder: Path) -> None:
    with opened(folder):
        before = descriptors(folder)
        with pytest.raises(FolderInUse), opened(folder):
            pass
        assert descriptors(folder) == before


@pytest.mark.parametrize("call", ["open", "fstat", "pwrite", "fsync", "ftruncate", "replace"])
def test_an_opening_that_fails_anywhere_leaves_no_descriptor_and_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    failures = 0
    while True:
        write(folder, users=b"1,alice\n2,bo", passwords=b"1,a\n2,torn", status=b"1,1\n")
        fail_after(monkeypatch, call, failures)
        try:
            with opened(folder) as storage:
                assert view(storage) == [(User(1, "alice"), "a")]
                break
        except OSError:
            failures += 1
        finally:
            monkeypatch.undo()
        assert descriptors(folder) == []
        assert view_of(folder) == [(User(1, "alice"), "a")]
    assert failures > 0
    assert descriptors(folder) == []


def fail_after(monkeypatch: pytest.MonkeyPatch, call: str, successes: int, failures: int = 1) -> None:
    """Let the system call `os.<call>` fail `failures` times once it has succeeded so often."""
    real, outcomes = getattr(os, call), iter([False] * successes + [True] * failures)

    def fake(*arguments: object) -> object:
        if next(outcomes, False):
            raise OSError(5, f"{call} failed")
        return real(*arguments)

    monkeypatch.setattr(os, call, fake)


def test_after_the_end_nothing_more_is_written(folder: Path) -> None:
    with opened(folder) as storage:
        storage.sign_up("alice", HASH)
    before = contents(folder)
    with pytest.raises(ValueError, match="closed file"):
        storage.sign_up("bob", HASH)
    with pytest.raises(ValueError, match="closed file"):
        storage.set_status(1, online=True)
    assert contents(folder) == before


# Two servers


def test_a_second_server_on_the_folder_is_refused_until_the_first_ends(folder: Path) -> None:
    with opened(folder) as first:
        first.sign_up("alice", HASH)
        first.set_status(1, online=True)
        before = contents(folder)
        with pytest.raises(FolderInUse, match=str(folder)), opened(folder):
            pass
        assert contents(folder) == before
        first.sign_up("bob", None)
    with opened(folder) as second:
        assert [user.name for user in second.users()] == ["alice", "bob"]


def test_another_process_is_refused_before_it_repairs_anything(folder: Path) -> None:
    program = "import sys, pathlib, storage; storage.CsvStorage(pathlib.Path(sys.argv[1]), 9, 9).__enter__()"
    with opened(folder) as first:
        first.sign_up("alice", HASH)
        with (folder / "users.csv").open("ab") as users:
            users.write(b"2,bo")  # as if the first were in the middle of a sign-up
        before = contents(folder)
        result = run_python(program, str(folder))
        assert result.returncode == 1
        assert "FolderInUse" in result.stderr
        assert contents(folder) == before


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    root = Path(__file__).parent.parent
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)


# On disk before the answer


class Calls:
    """Records ("pwrite" or "fsync", file, bytes) of every call, and runs it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self._folder = folder
        self._pwrite, self._fsync = os.pwrite, os.fsync
        monkeypatch.setattr(os, "pwrite", self.pwrite)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        written = self._pwrite(descriptor, data, offset)
        self.seen.append(("pwrite", self._name(descriptor), written))
        return written

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        self.seen.append(("fsync", self._name(descriptor), 0))

    def _name(self, descriptor: int) -> str:
        known = (self._folder.parent, self._folder, *self._folder.iterdir())
        return next(path.name for path in known if path.stat().st_ino == os.fstat(descriptor).st_ino)

    def order(self) -> list[tuple[str, str]]:
        return [(call, name) for call, name, _ in self.seen]

    def bytes_written(self) -> int:
        return sum(count for _, _, count in self.seen)


def test_a_sign_up_writes_and_syncs_the_password_then_the_status_then_the_user(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder) as storage:
        calls = Calls(monkeypatch, folder)
        storage.sign_up("alice", HASH)
        assert calls.order() == [
            ("pwrite", "passwords.csv"),
            ("fsync", "passwords.csv"),
            ("pwrite", "status.csv"),
            ("fsync", "status.csv"),
            ("pwrite", "users.csv"),
            ("fsync", "users.csv"),
        ]


def test_a_new_password_is_synced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(folder) as storage:
        storage.sign_up("alice", None)
        calls = Calls(monkeypatch, folder)
        storage.set_password(1, HASH)
        assert calls.order() == [("pwrite", "passwords.csv"), ("fsync", "passwords.csv")]


def test_new_files_and_their_new_folder_are_synced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, folder)
    with opened(folder):
        assert calls.order()[0] == ("fsync", folder.parent.name)
        after_the_folder = calls.order()[calls.order().index(("fsync", folder.name)) + 1 :]
        assert after_the_folder == [("fsync", "users.csv"), ("fsync", "status.csv"), ("fsync", "passwords.csv")]


def test_a_start_after_an_orderly_end_writes_nothing_so_it_works_on_a_full_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder) as storage:
        storage.sign_up("alice", HASH)
        storage.set_status(1, online=True)
        storage.set_status(1, online=False)
    calls = Calls(monkeypatch, folder)
    with opened(folder) as storage:
        assert calls.bytes_written() == 0
        assert view(storage) == [(User(1, "alice"), HASH)]


def test_the_folder_is_synced_once_all_files_are_in_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listings: list[set[str]] = []
    real = os.fsync

    def list_then_sync(descriptor: int) -> None:
        if folder.stat().st_ino == os.fstat(descriptor).st_ino:
            listings.append({path.name for path in folder.iterdir()})
        real(descriptor)

    monkeypatch.setattr(os, "fsync", list_then_sync)
    with opened(folder):
        assert listings == [{*FILES, "lock"}]


def test_whole_lines_of_a_killed_server_are_synced_before_they_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, users=b"1,alice\n", passwords=b"1,a\n", status=b"1,0\n")
    calls = Calls(monkeypatch, folder)
    with opened(folder):
        assert {("fsync", name) for name in FILES} <= set(calls.order())


def test_a_removal_is_synced_and_seen_by_no_look_up_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(folder) as storage:
        storage.sign_up("alice", HASH)
        calls, seen = Calls(monkeypatch, folder), []
        fsync = os.fsync

        def look_then_sync(descriptor: int) -> None:
            seen.append(view(storage))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", look_then_sync)
        storage.set_password(1, None)
        storage.remove(1)
        assert seen == [[(User(1, "alice"), HASH)], [(User(1, "alice"), None)]]
        assert calls.order() == [
            (call, name) for name in ("passwords.csv", "users.csv") for call in ("pwrite", "fsync")
        ]
        assert view(storage) == []


def test_a_status_is_one_byte_overwritten_and_not_synced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(folder) as storage:
        storage.sign_up("alice", None)
        storage.sign_up("bob", None)
        calls = Calls(monkeypatch, folder)
        storage.set_status(1, online=True)
        assert calls.seen == [("pwrite", "status.csv", 1)]
        assert (folder / "status.csv").read_bytes() == b"1,1\n2,0\n"


def test_a_login_or_sign_up_writes_the_same_amount_however_many_users_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    for count in (1, 50_000):
        folder = tmp_path / str(count)
        write(folder, users=b"".join(b"%d,user%d\n" % (n, n) for n in range(10_001, 10_001 + count)))
        with opened(folder, max_id=2**32 - 1) as storage, monkeypatch.context() as patch:
            calls = Calls(patch, folder)
            storage.sign_up("bob", HASH)
            storage.set_password(10_001, HASH)
            storage.set_status(10_001, online=True)
            storage.set_status(10_001, online=False)
            written.append(calls.bytes_written())
    assert written[0] == written[1] < 200


def test_a_look_up_sees_nothing_before_it_is_on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[View, User | None, str | None]] = []
    real = os.fsync

    def look_then_sync(descriptor: int) -> None:
        seen.append((view(storage), storage.look_alike("bob"), storage.password_hash(2)))
        real(descriptor)

    with opened(folder) as storage:
        storage.sign_up("alice", HASH)
        before = view(storage)
        monkeypatch.setattr(os, "fsync", look_then_sync)
        storage.sign_up("bob", HASH)
        assert seen == [(before, None, None)] * 3
        storage.set_password(2, OTHER_HASH)
        assert seen[3:] == [([*before, (User(2, "bob"), HASH)], User(2, "bob"), HASH)]


# Another program changes the files meanwhile


def by_rename(path: Path) -> None:
    """As many editors save, here without a change."""
    copy = path.with_suffix(".new")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


def by_appending(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"1,\n")


def in_place(path: Path) -> None:
    """Of the same length, a little later than the last write of the server."""
    time.sleep(0.02)
    path.write_bytes(path.read_bytes()[::-1])


CHANGES = pytest.mark.parametrize("change", [by_rename, by_appending, in_place, Path.unlink])


@CHANGES
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_another_program_has_changed_is_not_written_any_more(
    folder: Path, name: str, change: Callable[[Path], None]
) -> None:
    with opened(folder) as storage:
        alice = storage.sign_up("alice", HASH)
        change(folder / name)
        before = contents(folder)
        for write in (
            partial(storage.sign_up, "bob", None),
            partial(storage.set_password, alice.id, HASH[::-1]),
            partial(storage.remove, alice.id),
            storage.committed,  # for a backup
        ):
            with pytest.raises(StorageUnavailable, match=f"{name} was changed by another program"):
                write()
        assert contents(folder) == before
        assert storage.users() == [alice]
        assert storage.password_hash(alice.id) == HASH


def test_the_statuses_are_not_written_into_a_file_that_another_program_has_changed(folder: Path) -> None:
    with opened(folder) as storage:
        alice = storage.sign_up("alice", None)
        by_rename(folder / "status.csv")
        with pytest.raises(StorageUnavailable, match=r"status\.csv was changed by another program"):
            storage.set_status(alice.id, online=True)
        assert not storage.is_online(alice.id)


def test_a_restart_reads_what_another_program_has_written(folder: Path) -> None:
    with opened(folder) as storage:
        storage.sign_up("alice", None)
        by_appending(folder / "users.csv")
        with pytest.raises(StorageUnavailable):
            storage.sign_up("bob", None)
    with opened(folder) as storage:
        assert storage.users() == []
        assert storage.sign_up("bob", None).id == 2


def test_in_a_deleted_folder_nothing_is_confirmed(folder: Path) -> None:
    with opened(folder) as storage:
        storage.sign_up("alice", None)
        shutil.rmtree(folder)
        with pytest.raises(StorageUnavailable):
            storage.sign_up("bob", None)


def test_a_deleted_lock_file_lets_no_second_server_in(folder: Path) -> None:
    with opened(folder):
        (folder / "lock").unlink()
        with pytest.raises(FolderInUse), opened(folder):
            pass
