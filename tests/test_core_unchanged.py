"""A client that asks for no feature gets the core protocol byte for byte, whatever the server and others can do."""

from collections.abc import Sequence

import pytest

from protocol import ALL_FEATURES, Feature, PacketType, encode
from testkit.server import StartServer
from testkit.wire import Wire

EVERYTHING = ("--history", "on", "--sync", "always", "--metrics-port", "0")
BARRIER = encode(PacketType.PING, b"!"), encode(PacketType.PONG, b"!")

# The examples of section 4 and their answers: (sender, its bytes, the answer, what the other client gets)
CORE = [
    ("User", "01 06 0004 55736572", "01 07 0004 55736572 01", ""),
    ("Other", "01 07 0005 4f74686572", "01 07 0004 55736572 01 01 08 0005 4f74686572 02", ""),
    ("User", "02 01 02", "", ""),
    ("User", "03 07 0005 48656c6c6f", "", "03 0c 000a 557365723a48656c6c6f"),
    ("Other", "01 06 0004 55736572", "04 13 0011 416c7265616479204c6f6767656420496e", ""),
    ("Other", "03 03 0001 61", "04 11 000f 4e6f20436861742053746172746564", ""),
    ("Other", "02 01 09", "04 11 000f 55736572204e6f74204f6e6c696e65", ""),
    ("Other", "02 02 0001", "", ""),
    ("Other", "03 02 0000", "", "03 08 0006 4f746865723a"),
    ("User", "01 06 0004 55736572", "01 08 0005 4f74686572 02 01 07 0004 55736572 01", ""),
    ("User", "01 09 0004 55736572 0000 00", "01 08 0005 4f74686572 02 01 07 0004 55736572 01", ""),
    ("User", "08 02 beef 09 00", "09 02 beef", ""),
]


def replay(clients: dict[str, Wire], steps: Sequence[tuple[str, str, str, str]]) -> None:
    """Exactly the expected bytes arrive, and no others."""
    for name, sent, answered, relayed in steps:
        (other,) = clients.keys() - {name}
        clients[name].send(bytes.fromhex(sent), BARRIER[0])
        expect(clients[name], answered, sent)
        clients[other].send(BARRIER[0])
        expect(clients[other], relayed, sent)


def expect(client: Wire, answer: str, sent: str) -> None:
    expected = bytes.fromhex(answer) + BARRIER[1]
    assert read_bytes(client, len(expected)) == expected, sent


def read_bytes(client: Wire, count: int) -> bytes:
    data = b""
    while len(data) < count:
        packet = client.read()
        assert packet is not None
        data += bytes((packet[0], len(packet[1]))) + packet[1]
    return data


@pytest.mark.parametrize("options", [("--history", "off"), EVERYTHING], ids=["nothing", "everything"])
def test_the_core_vectors_get_the_same_answers(start_server: StartServer, options: tuple[str, ...]) -> None:
    server = start_server(*options)
    with server.connect() as user, server.connect() as other:
        replay({"User": user, "Other": other}, CORE)


def test_other_clients_that_use_every_feature_change_nothing(start_server: StartServer) -> None:
    server = start_server(*EVERYTHING)
    with server.connect() as user, server.connect() as other:
        clients = {"User": user, "Other": other}
        replay(clients, CORE[:2])
        third = server.log_in("third", features=ALL_FEATURES & ~Feature.BRIEF)
        third.chat_with(1)
        third.say("hi")
        assert read_bytes(user, 12) == bytes.fromhex("03 0a 0008 74686972643a6869")
        server.log_in("away", features=ALL_FEATURES).close()
        third.close()
        server.wait_for_log("away disconnected")
        server.wait_for_log("third disconnected")
        replay(clients, CORE[2:4])
