"""Both sides warn of a password that crosses a network unencrypted, and neither warns on loopback."""

import socket

import pytest

from chatnet.address import is_loopback
from chatserver.transport.address import client_address
from protocol import encode_login
from testkit.programs import StartLines
from testkit.server import ServerProcess, StartServer

WARNING = "unencrypted; the option --tls-cert encrypts"


@pytest.fixture
def own_address() -> str:
    """An address of this machine that is not loopback: traffic to it stays here, but does not look as if it did."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network, and so no address but loopback")
        return str(probe.getsockname()[0])


@pytest.fixture
def exposed(start_server: StartServer, own_address: str) -> ServerProcess:
    server = start_server("--host", own_address)
    server.host = own_address
    return server


def test_the_server_warns_once_for_each_connection(exposed: ServerProcess) -> None:
    for _ in range(2):
        with exposed.log_in("alice", "secret") as alice:
            alice.send(encode_login("alice", "secret"))
            alice.read_list("alice")
    with exposed.connect() as mallory:
        mallory.send(3 * encode_login("alice", "wrong"))
        while mallory.read():
            continue
    assert exposed.log.count(WARNING) == 3
    assert f" sent a password for 'alice' {WARNING}" in exposed.log
    assert "secret" not in exposed.log


def test_the_server_does_not_warn_without_a_password(exposed: ServerProcess) -> None:
    exposed.log_in("alice").expect_pong()
    assert WARNING not in exposed.log


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_loopback_draws_no_warning(start_server: StartServer, host: str) -> None:
    server = start_server("--host", host)  # at :: the peer is ::ffff:127.0.0.1
    server.log_in("alice", "secret").expect_pong()
    assert WARNING not in server.log


def test_the_terminal_program_warns_before_it_sends_a_password(exposed: ServerProcess, lines: StartLines) -> None:
    program = lines("alice", exposed.address, typed="", CHAT_PASSWORD="secret")
    assert program.wait() == 0, program.text
    warning = f"! the password goes to {exposed.address} unencrypted; tls://{exposed.address} encrypts"
    assert program.text.startswith(warning)
    assert program.text.count("unencrypted") == 1


def test_the_terminal_program_does_not_warn_without_a_password(exposed: ServerProcess, lines: StartLines) -> None:
    program = lines("alice", exposed.address, typed="")
    assert program.wait() == 0, program.text
    assert "unencrypted" not in program.text


def test_the_terminal_program_does_not_warn_of_loopback(server: ServerProcess, lines: StartLines) -> None:
    program = lines("alice", f"localhost:{server.port}", typed="", CHAT_PASSWORD="secret")
    assert program.wait() == 0, program.text
    assert "unencrypted" not in program.text


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.0.2.7", False),
        ("192.0.2.7", False),
        ("fe80::1%eth0", False),
        ("0.0.0.0", False),
    ],
)
def test_loopback_is_recognised_by_the_address(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    assert client_address((host, 9034), encrypted=False).exposed is not expected
