"""The program a person chats with, at a terminal that only prints: for TERM=dumb, and for screen readers."""

import pytest

from client import ChatClient, MessageReceived
from testkit.ports import free_port
from testkit.programs import ScreenProgram, StartTerminal
from testkit.server import ServerProcess, StartServer

pytestmark = pytest.mark.measured

CTRL_C, CTRL_D, CTRL_Z = "\x03", "\x04", "\x1a"

JOB_CONTROL = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if not job:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
if os.WIFSTOPPED(os.waitpid(job, os.WUNTRACED)[1]):
    os.tcsetpgrp(0, os.getpgrp())
    input("[stopped]")
    os.tcsetpgrp(0, job)
    os.kill(-job, signal.SIGCONT)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]))
"""  # what a shell does


@pytest.mark.parametrize(("options", "term"), [(["--plain"], "xterm"), ([], "dumb"), ([], "")])
def test_a_plain_terminal_gets_whole_lines_and_nothing_that_moves_the_cursor(
    server: ServerProcess, terminal: StartTerminal, options: list[str], term: str
) -> None:
    with ChatClient(server.host, server.port) as bob:
        bob.login("bob")
        alice = terminal(*options, "alice", server.address, TERM=term)
        alice.wait_for(r"^\* online: bob \(1\), alice \(you\)$")
        alice.type("/chat bob\n")
        alice.wait_for(r"^\* now writing to bob$")
        alice.type("hello\n")
        assert bob.receive() == MessageReceived("alice", "hello")
        bob.chat("alice")
        bob.send("hi")
        alice.wait_for("^bob: hi$")
        alice.type(CTRL_D)
        assert alice.wait() == 0
    assert b"\x1b" not in alice.raw


def left_by_the_server(start_server: StartServer, terminal: StartTerminal) -> tuple[ServerProcess, ScreenProgram]:
    """alice at a plain terminal, whose server has stopped."""
    server = start_server("--port", free_port())
    alice = terminal("--plain", "alice", server.address)
    alice.wait_for(r"^\* online: alice \(you\)$")
    assert server.stop() == 0
    return server, alice


def test_a_plain_terminal_reconnects(start_server: StartServer, terminal: StartTerminal) -> None:
    server, alice = left_by_the_server(start_server, terminal)
    alice.wait_for("reconnecting$")
    start_server("--port", server.port)
    alice.wait_for(r"^\* connected again$")
    alice.interrupt()
    assert alice.wait() == 130
    assert b"Traceback" not in alice.raw


def test_a_plain_terminal_that_may_not_come_back_ends(start_server: StartServer, terminal: StartTerminal) -> None:
    server, alice = left_by_the_server(start_server, terminal)
    start_server("--port", server.port, "--require-password")
    alice.wait_for("^! cannot log in again: Password Required")
    assert alice.wait() == 1


def test_ctrl_z_suspends_and_the_chat_goes_on_afterwards(server: ServerProcess, home: dict[str, str]) -> None:
    command = ("-c", JOB_CONTROL, "terminal.py", "alice", server.address)
    with ChatClient(server.host, server.port) as bob, ScreenProgram(*command, environment=home) as alice:
        bob.login("bob")
        alice.wait_for("^alice>$")
        alice.type(CTRL_Z)
        alice.wait_for(r"\[stopped\]$")
        bob.chat("alice")
        bob.send("are you there?")
        alice.type("\n")
        alice.wait_for("^bob: are you there\\?$")
        alice.wait_for("^alice>$")
        alice.type(CTRL_D)
        assert alice.wait() == 0
