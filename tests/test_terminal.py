"""The program a person chats with: on a screen, and line by line through pipes."""

import os
import stat
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver import __version__
from chatterminal.display import JOINERS, visible
from client import ChatClient, MessageReceived
from protocol import PacketType, Reason, encode, encode_string, encode_user, parse_login, parse_text
from tests.conftest import StartServer
from tests.processes import ServerProcess
from tests.programs import Program, ScreenProgram
from tests.scripted_server import SECONDS, ScriptedServer, message

StartTerminal = Callable[..., ScreenProgram]
StartLines = Callable[..., Program]

UP, TAB, CTRL_C, CTRL_D = "\x1b[A", "\t", "\x03", "\x04"
EVIL = "\x1b]0;owned\x07\u202e"
EVIL_SHOWN = r"\\x1b\]0;owned\\x07\\u202e"


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"), "CHAT_PASSWORD": ""}


@pytest.fixture
def terminal(home: dict[str, str]) -> Iterator[StartTerminal]:
    """Starts the program at a terminal."""
    with ExitStack() as programs:

        def start(*arguments: object, **environment: str) -> ScreenProgram:
            return programs.enter_context(ScreenProgram("terminal.py", *arguments, environment=home | environment))

        yield start


@pytest.fixture
def lines(home: dict[str, str]) -> Iterator[StartLines]:
    """Starts the program with pipes."""
    with ExitStack() as programs:

        def start(*arguments: object, typed: str | None = None, **environment: str) -> Program:
            program = programs.enter_context(Program("terminal.py", *arguments, environment=home | environment))
            if typed is not None:
                program.type(typed)
                program.end_input()
            return program

        yield start


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def bob(server: ServerProcess) -> Iterator[ChatClient]:
    """bob (1) is online."""
    with ChatClient(server.host, server.port, SECONDS) as client:
        client.login("bob")
        yield client


# At a terminal


def test_two_people_chat(server: ServerProcess, terminal: StartTerminal) -> None:
    alice = terminal("alice", server.address)
    alice.wait_for(r"^\* online: alice \(you\)$")
    bob = terminal("bob", server.address)
    bob.wait_for(r"^\* online: alice \(1\), bob \(you\)\nbob>$")
    bob.type("/chat alice\r")
    bob.wait_for("^bob -> alice>$")
    alice.wait_for("^alice>$")
    alice.type("half a l")
    alice.wait_for("^alice> half a l$")
    bob.type("hi\r")
    alice.wait_for(r"^bob: hi\n\* to answer: /chat bob\nalice> half a l$")
    alice.type("ine")
    alice.wait_for("^alice> half a line$")
    alice.type("\r")
    alice.wait_for("^! not sent: choose a partner first.*\nalice>$")
    alice.type("/chat 2\rhello\r/list\r")
    alice.wait_for(r"^\* online: alice \(you\), bob \(2\)$")
    bob.wait_for("^alice: hello\nbob -> alice>$")
    bob.type("/quit\r")
    assert bob.wait() == 0


def test_error_in_plain_words(server: ServerProcess, bob: ChatClient, terminal: StartTerminal) -> None:
    alice = terminal("alice", server.address)
    alice.wait_for("^alice>")
    alice.type("/chat bob\r")
    alice.wait_for("^alice -> bob>")
    bob.close()
    server.wait_for_log("bob disconnected")
    alice.type("are you there?\r")
    alice.wait_for("^! User Not Online: your message was not delivered\nalice -> bob>$")
    alice.type("/chat carol\r")
    alice.wait_for("^! User Not Online: carol$")


def test_password_is_asked_for_without_echo(server: ServerProcess, terminal: StartTerminal) -> None:
    with ChatClient(server.host, server.port) as client:
        client.login("alice", "sesame")
    server.wait_for_log("alice disconnected")
    alice = terminal("alice", server.address)
    alice.wait_for(r"^\* Password Required\npassword of alice:$")
    alice.type("simsalabim\r")
    alice.wait_for(r"^\* Wrong Password\npassword of alice:$")
    alice.type("sesame\r")
    alice.wait_for("^alice>$")
    alice.type("/chat alice\r")
    alice.wait_for("^alice -> alice>$")
    alice.type(CTRL_D)
    assert alice.wait() == 0
    assert b"simsalabim" not in alice.raw
    assert b"sesame" not in alice.raw


def test_third_wrong_password_ends_it(server: ServerProcess, terminal: StartTerminal) -> None:
    with ChatClient(server.host, server.port) as client:
        client.login("alice", "sesame")
    server.wait_for_log("alice disconnected")
    alice = terminal("alice", server.address, CHAT_PASSWORD="first")
    for times in (1, 2):
        alice.wait_for("^password of alice:", times)
        alice.type("wrong\r")
    assert alice.wait() == 1
    alice.wait_for("^! cannot log in: Wrong Password$")


def test_password_secures_a_new_name(server: ServerProcess, terminal: StartTerminal, lines: StartLines) -> None:
    alice = terminal("--password", "alice", server.address)
    for times, password in enumerate(("sesame", "sesane"), start=1):
        alice.wait_for("^password of alice:$" if times == 1 else "^once more:$")
        alice.type(f"{password}\r")
    alice.wait_for(r"^\* these two differ\npassword of alice:$")
    alice.type("sesame\r")
    alice.wait_for("^once more:$", times=2)
    alice.type("sesame\r")
    alice.wait_for("^alice>$")
    alice.type("/quit\r")
    assert alice.wait() == 0
    refused = lines("alice", server.address, typed="")
    assert refused.wait() == 1
    refused.wait_for("^! cannot log in: Password Required: .*--password-file")
    assert lines("alice", server.address, typed="", CHAT_PASSWORD="sesame").wait() == 0


def test_password_that_took_long_to_type_is_used(start_server: StartServer, terminal: StartTerminal) -> None:
    server = start_server("--require-password", "--login-timeout", 1)
    alice = terminal("alice", server.address)
    alice.wait_for("^password of alice:$")
    server.wait_for_log("Login Timeout")
    alice.type("sesame\r")
    alice.wait_for("^alice>$")


def test_what_others_send_is_shown_not_executed(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice = terminal("alice", scripted.address)
    with scripted.accept() as peer:
        peer.pong()
        peer.log_in("alice", f"bo{EVIL}")
        peer.send(message(f"bo{EVIL}", f"{EVIL}\nalice: forged"))
        peer.send(encode(PacketType.ERROR, encode_string(f"Oops{EVIL}".encode())))
        alice.wait_for(rf"^\* online: bo{EVIL_SHOWN} \(1\), alice \(you\)$")
        alice.wait_for(rf"^bo{EVIL_SHOWN}: {EVIL_SHOWN}\\nalice: forged$")
        alice.wait_for(rf"^! Oops{EVIL_SHOWN}\nalice>$")
        alice.type("/chat bo\t")
        peer.log_in("alice", f"bo{EVIL}")
        alice.type("zz")
        alice.wait_for("^alice> /chat bozz$")
    assert b"\x1b]0;owned" not in alice.raw
    assert "\u202e".encode() not in alice.raw


def test_tab_completes_commands_and_names(server: ServerProcess, terminal: StartTerminal) -> None:
    alice = terminal("alice", server.address)
    alice.wait_for("^alice>$")
    with ChatClient(server.host, server.port) as late:
        late.login("barbara")
        alice.type("/c" + TAB)
        alice.wait_for("^alice> /chat")
        alice.type("ba" + TAB)
        alice.wait_for("^alice> /chat barbara$")
        alice.type("\r")
        alice.wait_for("^alice -> barbara>$")
        alice.type("/" + TAB)
        alice.wait_for("^/chat +/help +/list +/quit$")


def test_ctrl_c_clears_the_line_or_quits(server: ServerProcess, terminal: StartTerminal) -> None:
    alice = terminal("alice", server.address)
    alice.wait_for("^alice>$")
    alice.type("never mind")
    alice.wait_for("^alice> never mind$")
    alice.type(CTRL_C)
    alice.wait_for("^alice>$")
    alice.type(CTRL_C)
    assert alice.wait() == 130
    assert b"Traceback" not in alice.raw


def test_pasted_lines_are_messages_of_their_own(
    server: ServerProcess, bob: ChatClient, terminal: StartTerminal
) -> None:
    alice = terminal("alice", server.address)
    alice.wait_for("^alice>$")
    alice.type("/chat bob\r")
    alice.wait_for("^alice -> bob>$")
    alice.type("\x1b[200~one\ntwo\x1b[201~\r")
    assert [bob.receive(), bob.receive()] == [MessageReceived("alice", "one"), MessageReceived("alice", "two")]


def test_history_outlives_the_program(server: ServerProcess, terminal: StartTerminal, home: dict[str, str]) -> None:
    for typed, settled in (("first\rsecond\r", r"^! .*\n(.*\n)*! .*\nalice>$"), ("", "^alice>$")):
        alice = terminal("alice", server.address)
        alice.wait_for("^alice>$")
        alice.type(typed)
        alice.wait_for(settled)
        alice.type_until(UP, r"^alice> first\Z")
        alice.type(CTRL_C)
        alice.wait_for("^alice>$")
        alice.type(CTRL_D)
        assert alice.wait() == 0
    history = Path(home["XDG_STATE_HOME"]) / "chat" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_history_that_cannot_be_kept_does_not_hurt(server: ServerProcess, terminal: StartTerminal) -> None:
    alice = terminal("alice", server.address, XDG_STATE_HOME="/dev/null")
    alice.wait_for("^alice>$")
    alice.type("first\r")
    alice.wait_for(r"^alice> first\n! .*\nalice>$")
    alice.type_until(UP, r"^alice> first\Z")


# Servers that are full or go away


def test_says_that_it_waits_for_a_place(start_server: StartServer, terminal: StartTerminal) -> None:
    server = start_server("--pool-size", 1)
    with ChatClient(server.host, server.port) as first:
        first.login("bob")
        alice = terminal("alice", server.address)
        alice.wait_for(r"^\* no answer from .* waiting for a free place")
    alice.wait_for("^alice>$")


def test_ctrl_c_gives_up_waiting(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice = terminal("alice", scripted.address)
    alice.wait_for("waiting for a free place")
    alice.interrupt()
    assert alice.wait() == 130
    assert b"Traceback" not in alice.raw


def test_reconnects_and_restores_the_partner(start_server: StartServer, terminal: StartTerminal) -> None:
    server = start_server()
    alice = terminal("alice", server.address, CHAT_PASSWORD="sesame")
    alice.wait_for("^alice>$")
    alice.type("/chat alice\r")
    alice.wait_for("^alice -> alice>$")
    assert server.stop() == 0
    alice.wait_for(r"^\* the server closed the connection \(Server Shutting Down\); reconnecting\nalice -> alice>$")
    alice.type("lost?\r")
    alice.wait_for(r"^! not sent: the server closed the connection \(Server Shutting Down\)$")
    start_server("--port", server.port)
    alice.wait_for(r"^\* connected again\n\* online: alice \(you\)\nalice -> alice>$")
    alice.type("and back\r")
    alice.wait_for("^alice: and back$")


def test_partner_who_comes_back_later_is_restored_then(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice = terminal("alice", scripted.address)
    with scripted.accept() as peer:
        peer.pong()
        peer.log_in("alice", "bob")
        alice.wait_for("^alice>$")
        alice.type("/chat bob\r")
        peer.expect(PacketType.CHAT_INIT)
        peer.pong()
        alice.wait_for("^alice -> bob>$")
    with scripted.accept() as peer:
        peer.pong()
        peer.log_in("alice")
        peer.log_in("alice")
        alice.wait_for(r"^\* bob is not online yet\nalice -> bob>$")
        alice.type("hello?\r")
        peer.log_in("alice")
        alice.wait_for("^! not sent: User Not Online: bob\nalice -> bob>$")
        alice.type("hello!\r")
        peer.log_in("alice", "bob")
        peer.expect(PacketType.CHAT_INIT)
        peer.pong()
        assert parse_text(peer.expect(PacketType.MESSAGE)) == b"hello!"


def test_relogin_waits_for_the_old_connection_to_be_noticed(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice = terminal("alice", scripted.address, CHAT_PASSWORD="sesame")
    with scripted.accept() as peer:
        peer.pong()
        peer.log_in("alice")
        alice.wait_for("^alice>$")
    with scripted.accept() as peer:
        peer.pong()
        peer.refuse(PacketType.CONFIG, Reason.USER_ALREADY_ONLINE)
    with scripted.accept() as peer:
        peer.pong()
        assert parse_login(peer.expect(PacketType.CONFIG)) == ("alice", "sesame")
        peer.send(encode_user("alice", 1, 1))
        alice.wait_for(r"^\* connected again$")


def test_relogin_refused_for_good_ends_it(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice = terminal("alice", scripted.address, CHAT_PASSWORD="sesame")
    with scripted.accept() as peer:
        peer.pong()
        peer.log_in("alice")
        alice.wait_for("^alice>$")
        alice.type("half a line")
        alice.wait_for("half a line")
    with scripted.accept() as peer:
        peer.pong()
        peer.refuse(PacketType.CONFIG, Reason.WRONG_PASSWORD)
        assert alice.wait() == 1
    alice.wait_for("^! cannot log in again: Wrong Password$")
    assert b"Traceback" not in alice.raw


def test_quits_while_reconnecting(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice = terminal("alice", scripted.address)
    with scripted.accept() as peer:
        peer.pong()
        peer.log_in("alice")
        alice.wait_for("^alice>$")
        scripted.listener.close()
    alice.wait_for("reconnecting\nalice>$")
    alice.type(CTRL_D)
    assert alice.wait() == 0


@pytest.mark.parametrize("start", ["terminal", "lines"])
def test_nobody_answers(start: str, request: pytest.FixtureRequest) -> None:
    with ScriptedServer() as server:
        pass
    program = request.getfixturevalue(start)("alice", server.address)
    assert program.wait() == 1
    assert program.raw.decode().split("\r\n" if start == "terminal" else "\n") == [
        f"! nobody answers at {server.address} (Connection refused)",
        "",
    ]


# Line by line


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
        (["alice", "tls://host"], "not supported yet"),
        (["alice", "host:0"], "no port"),
        (["--password", "alice"], "asks at a terminal"),
        (["--password-file", "/nonexistent", "alice"], "no password in /nonexistent"),
        (["--linger", "nan", "alice"], "no number of seconds"),
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
    for word in ("/chat NAME", "--password-file FILE", "CHAT_PASSWORD", "exit status", "//TEXT"):
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


# What others send


@given(st.text())
def test_nothing_that_acts_on_a_terminal_is_left(text: str) -> None:
    shown = visible(text)
    hidden = {"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"}
    assert all(unicodedata.category(character) not in hidden or character in JOINERS for character in shown)
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\t\n\x7f\x9b", r"\x1b[2J\t\n\x7f\x9b"),
        ("a\u202eb\u2066\u200b\ufeff\u00ad", r"a\u202eb\u2066\u200b\ufeff\xad"),
        ("\u2028\u2029\ue000\U000e0041\U0010ffff", r"\u2028\u2029\ue000\U000e0041\U0010ffff"),
        ("👩\u200d👩 grüße Auf\u200clage", "👩\u200d👩 grüße Auf\u200clage"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown
