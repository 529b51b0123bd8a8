"""Bad input through a real socket: every Error that the server can send, and which ones close."""

import resource
import socket
from pathlib import Path

import pytest

from protocol import (
    Envelope,
    PacketType,
    Reason,
    encode,
    encode_chat_init,
    encode_error,
    encode_login,
    encode_message,
    encode_string,
    encode_user,
)
from testkit.processes import wait_for
from testkit.server import ServerProcess, StartServer
from testkit.wire import Wire, reset_on_close

MESSAGE = encode_message(b"x")


def config(name: bytes) -> bytes:
    return encode(PacketType.CONFIG, encode_string(name))


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (encode_chat_init(1), Reason.NOT_LOGGED_IN),
        (MESSAGE, Reason.NOT_LOGGED_IN),
        (config(b""), Reason.INVALID_USERNAME),
        (config(b"x" * 33), Reason.INVALID_USERNAME),
        (config(b"a b"), Reason.INVALID_USERNAME),
        (config(b"a:b"), Reason.INVALID_USERNAME),
        (config(b"a,b"), Reason.INVALID_USERNAME),
        (config(b"\x1b[2J"), Reason.INVALID_USERNAME),
        (config("e\u0301".encode()), Reason.INVALID_USERNAME),
        (encode_login("x", "p" * 65), Reason.INVALID_PASSWORD),
    ],
)
def test_a_refusal_before_login_leaves_the_connection_open(
    server: ServerProcess, packet: bytes, reason: Reason
) -> None:
    with server.connect() as client:
        client.send(packet)
        client.expect_error(reason)
        client.send(encode_login("fine"))
        client.read_list("fine")


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (MESSAGE, Reason.NO_CHAT_STARTED),
        (encode_chat_init(9), Reason.USER_NOT_ONLINE),
        (encode_login("somebody"), Reason.ALREADY_LOGGED_IN),
        (config(b"not valid"), Reason.ALREADY_LOGGED_IN),
    ],
)
def test_a_refusal_while_online_leaves_the_session_unchanged(
    server: ServerProcess, packet: bytes, reason: Reason
) -> None:
    with server.log_in("alice") as client:
        client.send(packet)
        client.expect_error(reason)
        client.chat_with(1)
        client.say("still here")
        client.expect_message("alice:still here")


@pytest.mark.parametrize("logged_in", [False, True])
@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (bytes.fromhex("03 8b"), Reason.PACKET_TOO_LONG),
        (bytes.fromhex("00 ff"), Reason.PACKET_TOO_LONG),
        (bytes.fromhex("00 00"), Reason.UNKNOWN_PACKET_TYPE),
        (bytes.fromhex("05 00"), Reason.UNKNOWN_PACKET_TYPE),
        (encode_error(Reason.TOO_SLOW), Reason.UNKNOWN_PACKET_TYPE),
        (bytes.fromhex("01 03 0005 61"), Reason.MALFORMED_PACKET),
        (bytes.fromhex("01 05 0001 61 0009"), Reason.MALFORMED_PACKET),
        (bytes.fromhex("01 07 0001 61 0000 0000"), Reason.MALFORMED_PACKET),
        (config(b"\xff"), Reason.MALFORMED_PACKET),
        (bytes.fromhex("02 00"), Reason.MALFORMED_PACKET),
        (bytes.fromhex("02 01 00"), Reason.MALFORMED_PACKET),
        (bytes.fromhex("02 05 0000000001"), Reason.MALFORMED_PACKET),
        (bytes.fromhex("03 00"), Reason.MALFORMED_PACKET),
        (bytes.fromhex("03 03 0000 61"), Reason.MALFORMED_PACKET),
        (bytes.fromhex("03 03 0001 ff"), Reason.MALFORMED_PACKET),
    ],
)
def test_a_protocol_error_closes_and_nobody_else_notices(
    server: ServerProcess, packet: bytes, reason: Reason, logged_in: bool
) -> None:
    bystander = server.log_in("bystander")
    client = server.log_in("client") if logged_in else server.connect()
    client.send(packet)
    client.expect_error(reason)
    client.expect_end()
    bystander.expect_pong()


def test_the_first_error_found_is_the_one_named(server: ServerProcess) -> None:
    with server.connect() as client:
        client.send(bytes.fromhex("02 01 00"))  # both its body and the state are wrong
        client.expect_error(Reason.MALFORMED_PACKET)


def test_a_closing_error_arrives_although_more_input_is_in_flight(server: ServerProcess) -> None:
    with server.connect() as client:
        client.send(bytes.fromhex("00 00"), MESSAGE * 100_000)
        client.expect_error(Reason.UNKNOWN_PACKET_TYPE)
        client.expect_end()


def test_two_closing_packets_in_one_chunk_cause_one_error(server: ServerProcess) -> None:
    with server.connect() as client:
        client.send(bytes.fromhex("00 00"), bytes.fromhex("02 01 00"))
        client.expect_error(Reason.UNKNOWN_PACKET_TYPE)
        client.expect_end()


def test_a_second_login_of_an_online_user_is_refused(server: ServerProcess) -> None:
    alice = server.log_in("alice")
    with server.connect() as other:
        other.send(encode_login("alice"))
        other.expect_error(Reason.USER_ALREADY_ONLINE)
        other.send(encode_login("bob"))
        other.read_list("bob")
    alice.expect_pong()


def test_exactly_one_of_many_simultaneous_logins_of_one_name_succeeds(server: ServerProcess) -> None:
    clients = [server.connect() for _ in range(20)]
    for client in clients:
        client.send(encode_login("popular", "secret"))
    answers = [client.read() for client in clients]
    granted = encode_user("popular", 1, 1)
    refused = encode_error(Reason.USER_ALREADY_ONLINE)
    assert sorted(answers, key=str) == sorted([(p[0], p[2:]) for p in [granted] + 19 * [refused]], key=str)


@pytest.mark.parametrize(
    ("first", "second"), [("Bob", "bob"), ("straße", "STRASSE"), ("ﬁn", "fin"), ("Ω", "Ω".lower())]
)
def test_a_new_name_that_looks_like_an_existing_one_is_taken(server: ServerProcess, first: str, second: str) -> None:
    server.log_in(first)
    with server.connect() as client:
        client.send(encode_login(second))
        client.expect_error(Reason.USERNAME_TAKEN)


def test_sign_ups_end_at_the_limit_and_known_users_still_log_in(start_server: StartServer) -> None:
    server = start_server("--max-users", 2)
    server.log_in("one").close()
    two = server.log_in("two")
    with server.connect() as third:
        third.send(encode_login("three"))
        third.expect_error(Reason.USER_LIMIT_REACHED)
        third.send(encode_login("one"))
        third.read_list("one")
    two.expect_pong()


def test_the_first_password_secures_an_account_across_a_restart(start_server: StartServer) -> None:
    first = start_server()
    first.visit("alice")
    first.log_in("alice", "secret").close()
    first.stop()
    second = start_server()
    with second.connect() as client:
        client.send(encode_login("alice"))
        client.expect_error(Reason.PASSWORD_REQUIRED)
        client.send(encode_login("alice", "Secret"))
        client.expect_error(Reason.WRONG_PASSWORD)
        client.send(encode_login("alice", "secret"))
        client.read_list("alice")


@pytest.mark.one_server
def test_a_password_is_on_disk_only_as_an_argon2id_hash(server: ServerProcess) -> None:
    server.log_in("alice", "correct-horse")
    text = (server.data_dir / "passwords.csv").read_text()
    assert "$argon2id$" in text
    assert "correct-horse" not in text
    assert "correct-horse" not in server.log


def test_the_third_wrong_password_closes(server: ServerProcess) -> None:
    server.visit("alice", "secret")
    with server.connect() as client:
        for guess in ("1", "2", "3"):
            client.send(encode_login("alice", guess))
            client.expect_error(Reason.WRONG_PASSWORD)
        client.expect_end()


def test_a_server_can_require_passwords(start_server: StartServer) -> None:
    server = start_server("--require-password")
    with server.connect() as client:
        client.send(encode_login("alice"))
        client.expect_error(Reason.PASSWORD_REQUIRED)
        client.send(encode_login("alice", "secret"))
        client.read_list("alice")


def test_a_refused_login_names_its_first_error(start_server: StartServer) -> None:
    server = start_server("--max-users", 2, "--require-password")
    alice = server.log_in("alice", "secret")
    server.log_in("bob", "secret")
    judged = [
        ("bad name", "p" * 65, Reason.INVALID_USERNAME),
        ("alice", "p" * 65, Reason.INVALID_PASSWORD),
        ("alice", "", Reason.USER_ALREADY_ONLINE),
        ("ALICE", "", Reason.USERNAME_TAKEN),
        ("carol", "", Reason.USER_LIMIT_REACHED),
    ]
    with server.connect() as client:
        for name, password, reason in judged:
            client.send(encode_login(name, password))
            client.expect_error(reason)
    alice.expect_pong()


def test_the_login_timeout_ends_a_silent_connection(start_server: StartServer) -> None:
    with start_server("--login-timeout", 0.5).connect() as client:
        client.expect_error(Reason.LOGIN_TIMEOUT)
        client.expect_end()


def test_pings_do_not_extend_the_login_timeout(start_server: StartServer) -> None:
    ping, pong = encode(PacketType.PING, b"?"), (PacketType.PONG, b"?")
    with start_server("--login-timeout", 0.5).connect() as client:
        client.send(ping)
        while (packet := client.read()) == pong:
            client.send(ping)
        assert packet == (PacketType.ERROR, encode_error(Reason.LOGIN_TIMEOUT)[2:])


def test_a_drip_of_single_bytes_does_not_extend_the_login_timeout(start_server: StartServer) -> None:
    server = start_server("--login-timeout", 0.5)
    with server.connect() as client:
        client.socket.settimeout(0.05)
        login = iter(encode_login("x" * 32, "p" * 60))

        def drip_until_answered() -> bool:
            client.send(bytes([next(login)]))
            try:
                client.socket.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                return False
            return True

        wait_for("Login Timeout", drip_until_answered)
        client.socket.settimeout(10)
        client.expect_error(Reason.LOGIN_TIMEOUT)


def test_an_idle_client_is_disconnected_and_a_ping_prevents_it(start_server: StartServer) -> None:
    server = start_server("--idle-timeout", 6)
    idle, lively = server.log_in("idle"), server.log_in("lively")

    def is_over() -> bool:
        lively.expect_pong()
        idle.socket.settimeout(0.1)
        try:
            return idle.socket.recv(1, socket.MSG_PEEK) == b""
        except TimeoutError:
            return False

    wait_for("the end of the idle connection", is_over)
    lively.expect_pong()
    assert "idle disconnected: idle" in server.log


def test_a_client_that_resets_its_connection_is_offline_and_disturbs_nobody(server: ServerProcess) -> None:
    alice, bob = server.log_in("alice"), server.log_in("bob")
    alice.chat_with(2)
    reset(bob)
    server.wait_for_log("bob disconnected")
    alice.say("are you there?")
    alice.expect_error(Reason.USER_NOT_ONLINE)
    assert server.log_in("bob").users == {"alice": 1, "bob": 2}


def test_messages_sent_before_a_reset_are_still_delivered(server: ServerProcess) -> None:
    bob = server.log_in("bob")
    alice = server.log_in("alice")
    alice.chat_with(1)
    alice.send(encode(PacketType.PING, b"never read"), MESSAGE * 500)
    alice.close()  # with an answer unread, so that the kernel resets
    for _ in range(500):
        bob.expect(Envelope("alice").wrap(b"x"))


def reset(client: Wire) -> None:
    reset_on_close(client.socket)
    client.close()


@pytest.mark.one_server
def test_a_full_disk_refuses_only_sign_ups_until_there_is_space_again(
    start_server: StartServer, tmp_path: Path
) -> None:
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux can fill the disk of another process (prlimit)")
    users = tmp_path / "data" / "users.csv"
    users.parent.mkdir()
    users.write_text("".join(f"{number},{'n' * 28}{number}\n" for number in range(1, 100)))
    (users.parent / "passwords.csv").touch()
    server = start_server()
    known = server.log_in("n" * 28 + "1")
    pid, (_, hard) = server.process.pid, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (users.stat().st_size + 3, hard))  # a short write, and then none
    with server.connect() as client:
        for _ in range(2):
            client.send(encode_login("newcomer"))
            client.expect_error(Reason.STORAGE_UNAVAILABLE)
        known.expect_pong()
        server.log_in("n" * 28 + "2").expect_pong()
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        client.send(encode_login("newcomer"))
        client.read_list("newcomer")
        assert client.users["newcomer"] == 100
    assert users.read_text().splitlines()[-1] == "100,newcomer"
