"""Limits on one client: its rate, its password guesses, and the places of one address."""

import sys
import time
from collections.abc import Callable

import pytest

from protocol import PacketType, Reason, encode, encode_error, encode_login, encode_message, encode_user
from testkit.flood import BIG, RELAYED_BIG
from testkit.processes import DEADLINE
from testkit.server import ServerProcess, StartServer
from testkit.wire import Wire

pytestmark = pytest.mark.measured

OTHER_ADDRESS = "127.0.0.2"
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has 127.0.0.2 without configuration")
READ_BYTES = 140  # the least that is read at once; packets beyond the tokens are a debt


# The rate


def text(number: int) -> str:
    return f"{number:0100}"  # so long that a read brings only one


def test_a_flood_is_throttled_and_not_dropped_while_others_are_answered(start_server: StartServer) -> None:
    rate, burst, count = 40, 10, 80
    server = start_server("--rate", rate, "--burst", burst)
    bob, bystander = server.log_in("bob"), server.log_in("bystander")
    with server.log_in("alice") as alice:
        alice.chat_with(1)
        started = time.monotonic()
        alice.send(*(encode_message(text(number).encode()) for number in range(count)))
        for number in range(count):
            bob.expect_message(f"alice:{text(number)}")
            if number == burst:
                bystander.expect_pong()
        assert time.monotonic() - started >= (count - burst - 2) / rate


@pytest.mark.parametrize(
    ("packet", "answer"),
    [
        (encode(PacketType.PING, b"x" * 138), encode(PacketType.PONG, b"x" * 138)),
        (encode_login("alice"), encode_user("alice", 1, 1)),
        (BIG, encode_error(Reason.NO_CHAT_STARTED)),
    ],
    ids=["ping", "list", "refused"],
)
def test_every_packet_counts_against_the_rate(start_server: StartServer, packet: bytes, answer: bytes) -> None:
    rate, count = 40, 60
    server = start_server("--rate", rate, "--burst", 1)
    with server.log_in("alice") as alice:
        started = time.monotonic()
        alice.send(packet * count)
        for _ in range(count):
            alice.expect(answer)
        assert time.monotonic() - started >= (count - 1 - READ_BYTES // len(packet)) / rate


def test_the_burst_is_not_throttled(start_server: StartServer) -> None:
    server = start_server("--rate", 0.01, "--burst", 12)
    alice = server.log_in("alice")
    for _ in range(11):
        alice.expect_pong()


def test_a_throttled_client_delays_neither_others_nor_the_shutdown(start_server: StartServer) -> None:
    server = start_server("--rate", 0.001, "--burst", 3, "--drain", 200, "--write-timeout", 200)
    bob, alice = server.log_in("bob"), server.log_in("alice")
    alice.send(encode(PacketType.CHAT_INIT, b"\x01"), BIG * 50)
    relayed = RELAYED_BIG.replace(b"sender:", b"alice:").replace(b"\x03\x6d\x00\x6b", b"\x03\x6c\x00\x6a")
    bob.expect(relayed)
    server.log_in("carol").expect_pong()
    assert server.stop() == 0
    goodbye = encode_error(Reason.SERVER_SHUTTING_DOWN)
    while (packet := bob.read()) == (relayed[0], relayed[2:]):
        pass
    assert packet == (goodbye[0], goodbye[2:])
    alice.expect_error(Reason.SERVER_SHUTTING_DOWN)
    assert "were never sent" not in server.log


@pytest.mark.parametrize("leave", [Wire.close, Wire.half_close])
def test_packets_of_a_throttled_client_that_has_left_are_handled(
    start_server: StartServer, leave: Callable[[Wire], None]
) -> None:
    server = start_server("--rate", 20, "--burst", 1)
    bob, alice = server.log_in("bob"), server.log_in("alice")
    alice.chat_with(1)
    alice.send(*(encode_message(text(number).encode()) for number in range(20)))
    leave(alice)
    for number in range(20):
        bob.expect_message(f"alice:{text(number)}")
    server.wait_for_log("alice disconnected: left")


@pytest.mark.slow
def test_a_throttled_client_is_not_idle(start_server: StartServer) -> None:
    server = start_server("--rate", 0.3, "--burst", 1, "--idle-timeout", 1)
    alice = server.log_in("alice")
    alice.expect_pong()
    assert "idle" not in server.log


def test_throttling_does_not_extend_the_login_timeout(start_server: StartServer) -> None:
    server = start_server("--rate", 0.001, "--burst", 1, "--login-timeout", 5)
    client = server.connect()
    client.expect_pong()
    client.expect_error(Reason.LOGIN_TIMEOUT)
    client.expect_end()


def test_the_login_works_at_the_lowest_burst(start_server: StartServer) -> None:
    server = start_server("--rate", 1, "--burst", 1)
    server.log_in("alice", "sesame").expect_pong()


def test_a_protocol_error_closes_a_throttled_client_once_it_is_read(start_server: StartServer) -> None:
    server = start_server("--rate", 2, "--burst", 1)
    client = server.log_in("alice")
    client.send(encode(PacketType.PING, b"x" * 138), b"\xff\xff")
    client.expect(encode(PacketType.PONG, b"x" * 138))
    client.expect_error(Reason.PACKET_TOO_LONG)
    client.expect_end()


# Wrong passwords


def secured(server: ServerProcess, *names: str) -> None:
    """Sign these users up, with the password "sesame"."""
    for name in names:
        server.visit(name, "sesame")


def guess(server: ServerProcess, name: str, password: str = "wrong", source: str = "") -> tuple[int, bytes] | None:
    """The first packet that answers this login."""
    with server.connect(source) as client:
        client.send(encode_login(name, password))
        return client.read()


def refusal(reason: Reason) -> tuple[int, bytes]:
    return PacketType.ERROR, encode_error(reason)[2:]


def test_after_too_many_wrong_passwords_even_the_right_one_is_refused(start_server: StartServer) -> None:
    server = start_server("--login-attempts", 2)
    secured(server, "alice")
    with server.connect() as client:
        for _ in range(2):
            client.send(encode_login("alice", "wrong"))
            client.expect_error(Reason.WRONG_PASSWORD)
        client.send(encode_login("alice", "sesame"))
        client.expect_error(Reason.TOO_MANY_ATTEMPTS)
        client.expect_end()
    server.wait_for_log("disconnected: Too Many Attempts")


@linux
def test_the_limit_of_an_account_holds_for_every_address(start_server: StartServer) -> None:
    server = start_server("--login-attempts", 2)
    secured(server, "alice", "bob")
    for source in ("127.0.0.3", "127.0.0.4"):
        assert guess(server, "alice", source=source) == refusal(Reason.WRONG_PASSWORD)
    assert guess(server, "alice", "sesame", OTHER_ADDRESS) == refusal(Reason.TOO_MANY_ATTEMPTS)
    server.log_in("bob", "sesame", OTHER_ADDRESS).expect_pong()


@linux
def test_the_limit_of_an_address_holds_for_all_accounts_and_no_other_address(start_server: StartServer) -> None:
    server = start_server("--login-attempts", 2)
    secured(server, "alice", "bob", "carol")
    for name in ("alice", "bob"):
        assert guess(server, name) == refusal(Reason.WRONG_PASSWORD)
    assert guess(server, "carol", "sesame") == refusal(Reason.TOO_MANY_ATTEMPTS)
    for name in ("alice", "carol"):
        server.log_in(name, "sesame", OTHER_ADDRESS).expect_pong()
    server.log_in("dave").expect_pong()  # without a password there is nothing to guess


@pytest.mark.slow
def test_guesses_on_many_connections_at_once_do_not_get_past_the_limit(start_server: StartServer) -> None:
    server = start_server("--login-attempts", 3)
    secured(server, "alice")
    clients = [server.connect() for _ in range(20)]
    for client in clients:
        client.send(encode_login("alice", "wrong"))
    answers = [client.read() for client in clients]
    assert answers.count(refusal(Reason.WRONG_PASSWORD)) == 3
    assert answers.count(refusal(Reason.TOO_MANY_ATTEMPTS)) == 17


@pytest.mark.slow
def test_simultaneous_logins_with_right_passwords_all_succeed(start_server: StartServer) -> None:
    names = [f"user{number}" for number in range(12)]
    server = start_server("--login-attempts", 1, "--login-timeout", 2 * DEADLINE)
    secured(server, *names)
    clients = [server.connect() for _ in names]
    for name, client in zip(names, clients, strict=True):
        client.send(encode_login(name, "sesame"))
    for name, client in zip(names, clients, strict=True):
        client.read_list(name)


def test_the_limit_can_be_switched_off(start_server: StartServer) -> None:
    server = start_server("--login-attempts", "off")
    secured(server, "alice")
    assert {guess(server, "alice") for _ in range(12)} == {refusal(Reason.WRONG_PASSWORD)}


# Places


@linux
def test_each_address_has_its_own_limit_of_places(start_server: StartServer) -> None:
    server = start_server("--max-per-address", 2)
    alice, _bob = server.log_in("alice"), server.log_in("bob")
    with server.connect() as third:
        third.expect_error(Reason.TOO_MANY_ATTEMPTS)
        third.expect_end()
    server.log_in("carol", source=OTHER_ADDRESS).expect_pong()
    alice.close()
    server.wait_for_log("alice disconnected: left")
    _dave = server.log_in("dave")
    with server.connect() as again:
        again.expect_error(Reason.TOO_MANY_ATTEMPTS)


@pytest.mark.slow
def test_a_refused_client_takes_no_place(start_server: StartServer) -> None:
    server = start_server("--max-per-address", 1, "--pool-size", 2)
    alice = server.log_in("alice")
    refused = [server.connect() for _ in range(10)]  # they do not close
    for client in refused:
        client.expect_error(Reason.TOO_MANY_ATTEMPTS)
    alice.expect_pong()
    alice.close()
    server.wait_for_log("alice disconnected: left")
    server.log_in("bob").expect_pong()


def test_new_users_from_one_address_are_limited_and_known_ones_are_not(start_server: StartServer) -> None:
    server = start_server("--sign-ups-per-address", 2)
    server.visit("alice")
    server.visit("bob")
    with server.connect() as client:
        client.send(encode_login("carol"))
        client.expect_error(Reason.TOO_MANY_ATTEMPTS)
        client.expect_end()
    server.visit("alice")
    with server.connect("127.0.0.2") as elsewhere:
        elsewhere.send(encode_login("carol"))
        elsewhere.read_list("carol")
