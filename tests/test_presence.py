"""Presence for clients that ask for it, and brief logins (section 7), with the real server."""

import pytest

from protocol import (
    NO_FEATURES,
    Feature,
    PacketType,
    Reason,
    encode,
    encode_error,
    encode_login,
    encode_presence,
    encode_user,
)
from testkit.server import ServerProcess, StartServer
from testkit.wire import Wire

pytestmark = pytest.mark.measured

PING = encode(PacketType.PING, b"?")
PONG = encode(PacketType.PONG, b"?")


def test_watchers_are_notified_in_order_of_users_who_log_in_and_leave(server: ServerProcess) -> None:
    watcher = server.log_in("watcher", features=Feature.PRESENCE)
    for user_id, name in ((2, "alice"), (3, "bob"), (2, "alice")):
        with server.log_in(name):
            watcher.expect(encode_presence(True, name, user_id, 1))
        watcher.expect(encode_presence(False, name, user_id, 1))
    watcher.expect_pong()


def test_a_client_that_does_not_ask_gets_no_presence(server: ServerProcess) -> None:
    watcher = server.log_in("watcher", features=Feature.PRESENCE)
    silent = server.log_in("silent", features=Feature.RECEIPTS)
    watcher.expect(encode_presence(True, "silent", 2, 1))
    silent.expect_pong()
    watcher.close()
    server.wait_for_log("watcher disconnected")
    silent.expect_pong()


def test_a_later_config_replaces_the_features(server: ServerProcess) -> None:
    watcher = server.log_in("watcher")
    server.visit("alice")
    watcher.expect_pong()
    watcher.send(encode_login("watcher", features=Feature.PRESENCE))
    watcher.read_list("watcher")
    alice = server.log_in("alice")
    watcher.expect(encode_presence(True, "alice", 2, 1))
    watcher.send(encode_login("watcher"))  # no features field: they stay
    watcher.read_list("watcher")
    alice.close()
    watcher.expect(encode_presence(False, "alice", 2, 1))
    watcher.send(bytes.fromhex("01 0c 0007") + b"watcher" + bytes((0, 0, NO_FEATURES)))
    watcher.read_list("watcher")
    server.log_in("alice").expect_pong()
    watcher.expect_pong()


def test_a_refused_login_enables_no_feature(server: ServerProcess) -> None:
    with server.log_in("alice"), server.connect() as client:
        client.send(encode_login("alice", features=Feature.PRESENCE | Feature.HISTORY))
        client.expect_error(Reason.USER_ALREADY_ONLINE)
        server.log_in("bob").expect_pong()
        client.expect_pong()
        client.send(encode(PacketType.HISTORY, b"\x01\x01"))
        client.expect_error(Reason.UNKNOWN_PACKET_TYPE)


def test_a_watcher_that_does_not_read_delays_nobody_and_gets_the_latest_state(server: ServerProcess) -> None:
    watcher = server.log_in("watcher", features=Feature.PRESENCE)
    for _ in range(50):
        for name in ("alice", "bob"):
            server.visit(name)
    final = server.log_in("alice")
    latest: dict[str, int] = {}
    watcher.send(
        encode_login("watcher", features=Feature.PRESENCE), PING
    )  # once the list arrives, its node knows everyone
    while (packet := watcher.read()) != (PacketType.PONG, b"?"):
        assert packet is not None
        if packet[0] != PacketType.CONFIG:
            assert packet[0] == PacketType.PRESENCE
            name = packet[1][3:-1].decode()
            latest[name] = packet[1][0]
    assert latest["alice"] == 1
    final.expect_pong()


def test_presence_has_ids_of_the_configured_width(start_server: StartServer) -> None:
    server = start_server("--id-width", 4)
    watcher = server.log_in("watcher", features=Feature.PRESENCE)
    with server.log_in("alice"):
        watcher.expect(encode_presence(True, "alice", 2, 4))


def test_a_brief_login_is_answered_with_the_own_entry_and_the_list_on_request(server: ServerProcess) -> None:
    others = [server.log_in("alice"), server.log_in("bob")]
    client: Wire = server.connect()
    client.send(encode_login("carol", features=Feature.BRIEF))
    client.expect(encode_user("carol", 3, 1))
    client.expect_pong()
    client.send(encode_login("carol", features=Feature.BRIEF))
    for user_id, name in ((1, "alice"), (2, "bob"), (3, "carol")):
        client.expect(encode_user(name, user_id, 1))
    client.expect_pong()
    for other in others:
        other.expect_pong()


def test_an_extension_s_packet_is_unknown_unless_the_client_asked_for_it(server: ServerProcess) -> None:
    for packet_type in (PacketType.PRESENCE, PacketType.RECEIPT, PacketType.HISTORY):
        client = server.log_in("client", features=~Feature.HISTORY)
        client.send(encode(packet_type, b"\x01\x01"))
        assert client.read() == (PacketType.ERROR, encode_error(Reason.UNKNOWN_PACKET_TYPE)[2:])
        client.expect_end()
        client.close()
