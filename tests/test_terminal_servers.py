"""The program a person chats with, at a terminal, when the server is full or goes away."""

import subprocess
import sys

import pytest

from client import ChatClient, MessageReceived
from protocol import PacketType, Reason, encode_user, parse_login, parse_text
from testkit.ports import free_port
from testkit.processes import DEADLINE, ROOT
from testkit.programs import StartTerminal
from testkit.scripted_server import ScriptedServer
from testkit.server import ServerProcess, StartServer
from testkit.terminals import FEATURES, choose_bob, let_in, let_in_alone, start_scripted, take_chat

pytestmark = pytest.mark.measured

CTRL_D = "\x04"
NEW_USER = r"^go on as a new user\? \(y/n\)$"


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
    server = start_server("--port", free_port())
    alice = terminal("alice", server.address, CHAT_PASSWORD="sesame")
    alice.wait_for("^alice>$")
    alice.type("/chat alice\r")
    alice.wait_for(r"^\* now writing to alice.*\nalice -> alice>")
    assert server.stop() == 0
    alice.wait_for(r"^\* the server closed the connection \(Server Shutting Down\); reconnecting\nalice -> alice>$")
    alice.type("lost?\r")
    alice.wait_for(r"^! not sent: the server closed the connection \(Server Shutting Down\)$")
    start_server("--port", server.port)
    alice.wait_for(r"^\* connected again\n\* online: alice \(you\)\nalice -> alice>$")
    alice.type("and back\r")
    alice.wait_for("^alice: and back$")


def test_an_offline_partner_is_restored_too(start_server: StartServer, terminal: StartTerminal) -> None:
    server = start_server("--port", free_port())
    with ChatClient(server.host, server.port) as bob:
        bob.login("bob")
    server.wait_for_log("bob disconnected")
    alice = terminal("alice", server.address)
    alice.wait_for("^alice>$")
    alice.type("/chat 1\r")
    alice.wait_for(r"^\* now writing to id 1.*\nalice -> id 1>")
    alice.type("one\rtwo\r")
    alice.wait_for("^alice -> id 1> +✓ 2 stored$")
    assert server.stop() == 0
    alice.wait_for("reconnecting\nalice -> id 1>")
    start_server("--port", server.port)
    alice.wait_for(r"^\* id 1 is offline: your messages wait for the next login\nalice -> id 1>$")
    alice.type("three\r")
    alice.wait_for("^alice -> id 1> +✓ stored$")
    with ChatClient(server.host, server.port) as bob:
        bob.login("bob")
        assert [bob.receive() for _ in range(3)] == [MessageReceived("alice", text) for text in ("one", "two", "three")]
        alice.wait_for(r"^\* bob is online\nalice -> bob> +✓✓ delivered$")


def test_without_mailboxes_a_partner_who_returns_later_is_restored_then(
    scripted: ScriptedServer, terminal: StartTerminal
) -> None:
    alice, peer = start_scripted(scripted, terminal)
    with peer:
        choose_bob(alice, peer)
    with scripted.accept() as peer:
        let_in_alone(peer, "alice", 2)
        peer.refuse(PacketType.CHAT_INIT, Reason.USER_NOT_ONLINE)
        peer.pong()
        alice.wait_for(r"^\* bob is not online yet\nalice -> bob>$")
        alice.type("hello?\r")
        peer.refuse(PacketType.CHAT_INIT, Reason.USER_NOT_ONLINE)
        peer.pong()
        alice.wait_for("^! not sent: User Not Online: bob\nalice -> bob>$")
        alice.type("hello!\r")
        take_chat(peer)
        assert parse_text(peer.expect(PacketType.MESSAGE)) == b"hello!"


def test_ids_of_another_database_are_not_confused_with_known_ones(
    scripted: ScriptedServer, terminal: StartTerminal
) -> None:
    alice, peer = start_scripted(scripted, terminal)
    with peer:
        choose_bob(alice, peer)
    with scripted.accept() as peer:
        let_in_alone(peer, "alice", 7)
        alice.wait_for(r"^\* choose bob again\n")
        alice.wait_for(NEW_USER)
        alice.type("y\r")
        alice.wait_for(r"^alice>$")


def test_a_client_whose_account_was_removed_asks_before_it_goes_on_as_a_new_user(
    server: ServerProcess, terminal: StartTerminal
) -> None:
    alice = terminal("alice", server.address)
    alice.wait_for("^alice>$")
    remove = [sys.executable, "admin.py", "--data-dir", str(server.data_dir), "remove", "alice"]
    subprocess.run(remove, cwd=ROOT, check=True, timeout=DEADLINE, stdout=subprocess.DEVNULL)
    alice.wait_for(r"signed up again, with id 2;$")
    alice.wait_for(NEW_USER)
    alice.type("hello?\r")
    alice.wait_for(r"^\* y goes on, n quits$")
    alice.type("n\r")
    assert alice.wait() == 0


def test_relogin_waits_for_the_old_connection_to_be_noticed(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice = terminal("alice", scripted.address, CHAT_PASSWORD="sesame")
    with scripted.accept() as peer:
        let_in(peer, "alice")
        alice.wait_for("^alice>$")
    with scripted.accept() as peer:
        peer.greet()
        peer.refuse(PacketType.CONFIG, Reason.USER_ALREADY_ONLINE)
    with scripted.accept() as peer:
        peer.greet()
        assert parse_login(peer.expect(PacketType.CONFIG)) == ("alice", "sesame", FEATURES)
        peer.send(encode_user("alice", 1, 1))
        peer.pong()
        alice.wait_for(r"^\* connected again$")


def test_relogin_refused_for_good_ends_it(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice = terminal("alice", scripted.address, CHAT_PASSWORD="sesame")
    with scripted.accept() as peer:
        let_in(peer, "alice")
        alice.wait_for("^alice>$")
        alice.type("half a line")
        alice.wait_for("half a line")
    with scripted.accept() as peer:
        peer.greet()
        peer.refuse(PacketType.CONFIG, Reason.WRONG_PASSWORD)
        assert alice.wait() == 1
    alice.wait_for("^! cannot log in again: Wrong Password$")
    assert b"Traceback" not in alice.raw


def test_quits_while_reconnecting(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice = terminal("alice", scripted.address)
    with scripted.accept() as peer:
        let_in(peer, "alice")
        alice.wait_for("^alice>$")
        scripted.listener.close()
    alice.wait_for("reconnecting\nalice>$")
    alice.type(CTRL_D)
    assert alice.wait() == 0


def test_a_relogin_refused_because_of_others_guesses_is_tried_again(
    scripted: ScriptedServer, terminal: StartTerminal
) -> None:
    alice = terminal("alice", scripted.address, CHAT_PASSWORD="sesame")
    with scripted.accept() as peer:
        let_in(peer, "alice")
        alice.wait_for("^alice>$")
    alice.wait_for("reconnecting\nalice>$")
    for _ in range(2):
        with scripted.accept() as peer:
            peer.greet()
            peer.refuse(PacketType.CONFIG, Reason.TOO_MANY_ATTEMPTS)
    with scripted.accept() as peer:
        let_in(peer, "alice")
        alice.wait_for(r"^\* connected again\n\* online: alice \(you\)\nalice>$")
        alice.type(CTRL_D)
        peer.pong()
        assert alice.wait() == 0
    assert b"cannot log in" not in alice.raw


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
