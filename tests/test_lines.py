"""The program a person chats with, line by line through pipes, as scripts use it."""

import calendar
import os
from pathlib import Path

import pytest

from chatserver import __version__
from client import ChatClient, MessageReceived
from protocol import HISTORY_END, Feature, PacketType, Reason, encode_user, parse_history_request, parse_login
from testkit.programs import Program, StartLines
from testkit.scripted_server import SECONDS, ScriptedServer, message, past
from testkit.server import ServerProcess

NOON = calendar.timegm((2026, 11, 26, 12, 0, 0))


def after_login(program: Program) -> list[str]:
    """What it says then; before, that it waits if the server is slow, and nothing else."""
    first, *rest = (line for line in program.text.splitlines() if not line.startswith("* no answer from "))
    assert first.startswith("* logged in at ")
    return rest


def test_lines_of_a_script(server: ServerProcess, bob: ChatClient, lines: StartLines) -> None:
    typed = f"/list\n\n/chat bob\nhello\n//slash\n{'long ' * 60}"
    alice = lines("alice", server.address, typed=typed)
    assert alice.wait() == 0, alice.text
    assert after_login(alice) == ["* online: bob (1), alice (you)"] * 2 + ["* now writing to bob"]
    events = [bob.receive() for _ in range(5)]
    assert all(isinstance(event, MessageReceived) for event in events)
    texts = [event.text for event in events if isinstance(event, MessageReceived)]
    assert texts[:2] == ["hello", "/slash"]
    assert "".join(texts[2:]) == "long " * 60


def test_messages_are_printed_plainly(server: ServerProcess, bob: ChatClient, lines: StartLines) -> None:
    alice = lines("alice", server.address)
    alice.wait_for(r"^\* online")
    bob.chat("alice")
    bob.send("hello")
    alice.wait_for("^bob: hello$")
    bob.send("line\nbreak")
    alice.wait_for(r"^bob: line\\nbreak$")
    alice.end_input()
    assert alice.wait() == 0


def test_linger_receives_for_a_while(server: ServerProcess, bob: ChatClient, lines: StartLines) -> None:
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
        peer.greet()
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
        ("/chat\n", "^! usage: /chat NAME"),
        ("/chat 99\n", "^! User Not Online: 99$"),
        (f"/chat {'9' * 5000}\n", "^! not done: a user id is"),
        ("/history\n", "^! with whom"),
        ("/history 256 bob\n", "^! usage: /history"),
        ("/history carol\n", "^! User Not Online: carol "),
        ("/chat 0\n", "^! not done: a user id is"),
        ("/chat bob\n/chat carol\nfor carol\n", "^! not sent: choose a partner first"),
        ("/chat bob\n\udc80\n", "^! not sent: this text is not UTF-8$"),
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


def test_scripts_ask_only_for_history_and_mailboxes(scripted: ScriptedServer, lines: StartLines) -> None:
    alice = lines("alice", scripted.address, typed="")
    with scripted.accept() as peer:
        peer.greet()
        assert parse_login(peer.expect(PacketType.CONFIG)).features == Feature.HISTORY | Feature.MAILBOX
        peer.send(encode_user("alice", 1, 1))
        peer.pong()
        assert alice.wait() == 0


def test_scripts_get_no_presence(server: ServerProcess, lines: StartLines) -> None:
    alice = lines("alice", server.address)
    alice.wait_for(r"^\* online")
    with ChatClient(server.host, server.port) as bob:
        bob.login("bob")
    server.wait_for_log("bob disconnected")
    alice.type("/chat alice\nhello\n")
    alice.wait_for("^alice: hello$")
    alice.end_input()
    assert alice.wait() == 0
    assert after_login(alice)[1:] == ["* now writing to alice", "alice: hello"]


def test_an_offline_user_is_written_to_by_id(server: ServerProcess, lines: StartLines) -> None:
    with ChatClient(server.host, server.port) as bob:
        bob.login("bob")
    server.wait_for_log("bob disconnected")
    alice = lines("alice", server.address, typed="/chat id:1\nthe build is green\n")
    assert alice.wait() == 0
    assert after_login(alice)[1:] == [
        "* now writing to id 1, who is offline: messages wait for the next login",
    ]
    bob_again = lines("bob", server.address, typed="")
    assert bob_again.wait() == 0
    assert after_login(bob_again)[1:] == ["alice: the build is green"]


def test_past_chats_in_lines(scripted: ScriptedServer, lines: StartLines) -> None:
    alice = lines("alice", scripted.address, typed="/history 2 bob\n/history bob\n", TZ="XXX-13:30")
    with scripted.accept() as peer:
        peer.greet()
        peer.log_in("alice", "bob")
        assert parse_history_request(peer.expect(PacketType.HISTORY)) == (2, 1)
        peer.send(past(NOON, 1, message("bob", "hi")), past(NOON + 59, 2, message("alice", "\x1b[2J")), HISTORY_END)
        assert parse_history_request(peer.expect(PacketType.HISTORY)) == (20, 1)
        peer.send(HISTORY_END)
        peer.pong()
        assert alice.wait() == 0
    assert after_login(alice)[1:] == [
        "2026-11-27 01:30 bob: hi",
        r"2026-11-27 01:30 alice: \x1b[2J",
        "* there are no messages yet",
    ]


def test_server_that_goes_away_ends_it_though_input_goes_on(server: ServerProcess, lines: StartLines) -> None:
    alice = lines("alice", server.address)
    alice.wait_for(r"^\* online")
    assert server.stop() == 0
    assert alice.wait() == 1
    assert after_login(alice)[1:] == ["! the server closed the connection (Server Shutting Down)"]


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
        (["alice", "host:0"], "not a port"),
        (["--password", "alice"], "asks at a terminal"),
        (["--password-file", "/nonexistent", "alice"], "no password in /nonexistent"),
        (["--linger", "nan", "alice"], "not a number of seconds"),
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
        "/history [N] [NAME|id:N]",
        '"2026-11-26 14:03 name: text", in local time',
        "stored ",
        "--password-file FILE",
        "CHAT_PASSWORD",
        "tls://",
        "--tls-ca FILE",
        "exit status",
        "//TEXT",
    ):
        assert word in explained.text


def test_a_reader_of_the_output_that_goes_away(server: ServerProcess, bob: ChatClient, lines: StartLines) -> None:
    alice = lines("alice", server.address)
    alice.wait_for(r"^\* online.*\n")  # unbuffered, the line's end is a write of its own
    alice.drop_output()
    bob.chat("alice")
    bob.send("hello")
    assert alice.process.wait(SECONDS) == 1


def test_a_reader_of_the_output_that_was_never_there(server: ServerProcess, lines: StartLines) -> None:
    alice = lines("alice", server.address)
    alice.wait_for(r"^\* online.*\n")  # unbuffered, the line's end is a write of its own
    alice.drop_output()
    alice.type("/list\n/list\n")
    alice.end_input()
    assert alice.process.wait(SECONDS) == 1
