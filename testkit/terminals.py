"""What the tests of terminal.py share: alice at her terminal, and a scripted server for her."""

from protocol import ALL_FEATURES, Feature, PacketType, encode_user, parse_login
from testkit import HarnessError
from testkit.programs import ScreenProgram, StartTerminal
from testkit.scripted_server import Peer, ScriptedServer

FEATURES = ALL_FEATURES & ~Feature.BRIEF


def let_in(peer: Peer, name: str, *others: str) -> None:
    """Answer a terminal that logs in; its mailbox is empty."""
    peer.greet()
    peer.log_in(name, *others)
    peer.pong()


def let_in_alone(peer: Peer, name: str, user_id: int) -> None:
    """The same for a user with this id, alone in the list."""
    peer.greet()
    login = parse_login(peer.expect(PacketType.CONFIG))
    if login != (name, "", FEATURES):
        raise HarnessError(f"expected a login as {name} with {FEATURES!r}, not {login!r}")
    peer.send(encode_user(name, user_id, 1))
    peer.pong()


def take_chat(peer: Peer) -> None:
    peer.expect(PacketType.CHAT_INIT)
    peer.pong()


def start(terminal: StartTerminal, address: str, **environment: str) -> ScreenProgram:
    """alice at the prompt."""
    alice = terminal("alice", address, **environment)
    alice.wait_for("^alice>$")
    return alice


def start_scripted(server: ScriptedServer, terminal: StartTerminal, **environment: str) -> tuple[ScreenProgram, Peer]:
    """alice (2) at the prompt, while bob (1) is online, and the server's end of her connection."""
    alice = terminal("alice", server.address, **environment)
    peer = server.accept()
    let_in(peer, "alice", "bob")
    alice.wait_for("^alice>$")
    return alice, peer


def choose_bob(alice: ScreenProgram, peer: Peer) -> None:
    alice.type("/chat bob\r")
    take_chat(peer)
    alice.wait_for(r"^\* now writing to bob\nalice -> bob>")
