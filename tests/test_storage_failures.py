"""What crashes, torn and damaged files, failing and full disks do to the CSV files."""

import logging
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage import CsvStorage, DamagedFile, FolderInUse, MissingFile, NameTaken, StorageError, StorageUnavailable, User
from tests.test_storage_csv import (
    FILES,
    HASH,
    OTHER_HASH,
    Calls,
    contents,
    fail_after,
    opened,
    run_python,
    view,
    view_of,
    write,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


# Crashes


class CrashAnywhere:
    """Writes byte by byte, and keeps what a crash there, or before a rename, would leave in the folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.left: list[dict[str, bytes]] = []
        self._folder = folder
        self._pwrite, self._replace = os.pwrite, os.replace
        monkeypatch.setattr(os, "pwrite", self.pwrite)
        monkeypatch.setattr(os, "replace", self.replace)

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        for at in range(len(data)):
            self._pwrite(descriptor, data[at : at + 1], offset + at)
            self.left.append(contents(self._folder))
        return len(data)

    def replace(self, source: Path, target: Path) -> None:
        self._replace(source, target)
        self.left.append(contents(self._folder))


def test_a_crash_at_any_byte_leaves_the_state_before_or_after_the_call(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    highest_id = 0
    with opened(folder) as storage:
        for step in (
            lambda: storage.sign_up("alice", HASH),
            lambda: storage.sign_up('żó"ł', None),
            lambda: storage.set_password(2, HASH),
            lambda: storage.set_status(1, online=True),
            lambda: storage.set_password(1, OTHER_HASH),
            lambda: storage.sign_up("carol", "plain"),
            lambda: storage.set_password(2, None),
            lambda: storage.remove(1),
            lambda: storage.sign_up("alice", None),
            lambda: storage.remove(4),
        ):
            before = view(storage)
            with monkeypatch.context() as patch:
                crashes = CrashAnywhere(patch, folder)
                step()
            after = view(storage)
            assert crashes.left
            for number, left in enumerate(crashes.left):
                survivor = tmp_path / "survivor"
                survivor.mkdir()
                for name, data in left.items():
                    (survivor / name).write_bytes(data)
                with opened(survivor) as reopened:
                    assert view(reopened) == (after if number == len(crashes.left) - 1 else before)
                    newcomer = reopened.sign_up("newcomer", None)
                    highest_id = max([highest_id, *(user.id for user, _ in view(reopened) if user != newcomer)])
                    assert newcomer.id == highest_id + 1
                    assert reopened.password_hash(newcomer.id) is None
                shutil.rmtree(survivor)


def test_a_crash_at_any_byte_of_a_repair_loses_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        folder,
        users=b"1,alice\n2,bob\n3,car",
        passwords=b"1,a\n2,b\n2,c\n3,of a sign-up that never happened\n1,to",
        status=b"1,1\n3,0\n2",
    )
    with monkeypatch.context() as patch:
        crashes = CrashAnywhere(patch, folder)
        with opened(folder) as storage:
            repaired = view(storage)
    assert repaired == [(User(1, "alice"), "a"), (User(2, "bob"), "c")]
    assert {name for left in crashes.left for name in left} > {"passwords.tmp", "status.tmp"}
    for number, left in enumerate(crashes.left):
        survivor = tmp_path / str(number)
        survivor.mkdir()
        for name, data in left.items():
            (survivor / name).write_bytes(data)
        assert view_of(survivor) == repaired
        assert contents(survivor) == contents(folder)


def test_a_crash_at_any_byte_while_removed_names_are_erased_loses_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        folder,
        users=b"1,alice\n2,bob\n1,\n3,alice\n4,dave\n4,\n5,er",
        passwords=b"1,a\n2,b\n2,\n3,c\n4,d\n5,e\n",
        status=b"1,1\n2,0\n3,0\n4,1\n",
    )
    with monkeypatch.context() as patch:
        crashes = CrashAnywhere(patch, folder)
        with opened(folder) as storage:
            repaired = view(storage)
    assert repaired == [(User(2, "bob"), None), (User(3, "alice"), "c")]
    assert (folder / "users.csv").read_bytes() == b"1,\n4,\n2,bob\n3,alice\n"
    assert {name for left in crashes.left for name in left} > {"users.tmp", "passwords.tmp", "status.tmp"}
    for number, left in enumerate(crashes.left):
        survivor = tmp_path / str(number)
        survivor.mkdir()
        for name, data in left.items():
            (survivor / name).write_bytes(data)
        with opened(survivor) as storage:
            assert view(storage) == repaired
            assert storage.sign_up("newcomer", None).id == 5
            assert storage.password_hash(5) is None


# Repair


@pytest.mark.parametrize(
    "torn", [b"2,", b"3", b"3,", b"3,carol", b'3,"', b'3,"""car', b'3,"car""""', b"3,\xc5", b"\0\0\0", b"x"]
)
def test_a_torn_last_line_of_users_is_a_sign_up_or_a_removal_that_never_happened(
    folder: Path, caplog: pytest.LogCaptureFixture, torn: bytes
) -> None:
    sound = b"1,alice\n2,bob\n"
    write(folder, users=sound + torn, passwords=b"3,x\n", status=b"1,0\n2,0\n3,0\n")
    with opened(folder) as storage:
        assert (folder / "users.csv").read_bytes() == sound
        assert [user.name for user in storage.users()] == ["alice", "bob"]
        assert storage.sign_up("dave", None) == User(3, "dave")
        assert storage.password_hash(3) is None
    shown = f"{folder / 'users.csv'}: removed an unfinished last line: {torn!r}"
    assert ("storage", logging.WARNING, shown) in caplog.record_tuples


def test_the_only_line_may_be_torn(folder: Path) -> None:
    write(folder, users=b"1,ali", passwords=b'1,"$arg', status=b"1")
    with opened(folder) as storage:
        assert storage.users() == []
        assert {(folder / name).read_bytes() for name in FILES} == {b""}


@pytest.mark.parametrize(
    ("found", "repaired", "logged"),
    [
        (b'1,a\n2,b\n1,"$argon2id$v=19,t=2', b"1,a\n2,b\n", "removed a torn last line of 21 bytes"),
        (b"1,a\n2,b\n1", b"1,a\n2,b\n", "removed a torn last line of 1 bytes"),
        (b"1,a\n3,of nobody\n2,b\n", b"1,a\n2,b\n", "removed lines without a user: 1"),
        (b"9,x\n1,old\n1,a\n8,y\n9,z\n2,b\n", b"1,a\n2,b\n", "removed lines without a user: 2"),
        (b"1,a\n2,b\n300,above the highest id\n", b"1,a\n2,b\n", "removed lines without a user: 1"),
    ],
)
def test_torn_passwords_and_passwords_without_a_user_are_removed(
    folder: Path, caplog: pytest.LogCaptureFixture, found: bytes, repaired: bytes, logged: str
) -> None:
    write(folder, users=b"1,alice\n2,bob\n", passwords=found, status=b"1,0\n2,0\n")
    assert view_of(folder) == [(User(1, "alice"), "a"), (User(2, "bob"), "b")]
    assert (folder / "passwords.csv").read_bytes() == repaired
    assert caplog.record_tuples == [("storage", logging.WARNING, f"{folder / 'passwords.csv'}: {logged}")]
    assert "argon2" not in caplog.text


@pytest.mark.parametrize(
    ("found", "logged"),
    [
        (b"", ["added missing lines: 2"]),
        (b"2,1\n", ["added missing lines: 1"]),
        (b"1,0\n2,0\n3,1\n", ["removed lines without a user: 1"]),
        (b"1,0\n2,1\n1,1\n", []),
        (b"1,0\n2,", ["removed a torn last line: b'2,'", "added missing lines: 1"]),
        (b"1,0\n2,0", ["removed a torn last line: b'2,0'", "added missing lines: 1"]),
        (b"1,0\n2,0\n\0\0", ["removed a torn last line: b'\\x00\\x00'"]),
    ],
)
def test_every_user_has_one_status_line_after_a_start(
    folder: Path, caplog: pytest.LogCaptureFixture, found: bytes, logged: list[str]
) -> None:
    write(folder, users=b"1,alice\n2,bob\n", status=found)
    with opened(folder) as storage:
        assert (folder / "status.csv").read_bytes() == b"1,0\n2,0\n"
        storage.set_status(2, online=True)
        assert (folder / "status.csv").read_bytes() == b"1,0\n2,1\n"
    assert caplog.record_tuples == [("storage", logging.WARNING, f"{folder / 'status.csv'}: {line}") for line in logged]


def test_users_who_look_alike_since_before_this_was_refused_keep_their_names(folder: Path) -> None:
    cyrillic = "\N{CYRILLIC SMALL LETTER A}lice"
    write(folder, users=f"1,{cyrillic}\n2,alice\n".encode())
    with opened(folder) as storage:
        assert storage.find("alice") == User(2, "alice")
        assert storage.find(cyrillic) == User(1, cyrillic)
        storage.remove(1)
        assert storage.find("alice") == User(2, "alice")
        with pytest.raises(NameTaken):
            storage.sign_up(cyrillic, None)


def test_users_without_a_passwords_file_stop_the_start_unless_their_accounts_are_meant_to_be_open(folder: Path) -> None:
    write(folder, users=b"1,alice\n", passwords=b"1,a\n")
    (folder / "passwords.csv").unlink()
    with (
        pytest.raises(MissingFile, match="is missing, and without it every account is open"),
        opened(folder),
    ):
        pass
    assert contents(folder) == {"users.csv": b"1,alice\n", "lock": b""}
    with CsvStorage(folder, 10, 255, open_accounts=True) as storage:
        assert view(storage) == [(User(1, "alice"), None)]
    assert view_of(folder) == [(User(1, "alice"), None)]  # once is enough


def test_the_remains_of_an_interrupted_repair_are_overwritten(folder: Path) -> None:
    write(folder, users=b"1,alice\n", passwords=b"1,a\n2,x\n", status=b"1,1\n")
    for name in ("passwords.tmp", "status.tmp"):
        (folder / name).write_bytes(b"something long of an earlier start\n" * 9)
    assert view_of(folder) == [(User(1, "alice"), "a")]
    assert contents(folder) == {
        "lock": b"",
        "users.csv": b"1,alice\n",
        "passwords.csv": b"1,a\n",
        "status.csv": b"1,0\n",
    }


def test_a_repair_that_fails_loses_nothing_and_is_done_at_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, users=b"1,alice\n", passwords=b"1,a\n2,x\n", status=b"1,0\n")
    before = contents(folder)
    fail_after(monkeypatch, "fsync", 0)
    with pytest.raises(OSError, match="fsync failed"), opened(folder):
        pass
    assert before.items() <= contents(folder).items()
    assert view_of(folder) == [(User(1, "alice"), "a")]
    assert (folder / "passwords.csv").read_bytes() == b"1,a\n"


# Damage

BAD_LINES = [
    (b"x,zed", "user id 'x' is not a number"),
    (b",zed", "user id '' is not a number"),
    (b"0,zed", "user id '0' is not a number from 1 up"),
    (b"-1,zed", "user id '-1' is not a number from 1 up"),
    (b"+3,zed", "user id '+3' is not a number"),
    (b" 3,zed", "user id ' 3' is not a number"),
    (b"3_0,zed", "user id '3_0' is not a number"),
    ("٣,zed".encode(), "user id '٣' is not a number"),
    (b"\xef\xbb\xbf3,zed", "is not a number"),
    (b"9" * 5000 + b",zed", "4300 digits"),
    (b"3", "1 fields instead of 2"),
    (b"", "0 fields instead of 2"),
    (b"3,zed,0", "3 fields instead of 2"),
    (b'3,""', "the text after the user id is empty"),
    (b"3,z\xffd", "can't decode byte 0xff"),
    (b"3,\xed\xa0\x80", "can't decode byte 0xed"),
    (b"3,z\0d", "'\\x00' is not allowed in a line"),
    (b"3,zed\r", "'\\r' is not allowed in a line"),
    (b'3,"z"d', "this is not CSV"),
    (b'3,"zed', "this is not CSV: unexpected end of data"),
]
DAMAGE = [
    *((file, line, problem) for file in FILES for line, problem in BAD_LINES),
    ("users.csv", b"1,zed", "user id 1 appears twice"),
    ("users.csv", b"01,zed", "user id 1 appears twice"),
    ("users.csv", b"3,bob", "name 'bob' is the same as, or looks like, that of user 2"),
    ("users.csv", b"3,BOB", "name 'BOB' is the same as, or looks like, that of user 2"),
    ("users.csv", b"300,zed", "user id 300 is above the highest id that this server can number (255)"),
    ("users.csv", b"300,", "user id 300 is above the highest id that this server can number (255)"),
    ("passwords.csv", b"3,", "the line removes the password of user 3, who has none"),
    ("status.csv", b"1,", "status '' is neither 0 nor 1"),
    ("status.csv", b"1,2", "status '2' is neither 0 nor 1"),
    ("status.csv", b"1,online", "status 'online' is neither 0 nor 1"),
    ("status.csv", b"1,00", "status '00' is neither 0 nor 1"),
]


@pytest.mark.parametrize(("file", "line", "problem"), DAMAGE, ids=lambda value: str(value)[:40])
def test_an_invalid_line_stops_the_start_and_nothing_is_overwritten(
    folder: Path, caplog: pytest.LogCaptureFixture, file: str, line: bytes, problem: str
) -> None:
    text = b"0" if file == "status.csv" else b"bob"
    write(folder, users=b"1,alice\n3,torn", passwords=b"8,of nobody\n1,torn", status=b"1,1\n7")
    (folder / file).write_bytes(
        (b"1,alice\n" if text == b"bob" else b"1,0\n") + b"2," + text + b"\n" + line + b"\n4,torn"
    )
    before = contents(folder)
    with pytest.raises(DamagedFile) as caught, opened(folder):
        pass
    assert (caught.value.path, caught.value.line) == (folder / file, 3)
    assert str(caught.value).startswith(f"{folder / file}, line 3: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(folder) == {**before, "lock": b""}
    assert caplog.records == []


@pytest.mark.parametrize("line", [b"1,", b"1,zed", b"1,alice", b"2,ALICE"])
def test_a_line_about_a_removed_user_after_the_removal_is_damage_but_the_name_is_free(
    folder: Path, line: bytes
) -> None:
    write(folder, users=b"1,alice\n1,\n" + line + b"\n")
    before = contents(folder)
    if line == b"2,ALICE":
        assert view_of(folder) == [(User(2, "ALICE"), None)]
        return
    with pytest.raises(DamagedFile, match="line 3: user id 1 was removed in an earlier line"), opened(folder):
        pass
    assert contents(folder) == {**before, "lock": b""}


def test_a_password_that_is_removed_twice_is_damage_as_a_hash_that_was_cut_away_would_be(folder: Path) -> None:
    write(folder, users=b"1,alice\n", passwords=b"1,a\n1,\n1,\n")
    with pytest.raises(DamagedFile, match="line 3: the line removes the password"), opened(folder):
        pass


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("after", [b'na"\n3,0\n', b"na\n3,0\n", b"na", b""], ids=["closed", "open", "torn", "at LF"])
def test_a_quote_open_at_the_end_of_a_line_is_damage_there_and_swallows_no_line_after_it(
    folder: Path, file: str, after: bytes
) -> None:
    write(folder, users=b"1,alice\n", status=b"1,0\n", passwords=b"1,a\n")
    (folder / file).write_bytes((b"1,0\n" if file == "status.csv" else b"1,alice\n") + b'2,"an\n' + after)
    before = contents(folder)
    with pytest.raises(DamagedFile, match="line 2: this is not CSV"), opened(folder):
        pass
    assert contents(folder) == {**before, "lock": b""}


def test_every_own_error_is_a_storage_error() -> None:
    assert {DamagedFile, FolderInUse, StorageUnavailable} <= set(StorageError.__subclasses__())


# A disk that fails


@pytest.fixture
def two_users(folder: Path) -> Iterator[CsvStorage]:
    with opened(folder) as storage:
        storage.sign_up("alice", HASH)
        storage.sign_up("bob", None)
        yield storage


FAILURES = [(call, successes) for call in ("pwrite", "fsync") for successes in range(3)]


@pytest.mark.parametrize(("call", "successes"), FAILURES)
def test_a_sign_up_that_fails_leaves_no_trace_and_the_next_one_gets_its_id(
    folder: Path, two_users: CsvStorage, monkeypatch: pytest.MonkeyPatch, call: str, successes: int
) -> None:
    before, users = contents(folder), view(two_users)
    fail_after(monkeypatch, call, successes)
    with pytest.raises(StorageUnavailable, match=f"{call} failed") as caught:
        two_users.sign_up("carol", HASH)
    assert isinstance(caught.value.__cause__, OSError)
    assert contents(folder) == before
    assert view(two_users) == users
    assert two_users.look_alike("carol") is None
    assert two_users.password_hash(3) is None
    assert two_users.sign_up("dave", None) == User(3, "dave")
    two_users.set_status(3, online=True)
    assert (folder / "status.csv").read_bytes() == b"1,0\n2,0\n3,1\n"
    two_users.__exit__()
    assert view_of(folder) == [*users, (User(3, "dave"), None)]


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
@pytest.mark.parametrize("change", [lambda storage: storage.remove(1), lambda storage: storage.set_password(1, None)])
def test_a_removal_that_cannot_be_written_changes_nothing_and_succeeds_later(
    folder: Path,
    two_users: CsvStorage,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    change: Callable[[CsvStorage], None],
) -> None:
    two_users.set_status(1, online=True)
    before, users = contents(folder), view(two_users)
    fail_after(monkeypatch, call, 0)
    with pytest.raises(StorageUnavailable):
        change(two_users)
    assert contents(folder) == before
    assert view(two_users) == users
    assert two_users.find("alice") == User(1, "alice")
    assert two_users.is_online(1)
    change(two_users)
    after = view(two_users)
    assert after != users
    two_users.__exit__()
    assert view_of(folder) == after


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_password_that_cannot_be_written_leaves_the_old_one(
    folder: Path, two_users: CsvStorage, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before, users = contents(folder), view(two_users)
    fail_after(monkeypatch, call, 0)
    with pytest.raises(StorageUnavailable):
        two_users.set_password(1, OTHER_HASH)
    assert contents(folder) == before
    assert view(two_users) == users
    two_users.set_password(1, OTHER_HASH)
    two_users.__exit__()
    assert view_of(folder) == [(User(1, "alice"), OTHER_HASH), (User(2, "bob"), None)]


def test_a_status_that_cannot_be_written_stays_what_it_was(
    two_users: CsvStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(monkeypatch, "pwrite", 0)
    with pytest.raises(StorageUnavailable, match=r"status\.csv"):
        two_users.set_status(1, online=True)
    assert not two_users.is_online(1)
    two_users.set_status(1, online=True)
    assert two_users.is_online(1)


@pytest.mark.parametrize("call", ["ftruncate", "fsync"])
def test_a_cut_that_fails_is_made_before_anything_more_is_appended(
    folder: Path, two_users: CsvStorage, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before, users = contents(folder), view(two_users)
    with monkeypatch.context() as patch:
        fail_after(patch, "ftruncate", 0, failures=100)
        if call == "fsync":  # all the calls fail from the line in users.csv on, those of the cut too
            fail_after(patch, "fsync", 2, failures=100)
        else:
            fail_after(patch, "fsync", 2)
        for _ in range(3):
            with pytest.raises(StorageUnavailable):
                two_users.sign_up("carol", HASH)
            assert view(two_users) == users
        assert len(contents(folder)["passwords.csv"]) == len(before["passwords.csv"] + b'3,""\n' + HASH.encode())
    two_users.set_password(2, OTHER_HASH)
    assert {name: contents(folder)[name] for name in ("users.csv", "status.csv")} == {
        name: before[name] for name in ("users.csv", "status.csv")
    }
    assert two_users.sign_up("dave", None) == User(3, "dave")
    two_users.__exit__()
    assert view_of(folder) == [(User(1, "alice"), HASH), (User(2, "bob"), OTHER_HASH), (User(3, "dave"), None)]


def test_a_cut_back_is_synced_file_by_file_the_user_first(
    folder: Path, two_users: CsvStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(monkeypatch, "fsync", 2)
    calls = Calls(monkeypatch, folder)
    with pytest.raises(StorageUnavailable):
        two_users.sign_up("carol", HASH)
    cut_back = calls.order()[calls.order().index(("pwrite", "users.csv")) + 1 :]
    assert cut_back == [("fsync", "users.csv"), ("fsync", "status.csv"), ("fsync", "passwords.csv")]


@pytest.mark.parametrize("synced", range(4))
def test_a_cut_that_fails_half_way_never_leaves_a_user_without_the_password(
    folder: Path, two_users: CsvStorage, monkeypatch: pytest.MonkeyPatch, synced: int
) -> None:
    users = view(two_users)
    fail_after(monkeypatch, "fsync", 2)  # the line in users.csv, which may all the same be on disk
    fail_after(monkeypatch, "ftruncate", synced, failures=100)
    with pytest.raises(StorageUnavailable):
        two_users.sign_up("carol", HASH)
    two_users.__exit__()
    monkeypatch.undo()
    assert view_of(folder) in (users, [*users, (User(3, "carol"), HASH)])


def test_an_append_interrupted_by_anything_else_is_cut_off_before_the_next(
    folder: Path, two_users: CsvStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    users = view(two_users)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            two_users.sign_up("carol", HASH)
    assert two_users.sign_up("dave", None) == User(3, "dave")
    two_users.__exit__()
    assert view_of(folder) == [*users, (User(3, "dave"), None)]


# A full disk

NINE_USERS: dict[
    str, Callable[[int], tuple[str, str | None]]
] = {  # by the file that fills up first: (name, hash) of user `n`
    "passwords.csv": lambda n: (f"u{n}", HASH),
    "users.csv": lambda n: (f"user-with-a-long-name{n}", None),
    "status.csv": lambda n: (f"{n}", None),
}


def fill_up(folder: Path, full: str, room: int) -> None:
    """Run in a process of its own: let `full` be the file that has only `room` bytes left, then give more."""
    returned = []
    real = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        returned.append((real(descriptor, data, offset), len(data)))
        return returned[-1][0]

    pytest.MonkeyPatch().setattr(os, "pwrite", pwrite)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(folder) as storage:
        for n in range(1, 10):
            storage.sign_up(*NINE_USERS[full](n))
        before, users = contents(folder), view(storage)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[full]) + room, hard))
        for attempt in range(3):
            returned.clear()
            with pytest.raises(StorageUnavailable, match="too large"):
                storage.sign_up(f"user-with-a-long-name-{attempt}", "a,hash")
            assert [got for got, wanted in returned if got != wanted] == ([room] if room else [])
            assert contents(folder) == before
            assert view(storage) == users
        storage.set_status(9, online=True)  # overwrites a byte that is there: it needs no room
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert storage.sign_up("carol", None) == User(10, "carol")
        storage.set_password(1, OTHER_HASH)
        storage.set_status(10, online=True)


@pytest.mark.parametrize("room", [0, 3])
@pytest.mark.parametrize("full", FILES)
def test_a_full_disk_refuses_sign_ups_and_loses_nothing_and_they_go_on_when_there_is_room(
    folder: Path, caplog: pytest.LogCaptureFixture, full: str, room: int
) -> None:
    program = (
        "import sys, pathlib, tests.test_storage_failures as failures\n"
        "failures.fill_up(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))"
    )
    result = run_python(program, str(folder), full, str(room))
    assert result.returncode == 0, result.stderr
    assert (folder / "status.csv").read_bytes().endswith(b"9,1\n10,1\n")
    nine = [(User(n, NINE_USERS[full](n)[0]), NINE_USERS[full](n)[1] if n > 1 else OTHER_HASH) for n in range(1, 10)]
    assert view_of(folder) == [*nine, (User(10, "carol"), None)]
    assert caplog.records == []
