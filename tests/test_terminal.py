"""The program a person chats with, at a terminal."""

import shlex
import stat
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterminal.display import JOINERS, visible
from client import ChatClient, MessageReceived
from protocol import SHOWS_NOTHING, Feature, PacketType, Reason, encode, encode_error, encode_string, parse_login
from testkit.processes import DEADLINE, ROOT
from testkit.programs import StartLines, StartTerminal
from testkit.scripted_server import ScriptedServer, message
from testkit.server import ServerProcess, StartServer

pytestmark = pytest.mark.measured

UP, TAB, CTRL_C, CTRL_D = "\x1b[A", "\t", "\x03", "\x04"
EVIL = "\x1b]0;owned\x07\u202e"
EVIL_SHOWN = r"\\x1b\]0;owned\\x07\\u202e"


# At a terminal


def test_two_people_chat(server: ServerProcess, terminal: StartTerminal) -> None:
    alice = terminal("alice", server.address)
    alice.wait_for(r"^\* online: alice \(you\)$")
    bob = terminal("bob", server.address)
    bob.wait_for(r"^\* online: alice \(1\), bob \(you\)\nbob>$")
    bob.type("/chat alice\r")
    bob.wait_for(r"^\* now writing to alice\nbob -> alice>$")
    alice.wait_for(r"^\* bob is online\nalice>$")
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
    bob.wait_for("^alice: hello\nbob -> alice>")
    bob.type("/quit\r")
    assert bob.wait() == 0


def test_error_in_plain_words(start_server: StartServer, terminal: StartTerminal) -> None:
    server = start_server("--history", "off")
    with ChatClient(server.host, server.port) as bob:
        bob.login("bob")
        alice = terminal("alice", server.address)
        alice.wait_for("^alice>")
        alice.type("/chat bob\r")
        alice.wait_for("^alice -> bob>")
    alice.wait_for(r"^\* bob has left\nalice -> bob>$")
    alice.type("are you there?\r")
    alice.wait_for("^! User Not Online: your message was not delivered\nalice -> bob>")
    alice.type("/chat carol\r")
    alice.wait_for("^! User Not Online: carol ")


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


def test_too_many_wrong_passwords_are_explained_and_end_it(start_server: StartServer, terminal: StartTerminal) -> None:
    server = start_server("--login-attempts", 1)
    with ChatClient(server.host, server.port) as client:
        client.login("alice", "sesame")
    server.wait_for_log("alice disconnected")
    alice = terminal("alice", server.address, CHAT_PASSWORD="first")
    alice.wait_for(r"^\* Wrong Password\npassword of alice:")
    alice.type("sesame\r")
    assert alice.wait() == 1
    alice.wait_for("^! the server closed the connection: Too Many Attempts: too many wrong passwords")


def test_password_secures_a_new_name(server: ServerProcess, terminal: StartTerminal, lines: StartLines) -> None:
    alice = terminal("--password", "alice", server.address)
    for times, password in enumerate(("sesame", "sesane"), start=1):
        alice.wait_for("^password of alice:$" if times == 1 else "^once more:$")
        alice.type(f"{password}\r")
    alice.wait_for(r"^\* the passwords differ\npassword of alice:$")
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


def test_password_is_asked_for_once_if_the_name_has_one(server: ServerProcess, terminal: StartTerminal) -> None:
    with ChatClient(server.host, server.port) as bob:
        bob.login("bob", features=Feature.MAILBOX)
        with ChatClient(server.host, server.port) as client:
            client.login("alice", "sesame")
        server.wait_for_log("alice disconnected")
        bob.chat(2)
        bob.send("welcome back")
        bob.ping()
    alice = terminal("--password", "alice", server.address)
    alice.wait_for("^password of alice:$")
    alice.type("sesame\r")
    alice.wait_for("^bob: welcome back$")
    alice.wait_for("^alice>$")
    assert "once more" not in alice.text


def test_mail_waits_for_the_login_that_sets_a_password(server: ServerProcess, terminal: StartTerminal) -> None:
    server.visit("alice")
    with ChatClient(server.host, server.port) as bob:
        bob.login("bob", features=Feature.MAILBOX)
        bob.chat(1)
        bob.send("welcome back")
        bob.ping()
    alice = terminal("--password", "alice", server.address)
    for question in ("^password of alice:$", "^once more:$"):
        alice.wait_for(question)
        alice.type("sesame\r")
    alice.wait_for("^bob: welcome back$")
    alice.wait_for("^alice>$")


def test_password_that_took_long_to_type_is_used(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice = terminal("alice", scripted.address)
    with scripted.accept() as peer:
        peer.greet()
        peer.refuse(PacketType.CONFIG, Reason.PASSWORD_REQUIRED)
        alice.wait_for("^password of alice:$")
        peer.send(encode_error(Reason.LOGIN_TIMEOUT))
    alice.type("sesame\r")
    with scripted.accept() as peer:
        peer.greet()
        assert parse_login(peer.expect(PacketType.CONFIG)).password == "sesame"
        peer.let_in("alice")
        peer.pong()
        alice.wait_for("^alice>$")


def test_control_characters_are_shown_not_executed(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice = terminal("alice", scripted.address)
    with scripted.accept() as peer:
        peer.greet()
        peer.log_in("alice", f"bo{EVIL}")
        peer.pong()
        peer.send(message(f"bo{EVIL}", f"{EVIL}\nalice: forged"))
        peer.send(encode(PacketType.ERROR, encode_string(f"Oops{EVIL}".encode())))
        alice.wait_for(rf"^\* online: bo{EVIL_SHOWN} \(1\), alice \(you\)$")
        alice.wait_for(rf"^bo{EVIL_SHOWN}: {EVIL_SHOWN}\\nalice: forged$")
        alice.wait_for(rf"^! Oops{EVIL_SHOWN}\nalice>$")
        alice.type("/chat bo\tzz")
        alice.wait_for("^alice> /chat bozz$")
    assert b"\x1b]0;owned" not in alice.raw
    assert "\u202e".encode() not in alice.raw


def test_tab_completes_commands_and_names(server: ServerProcess, terminal: StartTerminal) -> None:
    alice = terminal("alice", server.address)
    alice.wait_for("^alice>$")
    with ChatClient(server.host, server.port) as late:
        late.login("barbara")
        alice.wait_for(r"^\* barbara is online\nalice>$")
        alice.type("/c" + TAB)
        alice.wait_for("^alice> /chat")
        alice.type("ba" + TAB)
        alice.wait_for("^alice> /chat barbara$")
        alice.type("\r")
        alice.wait_for(r"^\* now writing to barbara\nalice -> barbara>$")
        alice.type("/" + TAB)
        alice.wait_for("^/chat +/help +/history +/list +/mute +/quiet +/quit +/unmute$")


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
    alice.wait_for(r"^\* now writing to bob\nalice -> bob>$")
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


# What others send


@given(st.text())
def test_nothing_that_acts_on_a_terminal_is_left(text: str) -> None:
    shown = visible(text)
    hidden = {"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"}
    assert all(unicodedata.category(character) not in hidden or character in JOINERS for character in shown)
    if text.isprintable() and SHOWS_NOTHING.isdisjoint(text):
        assert shown == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\t\n\x7f\x9b", r"\x1b[2J\t\n\x7f\x9b"),
        ("a\u202eb\u2066\u200b\ufeff\u00ad", r"a\u202eb\u2066\u200b\ufeff\xad"),
        ("\u2028\u2029\ue000\U000e0041\U0010ffff", r"\u2028\u2029\ue000\U000e0041\U0010ffff"),
        ("alice\ufe0f \u115f\u3164\u2800", r"alice\ufe0f \u115f\u3164\u2800"),
        ("❤\ufe0f ☎\ufe0e 1\ufe0f\u20e3", "❤\ufe0f ☎\ufe0e 1\ufe0f\u20e3"),
        ("👩\u200d👩 grüße Auf\u200clage", "👩\u200d👩 grüße Auf\u200clage"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_script_gives_up_when_there_is_no_place_in_time(start_server: StartServer, lines: StartLines) -> None:
    server = start_server("--pool-size", 1)
    with ChatClient(server.host, server.port) as first:
        first.login("bob")
        for seconds in ("0.2", "1.5"):
            alice = lines("--timeout", seconds, "alice", server.address, typed="/list\n")
            assert alice.wait() == 1
            assert f"! no answer, or no free place, within {seconds} s" in alice.text
    alice = lines("--timeout", "30", "alice", server.address, typed="/list\n")
    assert alice.wait() == 0


def test_a_script_gives_up_when_the_server_does_not_confirm_what_it_wrote(
    scripted: ScriptedServer, lines: StartLines
) -> None:
    alice = lines("--timeout", "1", "alice", scripted.address, typed="")
    with scripted.accept() as peer:
        peer.greet()
        peer.log_in("alice")
        assert alice.wait() == 1
    assert "! no answer within 1 s: not everything may have been handled" in alice.text


def test_input_that_cannot_be_read_is_one_line_and_status_1(server: ServerProcess, tmp_path: Path) -> None:
    command = (
        f"{shlex.quote(sys.executable)} terminal.py alice {server.address} 0> {shlex.quote(str(tmp_path / 'file'))}"
    )
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stderr) == (1, "! the input cannot be read: Bad file descriptor\n")
