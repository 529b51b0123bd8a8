"""The program a person chats with, at a terminal: what became of what one wrote."""

import pytest

from protocol import Level, PacketType, encode_receipt
from testkit.programs import StartTerminal
from testkit.scripted_server import ScriptedServer
from testkit.server import ServerProcess
from testkit.terminals import choose_bob, let_in_alone, start, start_scripted, take_chat

pytestmark = pytest.mark.measured


def test_marks_follow_what_was_written_last(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice, peer = start_scripted(scripted, terminal)
    choose_bob(alice, peer)
    alice.type("hello\r")
    alice.wait_for("^alice -> bob> hello\nalice -> bob> +… sent$")
    alice.type("half a l")
    peer.send(encode_receipt(Level.STORED, 1, 1))
    alice.wait_for("^alice -> bob> half a l +✓ stored$")
    peer.send(encode_receipt(Level.DELIVERED, 1, 1))
    alice.wait_for("^alice -> bob> half a l +✓✓ delivered$")
    alice.type("ine\r")
    alice.wait_for("^alice -> bob> half a line\nalice -> bob> +… sent$")


def test_marks_are_those_of_the_partner(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice, peer = start_scripted(scripted, terminal)
    choose_bob(alice, peer)
    alice.type("one\rtwo\r")
    alice.wait_for("^alice -> bob> +… 2 sent$")
    peer.send(encode_receipt(Level.STORED, 1, 2))
    alice.wait_for("^alice -> bob> +✓ 2 stored$")
    alice.type("/chat alice\r")
    for _ in range(2):
        peer.expect(PacketType.MESSAGE)
    peer.pong()
    peer.expect(PacketType.CHAT_INIT)
    peer.pong()
    alice.wait_for("^alice -> alice>$")
    peer.send(encode_receipt(Level.DELIVERED, 2, 2))
    choose_bob(alice, peer)
    alice.wait_for("^alice -> bob> +✓ stored$")


def test_marks_are_words_where_the_terminal_has_no_signs(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice, peer = start_scripted(scripted, terminal, PYTHONIOENCODING="ascii")
    choose_bob(alice, peer)
    alice.type("hello\r")
    alice.wait_for("^alice -> bob> +sent$")
    peer.send(encode_receipt(Level.DELIVERED, 1, 1))
    alice.wait_for("^alice -> bob> +delivered$")
    alice.type("/help\r")
    alice.wait_for("^.   delivered +sent to your partner$")


def test_help_explains_the_marks(server: ServerProcess, terminal: StartTerminal) -> None:
    alice = start(terminal, server.address)
    alice.type("/help\r")
    alice.wait_for(r"^\* /history \[N\] \[NAME\|id:N\] .*20")
    alice.wait_for("^.   ✓ stored +on the server's disk; waits there while your partner is offline$")


def test_unconfirmed_messages_of_a_broken_connection_are_reported_as_possibly_lost(
    scripted: ScriptedServer, terminal: StartTerminal
) -> None:
    alice, peer = start_scripted(scripted, terminal)
    with peer:
        choose_bob(alice, peer)
        alice.type("one\rtwo\rthree\r")
        alice.wait_for("^alice -> bob> +… 3 sent$")
        peer.send(encode_receipt(Level.STORED, 1, 1))
        alice.wait_for("^alice -> bob> +… 2 sent$")
    alice.wait_for(r"reconnecting\n! your last 2 messages may be lost; /history shows what has arrived\nalice -> bob>")


def test_confirmed_messages_are_not_reported_as_lost(scripted: ScriptedServer, terminal: StartTerminal) -> None:
    alice, peer = start_scripted(scripted, terminal)
    with peer:
        choose_bob(alice, peer)
        alice.type("one\rtwo\r")
        alice.wait_for("^alice -> bob> +… 2 sent$")
        peer.send(encode_receipt(Level.STORED, 1, 1), encode_receipt(Level.DELIVERED, 2, 2))
        alice.wait_for("^alice -> bob> +✓ stored$")
    with scripted.accept() as peer:
        let_in_alone(peer, "alice", 2)
        take_chat(peer)
        alice.wait_for(r"^\* bob is offline: .*\nalice -> bob>$")
    assert "may be lost" not in alice.text
