"""A short `make crash-test`, and its checker on folders with each kind of loss."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from chatstorage.chat_file import ChatFile
from chatstorage.chats import ChatRow
from protocol import Envelope
from stress.crash import CrashTest
from stress.records import ExpectedAccount, Inspector, find_missing
from testkit.processes import ROOT, untraced

HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.mark.slow
def test_twenty_kills_lose_nothing_that_was_confirmed(tmp_path: Path) -> None:
    test = CrashTest(tmp_path, seed=1)
    test.run(20, print)
    assert test.faults == []
    assert test.figures["kills"] == 20
    assert test.figures["sign-ups confirmed"] > 0
    assert test.figures["letters stored"] > 0


@pytest.mark.slow
def test_the_program_reports_its_seed_and_its_figures() -> None:
    command = [sys.executable, "-m", "stress.crash", "--kills", "1", "--seed", "7"]
    done = subprocess.run(  # untraced: in threads without gevent's patching coverage's greenlet tracer can hang
        command, cwd=ROOT, env=untraced(), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"seed 7\b.* kills 1, .* lost 0$", done.stdout.strip().splitlines()[-1])


def test_a_server_that_does_not_start_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", users="x,alice\n")
    test = CrashTest(tmp_path, seed=1)
    test.run(3, print)
    assert "does not start" in test.faults[0]
    assert "users.csv, line 1" in test.faults[0]


# The checker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a server leaves it: alice (1) has the password secret, bob (2) and "c" (3) have none."""
    write(
        tmp_path,
        users='1,alice\n2,bob\n3,"""c"""\n',
        passwords=f'1,"{HASHER.hash("secret")}"\n',
        status="1,0\n2,0\n3,0\n",
    )
    return tmp_path


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)


def accounts() -> list[ExpectedAccount]:
    return [ExpectedAccount("alice", 1, "secret"), ExpectedAccount("bob", 2), ExpectedAccount('"c"', 3)]


def inspect(folder: Path, known: list[ExpectedAccount], repaired: bool = True) -> list[str]:
    return Inspector().inspect(folder, known, repaired)


def test_an_intact_folder_has_no_faults(folder: Path) -> None:
    assert inspect(folder, accounts()) == []
    assert inspect(folder, accounts(), repaired=False) == []


def replace(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return change


WRONG = {
    "a user is missing": (replace("users.csv", "2,bob\n", ""), "user 2, 'bob': was signed up, and is lost"),
    "an id is double": (replace("users.csv", "2,bob", "1,bob"), "users.csv: id 1 is there 2 times"),
    "a name is double": (replace("users.csv", "3,", "3,bob\n4,"), "users.csv: 'bob' is there 2 times"),
    "an id has changed": (replace("users.csv", "2,bob", "9,bob"), "user 2, 'bob': has id 9 now"),
    "a stranger": (replace("users.csv", "3,", "4,eve\n3,"), "user 4, 'eve': no client signed this name up"),
    "a torn line": (replace("users.csv", '"c"""\n', '"c'), "users.csv: the last line is torn"),
    "two lines in one": (replace("users.csv", "\n2", "2"), "user 2, 'bob': was signed up, and is lost"),
    "no line at all": (replace("users.csv", "2,bob", "\0\0\0"), "users.csv, line 2: this is no line"),
    "no password": (lambda folder: write(folder, passwords=""), "none is stored in place of the password ['secret']"),
    "another password": (
        lambda folder: write(folder, passwords=f'1,"{HASHER.hash("x")}"\n'),
        "another is stored in place of the password ['secret']",
    ),
    "a password that nobody gave": (
        lambda folder: write(folder, passwords=f'2,"{HASHER.hash("x")}"\n'),
        "user 2, 'bob': another is stored in place of the password ['']",
    ),
    "a hash that is none": (lambda folder: write(folder, passwords="1,secret\n"), "another is stored in place"),
    "a password without a user": (replace("passwords.csv", "1,", "9,"), "passwords.csv: id 9 has no user"),
    "still online": (replace("status.csv", "2,0", "2,1"), "status.csv: user 2 is '1'"),
    "no status": (replace("status.csv", "2,0\n", ""), "status.csv: there is not one line for each user"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_checker_finds(folder: Path, wrong: str) -> None:
    spoil, fault = WRONG[wrong]
    spoil(folder)
    assert [found for found in inspect(folder, accounts()) if fault in found]


def test_a_torn_last_line_is_a_fault_only_after_the_repair(folder: Path) -> None:
    with (folder / "users.csv").open("a") as users:
        users.write("4,da")
    assert inspect(folder, accounts(), repaired=False) == []
    assert inspect(folder, accounts()) == ["users.csv: the last line is torn: b'4,da'"]


@pytest.mark.parametrize("done", [False, True])
def test_a_request_without_an_answer_is_done_or_not_and_stays_so(folder: Path, done: bool) -> None:
    *others, bob, c = accounts()
    inspector = Inspector()
    bob.begin("new")
    dave = ExpectedAccount("dave")
    dave.begin("")
    known = [*others, bob, c, dave]
    before = {path: path.read_text() for path in folder.iterdir()}
    if done:
        write(
            folder,
            users=before[folder / "users.csv"] + "4,dave\n",
            passwords=before[folder / "passwords.csv"] + f'2,"{HASHER.hash("new")}"\n',
            status="1,0\n2,0\n3,0\n4,0\n",
        )
    assert inspector.inspect(folder, known, repaired=True) == []
    assert (bob.password, dave.user_id) == (("new", 4) if done else ("", 0))
    assert not bob.ambiguous
    known = [account for account in known if account.user_id]
    if done:  # now undo it, or do it after all
        for path, text in before.items():
            path.write_text(text)
    else:
        write(folder, users=before[folder / "users.csv"] + "4,dave\n", passwords=f'2,"{HASHER.hash("new")}"\n')
    assert (
        len([fault for fault in inspector.inspect(folder, known, repaired=False) if "bob" in fault or "dave" in fault])
        == 2
    )


def test_a_sign_up_without_an_answer_must_have_its_password(folder: Path) -> None:
    dave = ExpectedAccount("dave")
    dave.begin("secret")
    replace("users.csv", "3,", "4,dave\n3,")(folder)
    (fault,) = inspect(folder, [*accounts(), dave], repaired=False)
    assert "user 4, 'dave': none is stored in place of the password ['secret']" in fault


def test_a_letter_with_a_stored_receipt_must_be_there_exactly_once(tmp_path: Path) -> None:
    def row(number: int, *texts: str) -> ChatRow:
        packets = b"".join(Envelope("alice").wrap(text.encode()) for text in texts)
        return ChatRow(number, 1, 2, 1_700_000_000, len(texts), 0, packets)

    with ChatFile(tmp_path / "chats.db", 100) as chats:
        chats.write([row(1, "one", "two"), row(2, "two"), row(3, "three")], {})
        there = [path.name for path in tmp_path.iterdir()]
        assert find_missing(tmp_path, [(1, 2, "one"), (1, 2, "three")]) == []
        assert find_missing(tmp_path, [(1, 2, "two")]) == [
            "chats.db: (1, 2, 'two') has a stored receipt, and is there 2 times"
        ]
        for letter in ((1, 2, "four"), (2, 1, "one"), (1, 3, "one")):
            assert "is there 0 times" in find_missing(tmp_path, [letter])[0]
        assert [path.name for path in tmp_path.iterdir()] == there, "the check changed the folder"
