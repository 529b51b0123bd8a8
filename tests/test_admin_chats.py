"""What an operator does with past chats: export, backup, and what becomes of those of a user who is removed."""

import csv
import io
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from protocol import Feature, encode_chat_init
from testkit import HarnessError
from testkit.processes import DEADLINE, ROOT, wait_for
from testkit.server import ServerProcess, StartServer
from testkit.wire import Wire
from tests.test_admin import admin, refusal

pytestmark = pytest.mark.measured

AWAY = Feature.MAILBOX | Feature.HISTORY
TEXTS = ["hello", "", 'with "quotes", and commas', "two\nlines", "ümläut", "x" * 136]


def talk(server: ServerProcess) -> tuple[Wire, Wire]:
    """alice (1) says TEXTS to bob (2), who answers once."""
    alice, bob = server.log_in("alice", features=AWAY), server.log_in("bob")
    alice.chat_with(2)
    bob.chat_with(1)
    for text in TEXTS:
        alice.say(text)
    alice.expect_pong()
    bob.say("so it is")
    alice.expect_message("bob:so it is")
    return alice, bob


def exported(folder: Path) -> list[list[str]]:
    header, *lines = csv.reader(io.StringIO(admin(folder, "export"), newline=""))
    assert header == ["time", "sender", "receiver", "text"]
    for line in lines:
        assert abs(datetime.fromisoformat(line[0]).timestamp() - time.time()) < 60 + DEADLINE
        assert datetime.fromisoformat(line[0]).tzinfo == UTC
    return [line[1:] for line in lines]


def wait_for_export(server: ServerProcess, text: str) -> None:
    """Until the last message is this one: it is on disk soon."""
    wait_for(f"{text!r} on disk", lambda: [line[-1] for line in exported(server.data_dir)][-1:] == [text])


EXPORTED = [*(["alice", "bob", text] for text in TEXTS), ["bob", "alice", "so it is"]]


def test_every_message_is_exported_with_the_server_up_or_down(start_server: StartServer) -> None:
    server = start_server("--sync", "always")
    alice, _ = talk(server)
    alice.say("barrier")
    wait_for_export(server, "barrier")
    assert exported(server.data_dir)[:-1] == EXPORTED
    server.stop()
    assert exported(server.data_dir)[:-1] == EXPORTED


def test_a_text_with_line_ends_of_any_kind_is_one_record(start_server: StartServer) -> None:
    server = start_server()
    texts = ["two\rlines", "two\nlines", 'a "quoted", one', "plain"]
    with server.log_in("alice") as alice, server.log_in("bob"):
        alice.chat_with(2)
        for text in texts:
            alice.say(text)
        wait_for_export(server, "plain")
    command = [sys.executable, "admin.py", "--data-dir", str(server.data_dir), "export"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=DEADLINE, check=True).stdout.decode()
    assert [line[-1] for line in csv.reader(io.StringIO(output, newline=""), strict=True)][1:] == texts


def test_a_safe_export_has_no_formulas(start_server: StartServer) -> None:
    server = start_server()
    with server.log_in("=alice") as alice, server.log_in("bob"):
        alice.chat_with(2)
        for text in ("=1+1", "+1", "-1", "@SUM(A1)", "\tx", "a=b"):
            alice.say(text)
        wait_for_export(server, "a=b")
    safe = list(csv.reader(io.StringIO(admin(server.data_dir, "export", "--safe"), newline="")))[1:]
    assert [line[1:] for line in safe] == [
        ["'=alice", "bob", text] for text in ("'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\tx", "a=b")
    ]
    assert exported(server.data_dir)[0] == ["=alice", "bob", "=1+1"]


def test_without_history_there_is_nothing_to_export(start_server: StartServer) -> None:
    server = start_server("--history", "off")
    talk(server)
    assert refusal(server.data_dir, "export") == f"there are no past chats in {server.data_dir}"


@pytest.mark.parametrize("running", [True, False])
def test_a_backup_holds_the_chats_and_what_waits_in_mailboxes(
    start_server: StartServer, tmp_path: Path, running: bool
) -> None:
    server = start_server("--sync", "always")
    alice, bob = talk(server)
    bob.close()
    server.wait_for_log("bob disconnected")
    alice.say("for later")
    wait_for_export(server, "for later")
    if not running:
        server.stop()
    admin(server.data_dir, "backup", tmp_path / "copy")
    assert exported(tmp_path / "copy") == [*EXPORTED, ["alice", "bob", "for later"]]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "copy").iterdir() if path.is_file()} == {0o600}
    restored = start_server(data_dir=tmp_path / "copy")
    restored.log_in("bob").expect_message("alice:for later")


def test_a_backup_of_damaged_chats_is_an_error_and_leaves_nothing(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    talk(server)
    server.stop()
    (server.data_dir / "chats.db").write_bytes(b"nonsense" * 1000)
    assert "chats.db" in refusal(server.data_dir, "backup", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_chats_of_a_removed_user_are_erased_at_the_next_start(start_server: StartServer) -> None:
    server = start_server()
    alice, _ = talk(server)
    carol = server.log_in("carol")
    carol.chat_with(1)
    carol.say("hi alice")
    alice.expect_message("carol:hi alice")
    admin(server.data_dir, "remove", "bob")
    alice.send(encode_chat_init(2))
    assert alice.read() == (4, b"\x00\x0fUser Not Online")
    server.stop()
    again = start_server()
    again.wait_for_log("removed the chats of user 2")
    again.stop()
    assert exported(server.data_dir) == [["carol", "alice", "hi alice"]]
    with closing(sqlite3.connect(server.data_dir / "chats.db")) as database:
        assert b"so it is" not in b"".join(database.serialize() for _ in range(1))


@pytest.mark.parametrize("content", [b"nonsense" * 1000, b"SQLite format 3\0" + b"x" * 5000])
def test_a_server_does_not_start_on_damaged_chats_and_says_which_file(
    start_server: StartServer, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "chats.db").write_bytes(content)
    with pytest.raises(HarnessError, match=r"cannot start: .*chats\.db"):
        start_server()
    assert (tmp_path / "data" / "chats.db").read_bytes() == content
    start_server("--history", "off").log_in("alice").expect_pong()
