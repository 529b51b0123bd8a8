"""The terminal program: presence, mailboxes, history and status marks."""

import calendar
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from client import ChatClient, MessageReceived
from protocol import (
    HISTORY_END,
    Feature,
    PacketType,
    encode,
    encode_presence,
    parse_history_request,
)
from testkit.programs import ScreenProgram, StartTerminal
from testkit.scripted_server import SECONDS, ScriptedServer, message, past
from testkit.server import ServerProcess, StartServer
from testkit.terminals import choose_bob, start, start_scripted

pytestmark = pytest.mark.measured

TAB = "\t"
EVIL = "\x1b]0;owned\x07\u202e"
EVIL_SHOWN = r"\\x1b\]0;owned\\x07\\u202e"
NOON = calendar.timegm((2026, 11, 26, 12, 0, 0))


def sign_up(server: ServerProcess, *names: str) -> None:
    """These users exist, and are away."""
    for name in names:
        with ChatClient(server.host, server.port) as client:
            client.login(name)
        server.wait_for_log(f"{name} disconnected")


@contextmanager
def online(server: ServerProcess, name: str) -> Iterator[ChatClient]:
    """This user is online, with a client that asks for nothing but mailboxes; disconnected afterwards."""
    with ChatClient(server.host, server.port, SECONDS) as client:
        client.login(name, features=Feature.MAILBOX)
        yield client
        client.ping()


def choose(alice: ScreenProgram, who: str, name: str) -> None:
    alice.type(f"/chat {who}\r")
    alice.wait_for(rf"^\* now writing to {name}.*\nalice -> {name}>")


# Presence


def test_arrivals_and_departures_are_shown(server: ServerProcess, terminal: StartTerminal) -> None:
    with online(server, "bob"):
        alice = start(terminal, server.address)
        alice.wait_for(r"^\* online: bob \(1\), alice \(you\)\nalice>$")
        with online(server, "carol"):
            alice.wait_for(r"^\* carol is online\nalice>$")
    alice.wait_for(r"^\* (bob|carol) has left\n\* (bob|carol) has left\nalice>$")
    assert "bob is online" not in alice.text


def test_when_the_partner_leaves_the_program_says_where_messages_go(
    server: ServerProcess, terminal: StartTerminal
) -> None:
    sign_up(server, "bob")
    alice = start(terminal, server.address)
    alice.type("/chat 1\r")
    alice.wait_for("who is offline: messages wait for the next login\nalice -> id 1>$")
    with online(server, "bob"), online(server, "carol"):
        alice.wait_for(r"^\* bob is online\n\* carol is online\nalice -> bob>$")
    alice.wait_for(r"^\* bob has left; your messages wait for the next login$")
    alice.wait_for(r"^\* carol has left$")


def test_names_in_presence_notices_do_not_act_on_the_terminal(
    scripted: ScriptedServer, terminal: StartTerminal
) -> None:
    alice, peer = start_scripted(scripted, terminal)
    peer.send(encode_presence(True, f"bo{EVIL}", 3, 1), encode_presence(False, f"bo{EVIL}", 3, 1))
    alice.wait_for(rf"^\* bo{EVIL_SHOWN} is online\n\* bo{EVIL_SHOWN} has left\nalice>$")
    alice.type("/chat 3\r")
    peer.expect(PacketType.CHAT_INIT)
    peer.pong()
    peer.log_in("alice", "bob")
    alice.wait_for(rf"^\* now writing to bo{EVIL_SHOWN}, who is offline: .*\nalice -> bo{EVIL_SHOWN}>$")
    assert b"\x1b]0;owned" not in alice.raw
    assert "\u202e".encode() not in alice.raw


def test_tab_completes_users_who_left_too(server: ServerProcess, terminal: StartTerminal) -> None:
    alice = start(terminal, server.address)
    with online(server, "barbara"):
        alice.wait_for(r"^\* barbara is online\nalice>$")
    alice.wait_for(r"^\* barbara has left\nalice>$")
    alice.type("/hi" + TAB)
    alice.wait_for("^alice> /history")
    alice.type("20 ba" + TAB)
    alice.wait_for("^alice> /history 20 barbara$")


# Being away


def test_waiting_mail_is_shown_with_a_greeting(server: ServerProcess, terminal: StartTerminal) -> None:
    sign_up(server, "alice")
    with online(server, "bob") as bob, online(server, "carol") as carol:
        for client, texts in ((bob, ["are you there?", "well, later"]), (carol, ["me too"])):
            client.chat(1)
            for text in texts:
                client.send(text)
                client.ping()
    alice = start(terminal, server.address)
    alice.wait_for(
        r"^\* while you were offline: 3 messages; /history NAME shows when\n"
        r"bob: are you there\?\nbob: well, later\ncarol: me too\n\* to answer: /chat carol\nalice>$"
    )
    alice.type("/chat bob\r")
    alice.wait_for(r"^\* now writing to bob, who is offline: messages wait for the next login\nalice -> bob>$")
    alice.type("now I am\r")
    alice.wait_for("^alice -> bob> +✓ stored$")
    with online(server, "bob") as bob:
        assert bob.receive() == MessageReceived("alice", "now I am")
        bob.chat("alice")
        bob.send("good")
        alice.wait_for("^bob: good\nalice -> bob>")
    assert alice.text.count("while you were offline") == 1


def test_where_nothing_waited_there_is_no_greeting(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice, peer = start_scripted(scripted, terminal)
    peer.send(message("bob", "live"))
    alice.wait_for(r"^bob: live\n\* to answer: /chat bob\nalice>$")
    assert "away" not in alice.text


def test_a_mailbox_ends_before_the_server_handles_the_next_packet(
    scripted: ScriptedServer, terminal: StartTerminal
) -> None:
    alice = terminal("alice", scripted.address)
    with scripted.accept() as peer:
        peer.greet()
        peer.log_in("alice")
        ping = peer.expect(PacketType.PING)
        peer.send(message("bob", "late"), encode(PacketType.PONG, ping))
        alice.wait_for(r"^\* while you were offline: 1 message; .*\nbob: late\n\* to answer: /chat bob\nalice>$")


def test_a_long_mailbox_arrives_complete(server: ServerProcess, terminal: StartTerminal) -> None:
    sign_up(server, "alice")
    with online(server, "bob") as bob:
        bob.chat(1)
        for number in range(1000):
            bob.send(f"{number} {'x' * 100}")
    alice = start(terminal, server.address)
    alice.wait_for("^bob: 999 x+$")
    shown = alice.raw.decode()
    assert "while you were offline: 1000 messages" in shown
    assert [shown.count(f"bob: {number} x") for number in range(1000)] == [1] * 1000


def test_an_unknown_name_must_be_given_as_an_id(server: ServerProcess, terminal: StartTerminal) -> None:
    sign_up(server, "bob")
    alice = start(terminal, server.address)
    alice.type("/chat bob\r")
    alice.wait_for(
        r"^! User Not Online: bob \(an offline user who has not written to you yet is found by id only\)\nalice>$"
    )
    choose(alice, "1", "id 1")
    alice.type("/chat 99\r")
    alice.wait_for("^! User Not Online: 99\nalice -> id 1>$")


def test_an_id_gets_its_name_from_the_past(server: ServerProcess, terminal: StartTerminal) -> None:
    sign_up(server, "alice")
    with online(server, "bob") as bob:
        bob.chat(1)
        bob.send("hello")
    alice = start(terminal, server.address)
    alice.type("/chat id:2\r")
    alice.wait_for(r"^\* now writing to bob, who is offline: .*\nalice -> bob>$")


def test_a_full_mailbox_is_explained_in_plain_words(start_server: StartServer, terminal: StartTerminal) -> None:
    server = start_server("--mailbox-messages", 1)
    sign_up(server, "bob")
    alice = start(terminal, server.address)
    choose(alice, "1", "id 1")
    alice.type("one\r")
    alice.wait_for("^alice -> id 1> +✓ stored$")
    alice.type("two\r")
    alice.wait_for("^! Mailbox Full: your message was not delivered; .*\nalice -> id 1> +✓ stored$")


def test_a_server_without_history_refuses_offline_users(start_server: StartServer, terminal: StartTerminal) -> None:
    server = start_server("--history", "off")
    with online(server, "bob") as bob:
        alice = start(terminal, server.address)
        choose(alice, "bob", "bob")
        alice.type("hello\r")
        assert bob.receive() == MessageReceived("alice", "hello")
        alice.wait_for("^alice -> bob> +✓✓ delivered$")
    alice.wait_for(r"^\* bob has left\nalice -> bob>")
    alice.type("are you there?\r")
    alice.wait_for("^! User Not Online: your message was not delivered\nalice -> bob> +! refused$")
    alice.type("/history\r")
    alice.wait_for(r"^\* there are no messages yet\nalice -> bob>")
    alice.type("/chat bob\r")
    alice.wait_for("^! User Not Online: bob")


# Past chats


def test_history_shows_messages_with_the_partner_or_another_user(
    server: ServerProcess, terminal: StartTerminal
) -> None:
    sign_up(server, "bob", "carol")
    alice = start(terminal, server.address)
    choose(alice, "1", "id 1")
    alice.type("/history\r")
    alice.wait_for(r"^\* there are no messages yet\nalice -> id 1>$")
    alice.type("one\rtwo\rthree\r")
    alice.wait_for("^alice -> id 1> +✓ 3 stored$")
    with online(server, "bob") as bob:
        bob.chat("alice")
        bob.send("four")
        alice.wait_for("^bob: four$")
    alice.wait_for(r"^\* bob has left; .*\nalice -> bob>")
    date = r"20\d\d-\d\d-\d\d \d\d:\d\d"
    alice.type("/history 3\r")
    alice.wait_for(rf"/history 3\n{date} alice: two\n{date} alice: three\n{date} bob: four\nalice -> bob>")
    choose(alice, "2", "id 2")
    alice.type("/history bob\r")
    alice.wait_for(rf"/history bob\n{date} alice: one\n{date} alice: two\n.*\n{date} bob: four\nalice -> id 2>")
    alice.type("/history 1 1\r")
    alice.wait_for(rf"/history 1 1\n{date} bob: four\nalice -> id 2>")


def test_history_is_dated_in_local_time_and_does_not_act_on_the_terminal(
    scripted: ScriptedServer, terminal: StartTerminal
) -> None:
    alice, peer = start_scripted(scripted, terminal, TZ="XXX-13:30")  # east of Greenwich
    choose_bob(alice, peer)
    alice.type("/history\r")
    assert parse_history_request(peer.expect(PacketType.HISTORY)) == (20, 1)
    peer.send(past(NOON - 24 * 3600, 2, message("alice", f"{EVIL}\n")), past(NOON, 1, message(f"bo{EVIL}", "hi")))
    peer.send(HISTORY_END)
    alice.wait_for(rf"^2026-11-26 01:30 alice: {EVIL_SHOWN}\\n\n2026-11-27 01:30 bo{EVIL_SHOWN}: hi\nalice -> b")
    assert b"\x1b]0;owned" not in alice.raw


def test_history_that_cannot_be(server: ServerProcess, terminal: StartTerminal) -> None:
    alice = start(terminal, server.address)
    alice.type("/history\r")
    alice.wait_for("^! with whom\\? /history NAME.*\nalice>$")
    for asked in ("0", "256", "9" * 20, "bob 20", "20 bob carol"):
        alice.type(f"/history {asked}\r")
        alice.wait_for(f"^alice> /history {asked}\n! usage: /history .*, at most 255\nalice>$")
    alice.type("/history 255 99\r")
    alice.wait_for("^! User Not Online: 99\nalice>$")
