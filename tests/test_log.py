"""What the log contains, and what it never contains: texts, passwords, or a line per message."""

from protocol import Reason, encode_login, encode_message
from testkit.flood import BIG
from testkit.server import ServerProcess, StartServer, without_lateness

SECRETS = ("sesame", "simsalabim", "forty-two", "malformed-text", "too-long-a-pass", "early-text")


def lines(server: ServerProcess, text: str) -> list[str]:
    return [line for line in server.log.splitlines() if text in line]


def test_neither_texts_nor_passwords_are_in_the_log_at_any_level(start_server: StartServer) -> None:
    server = start_server("--log-level", "debug", "--login-attempts", 2, "--metrics-port", 0)
    alice = server.log_in("alice", "sesame")
    alice.chat_with(1)
    alice.say("forty-two")
    alice.expect_message("alice:forty-two")
    alice.send(encode_message(b"malformed-text\xff"))
    alice.expect_error(Reason.MALFORMED_PACKET)
    alice.expect_end()
    server.wait_for_log("alice disconnected")
    with server.connect() as client:
        client.send(encode_message(b"early-text"), encode_login("alice", "too-long-a-pass" * 5))
        client.expect_error(Reason.NOT_LOGGED_IN)
        client.expect_error(Reason.INVALID_PASSWORD)
        client.send(encode_login("al ice", "sesame"))
        client.expect_error(Reason.INVALID_USERNAME)
        for _ in range(2):
            client.send(encode_login("alice", "simsalabim"))
            client.expect_error(Reason.WRONG_PASSWORD)
        client.send(encode_login("alice", "sesame"))
        client.expect_error(Reason.TOO_MANY_ATTEMPTS)
    with server.connect() as client:
        client.send(b"\x01\x09\x00\x01asesame")  # a login whose password has no length
        client.expect_error(Reason.MALFORMED_PACKET)
    server.metrics()
    assert server.stop() == 0
    assert not [secret for secret in SECRETS if secret in server.log]


def test_each_connection_login_refusal_and_end_is_logged_and_no_message_is(server: ServerProcess) -> None:
    alice = server.log_in("alice", "sesame")
    alice.chat_with(1)
    alice.send(BIG * 100)
    for _ in range(100):
        alice.expect_message("alice:" + "x" * 100)
    with server.connect() as client:
        client.send(encode_login("alice"))
        client.expect_error(Reason.USER_ALREADY_ONLINE)
        client.send(encode_login("bob"))
        client.read_list("bob")
    server.wait_for_log("bob disconnected: left")
    assert len(lines(server, " connected")) == 2
    assert len(lines(server, "signed up, id")) == 2
    assert len(lines(server, "logged in as")) == 2
    assert len(lines(server, "refused as 'alice': User Already Online!")) == 1
    assert len(lines(server, "disconnected: ")) == 1
    known = ("chat server", "memory: ", " connected", "signed up", "logged in", "refused as", "disconnected: ")
    assert [line for line in without_lateness(server.log).splitlines() if not any(text in line for text in known)] == []
