"""What tests of the program at a terminal share: alice, and the server that follows a script for her."""

from protocol import ALL_FEATURES, Feature, PacketType, encode_user, parse_login
from testkit.programs import ScreenProgram
from testkit.scripted_server import Peer, ScriptedServer
from tests.conftest import StartTerminal

FEATURES = ALL_FEATURES & ~Feature.BRIEF


def let_in(peer: Peer, name: str, *others: str) -> None:
    """Answer a terminal that logs in: nothing waits in the mailbox."""
    peer.greet()
    peer.log_in(name, *others)
    peer.pong()


def let_in_alone(peer: Peer, name: str, user_id: int) -> None:
    """The same for somebody who has an id already."""
    peer.greet()
    assert parse_login(peer.expect(PacketType.CONFIG)) == (name, "", FEATURES)
    peer.send(encode_user(name, user_id, 1))
    peer.pong()


def take_chat(peer: Peer) -> None:
    peer.expect(PacketType.CHAT_INIT)
    peer.pong()


def start(terminal: StartTerminal, address: str, **environment: str) -> ScreenProgram:
    """alice has the prompt."""
    alice = terminal("alice", address, **environment)
    alice.wait_for("^alice>$")
    return alice


def start_scripted(server: ScriptedServer, terminal: StartTerminal, **environment: str) -> tuple[ScreenProgram, Peer]:
    """alice (2), with bob (1) online, has the prompt; and the server's end."""
    alice = terminal("alice", server.address, **environment)
    peer = server.accept()
    let_in(peer, "alice", "bob")
    alice.wait_for("^alice>$")
    return alice, peer


def choose_bob(alice: ScreenProgram, peer: Peer) -> None:
    alice.type("/chat bob\r")
    take_chat(peer)
    alice.wait_for(r"^\* now writing to bob\nalice -> bob>")
