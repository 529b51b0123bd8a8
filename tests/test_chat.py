"""The chat of section 3 of the protocol, with the real server and plain sockets."""

from protocol import PacketType, Reason, encode, encode_chat_init, encode_login, encode_message
from testkit.server import ServerProcess, StartServer


def test_the_documented_conversation_byte_by_byte(server: ServerProcess) -> None:
    user = server.connect()
    user.send(bytes.fromhex("01 06 0004 55736572"))
    user.expect(bytes.fromhex("01 07 0004 55736572 01"))
    user.send(bytes.fromhex("02 01 01"))
    user.send(bytes.fromhex("03 07 0005 48656c6c6f"))
    user.expect(bytes.fromhex("03 0c 000a 557365723a48656c6c6f"))
    with server.connect() as second:
        second.send(bytes.fromhex("01 06 0004 55736572"))
        second.expect(bytes.fromhex("04 16 0014 5573657220416c7265616479204f6e6c696e6521"))


def test_two_users_chat_and_a_third_receives_nothing(server: ServerProcess) -> None:
    alice, bob, carol = (server.log_in(name) for name in ("alice", "bob", "carol"))
    assert carol.users == {"alice": 1, "bob": 2, "carol": 3}
    alice.chat_with(2)
    bob.chat_with(1)
    alice.say("hi bob")
    bob.expect_message("alice:hi bob")
    bob.say("hi alice")
    alice.expect_message("bob:hi alice")
    for client in (alice, bob, carol):
        client.expect_pong()


def test_the_user_list_is_ascending_with_the_own_entry_last(server: ServerProcess) -> None:
    names = ["u1", "u2", "u3", "u4"]
    clients = {name: server.log_in(name) for name in names}
    clients["u2"].send(encode_login("u2"))
    clients["u2"].read_list("u2")
    assert list(clients["u2"].users.items()) == [("u1", 1), ("u3", 3), ("u4", 4), ("u2", 2)]


def test_a_thousand_messages_arrive_in_order(server: ServerProcess) -> None:
    alice, bob = server.log_in("alice"), server.log_in("bob")
    alice.chat_with(2)
    alice.send(*(encode_message(f"{number}".encode()) for number in range(1000)))
    for number in range(1000):
        bob.expect_message(f"alice:{number}")


def test_ids_survive_a_restart(start_server: StartServer) -> None:
    first = start_server()
    for name in ("alice", "bob"):
        first.log_in(name)
    assert first.stop() == 0
    second = start_server()
    bob = second.log_in("bob")
    assert bob.users == {"bob": 2}
    assert second.log_in("carol").users == {"bob": 2, "carol": 3}


def test_a_client_with_two_byte_ids_is_served_unchanged(start_server: StartServer) -> None:
    server = start_server("--id-width", 2, "--max-users", 300)
    with server.connect() as user:
        user.send(bytes.fromhex("01 06 0004 55736572"))
        user.expect(bytes.fromhex("01 08 0004 55736572 0001"))
        user.send(bytes.fromhex("02 02 0001"), bytes.fromhex("03 07 0005 48656c6c6f"))
        user.expect(bytes.fromhex("03 0c 000a 557365723a48656c6c6f"))


def test_a_refused_chat_init_leaves_the_old_partner_in_place(server: ServerProcess) -> None:
    alice, bob = server.log_in("alice"), server.log_in("bob")
    alice.chat_with(2)
    alice.send(encode_chat_init(77))
    alice.expect_error(Reason.USER_NOT_ONLINE)
    alice.say("still here?")
    bob.expect_message("alice:still here?")


def test_messages_go_to_the_partner_chosen_last(server: ServerProcess) -> None:
    alice, bob, carol = (server.log_in(name) for name in ("alice", "bob", "carol"))
    alice.send(encode_chat_init(2), encode_message(b"one"), encode_chat_init(3), encode_message(b"two"))
    bob.expect_message("alice:one")
    carol.expect_message("alice:two")
    bob.expect_pong()


def test_a_message_to_oneself_arrives_before_the_pong_for_a_later_ping(server: ServerProcess) -> None:
    alice = server.log_in("alice")
    alice.send(encode_chat_init(1), encode_message(b"note"), encode(PacketType.PING, b"x"))
    alice.expect_message("alice:note")
    alice.expect(encode(PacketType.PONG, b"x"))


def test_a_text_too_long_for_one_packet_arrives_whole_in_several(server: ServerProcess) -> None:
    alice, bob = server.log_in("alice"), server.log_in("bob")
    alice.chat_with(2)
    text = "ä" * 68  # 136 bytes
    alice.say(text)
    pieces: list[str] = []
    while len("".join(pieces)) < len(text):
        packet = bob.read()
        assert packet is not None
        sender, _, piece = packet[1][2:].decode().partition(":")
        assert sender == "alice"
        pieces.append(piece)
    assert len(pieces) == 2
    assert "".join(pieces) == text


def test_packets_before_a_half_close_are_handled_and_answered(server: ServerProcess) -> None:
    bob = server.log_in("bob")
    with server.connect() as alice:
        alice.send(encode_login("alice"), encode_chat_init(1), encode_message(b"bye"), encode(PacketType.PING, b"?"))
        alice.half_close()
        alice.read_list("alice")
        alice.expect(encode(PacketType.PONG, b"?"))
        alice.expect_end()
    bob.expect_message("alice:bye")


def test_a_name_is_free_as_soon_as_its_client_has_closed(server: ServerProcess) -> None:
    alice = server.log_in("alice")
    alice.half_close()
    alice.expect_end()
    assert server.log_in("alice").users == {"alice": 1}
