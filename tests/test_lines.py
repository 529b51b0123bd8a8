"""The program a person chats with, line by line through pipes, as scripts use it."""

import os
from pathlib import Path

import pytest

from chatserver import __version__
from client import ChatClient, MessageReceived
from protocol import PacketType, Reason
from tests.conftest import StartLines
from tests.processes import ServerProcess
from tests.scripted_server import SECONDS, ScriptedServer

UP, TAB, CTRL_C, CTRL_D = "\x1b[A", "\t", "\x03", "\x04"
EVIL = "\x1b]0;owned\x07\u202e"
EVIL_SHOWN = r"\\x1b\]0;owned\\x07\\u202e"


def test_lines_of_a_script(server: ServerProcess, bob: ChatClient, lines: StartLines) -> None:
    typed = f"/list\n\n/chat bob\nhello\n//slash\n{'long ' * 60}"
    alice = lines("alice", server.address, typed=typed)
    assert alice.wait() == 0, alice.text
    assert alice.text.splitlines()[1:] == ["* online: bob (1), alice (you)"] * 2 + ["* you write to bob now"]
    events = [bob.receive() for _ in range(5)]
    assert all(isinstance(event, MessageReceived) for event in events)
    texts = [event.text for event in events if isinstance(event, MessageReceived)]
    assert texts[:2] == ["hello", "/slash"]
    assert "".join(texts[2:]) == "long " * 60


def test_messages_come_out_plain(server: ServerProcess, bob: ChatClient, lines: StartLines) -> None:
    alice = lines("alice", server.address)
    alice.wait_for(r"^\* online")
    bob.chat("alice")
    bob.send("hello")
    alice.wait_for("^bob: hello$")
    bob.send("line\nbreak")
    alice.wait_for(r"^bob: line\\nbreak$")
    alice.end_input()
    assert alice.wait() == 0


def test_goes_on_receiving_for_a_while(server: ServerProcess, bob: ChatClient, lines: StartLines) -> None:
    alice = lines("--linger", 60, "alice", server.address, typed="")
    alice.wait_for(r"^\* online")
    bob.chat("alice")
    bob.send("hello")
    alice.wait_for("^bob: hello$")
    alice.interrupt()
    assert alice.wait() == 130
    assert "Traceback" not in alice.text


def test_end_of_input_waits_for_the_errors(scripted: ScriptedServer, lines: StartLines) -> None:
    alice = lines("alice", scripted.address, typed="/chat bob\nlost\n")
    with scripted.accept() as peer:
        peer.pong()
        peer.log_in("alice", "bob")
        peer.expect(PacketType.CHAT_INIT)
        peer.pong()
        peer.refuse(PacketType.MESSAGE, Reason.USER_NOT_ONLINE)
        peer.pong()
        assert alice.wait() == 1
    alice.wait_for("^! User Not Online: your message was not delivered$")


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("hello\n", "^! not sent: choose a partner first"),
        ("/who\n", "^! unknown command /who: /help"),
        ("/chat\n", "^! who"),
        ("/chat 99\n", "^! User Not Online: 99$"),
        ("/chat 0\n", "^! not done: a user id is"),
        ("/chat bob\n/chat carol\nfor carol\n", "^! not sent: choose a partner first"),
        ("/chat bob\n\udc80\n", "^! not sent: this text is no UTF-8$"),
    ],
)
def test_a_line_that_fails(
    server: ServerProcess, bob: ChatClient, lines: StartLines, typed: str, complaint: str
) -> None:
    alice = lines("alice", server.address)
    os.write(alice._input, typed.encode(errors="surrogateescape"))
    alice.end_input()
    assert alice.wait() == 1
    alice.wait_for(complaint)
    bob.ping()
    with pytest.raises(TimeoutError):
        bob.receive(timeout=0)


def test_server_that_goes_away_ends_it_though_input_goes_on(server: ServerProcess, lines: StartLines) -> None:
    alice = lines("alice", server.address)
    alice.wait_for(r"^\* online")
    assert server.stop() == 0
    assert alice.wait() == 1
    assert alice.text.splitlines()[2:] == ["! the server closed the connection (Server Shutting Down)"]


def test_password_file(server: ServerProcess, lines: StartLines, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sesame\nnot this\n")
    assert lines("--password-file", secret, "alice", server.address, typed="").wait() == 0
    wrong = lines("alice", server.address, typed="", CHAT_PASSWORD="simsalabim")
    assert wrong.wait() == 1
    wrong.wait_for("^! cannot log in: Wrong Password$")
    assert lines("alice", server.address, typed="", CHAT_PASSWORD="sesame").wait() == 0


def test_name_in_use(server: ServerProcess, bob: ChatClient, lines: StartLines) -> None:
    second = lines(bob.username, server.address, typed="")
    assert second.wait() == 1
    second.wait_for("^! cannot log in: User Already Online!: somebody is logged in with this name$")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required: NAME"),
        (["a b"], "a name has"),
        (["alice", "ssh://host"], "ssh:// is unknown"),
        (["alice", "host:0"], "no port"),
        (["--password", "alice"], "asks at a terminal"),
        (["--password-file", "/nonexistent", "alice"], "no password in /nonexistent"),
        (["--linger", "nan", "alice"], "no number of seconds"),
        (["--tls-ca", "/nonexistent", "alice", "tls://host"], "no certificates in /nonexistent"),
        (["--tls-ca", "/nonexistent", "alice", "host"], "begins with tls://"),
    ],
)
def test_bad_usage(lines: StartLines, arguments: list[str], complaint: str) -> None:
    program = lines(*arguments, typed="")
    assert program.wait() == 2
    program.wait_for(complaint)


def test_help_and_version(lines: StartLines) -> None:
    version = lines("--version", typed="")
    assert version.wait() == 0
    assert version.text == f"terminal.py {__version__}\n"
    explained = lines("--help", typed="")
    assert explained.wait() == 0
    for word in (
        "/chat NAME",
        "--password-file FILE",
        "CHAT_PASSWORD",
        "tls://",
        "--tls-ca FILE",
        "exit status",
        "//TEXT",
    ):
        assert word in explained.text


def test_reader_of_the_output_who_goes(server: ServerProcess, bob: ChatClient, lines: StartLines) -> None:
    alice = lines("alice", server.address)
    alice.wait_for(r"^\* online.*\n")  # unbuffered, the line's end is a write of its own
    alice.drop_output()
    bob.chat("alice")
    bob.send("hello")
    assert alice.process.wait(SECONDS) == 1


def test_reader_of_the_output_who_is_not_there(server: ServerProcess, lines: StartLines) -> None:
    alice = lines("alice", server.address)
    alice.wait_for(r"^\* online.*\n")  # unbuffered, the line's end is a write of its own
    alice.drop_output()
    alice.type("/list\n/list\n")
    alice.end_input()
    assert alice.process.wait(SECONDS) == 1
