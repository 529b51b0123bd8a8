"""The numbers by which receipts speak of the Messages of a ChatClient, over real sockets, plain and encrypted.

The same tests run twice: as greenlets, and in a process without gevent, as threads.
"""

import os
import ssl
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
import trustme

from client import ChatClient, ReceiptReceived, tls_context
from protocol import ALL_FEATURES, Level, PacketType, encode_receipt, parse_text
from testkit.processes import UNPATCHED, run_unpatched
from testkit.scripted_server import SECONDS, Peer, ScriptedServer, ServerStart

Pair = tuple[ChatClient, Peer]


@pytest.fixture
def start() -> Iterator[ServerStart]:
    with ThreadPoolExecutor() as pool:
        yield ServerStart(pool)


@pytest.fixture(params=["plain", "encrypted"])
def chatting(request: pytest.FixtureRequest, start: ServerStart) -> Iterator[Pair]:
    """alice chats with bob."""
    context, trust = (None, None) if request.param == "plain" else certified("127.0.0.1")
    with ScriptedServer() as server:
        connecting = start(ChatClient, server.host, server.port, SECONDS, trust)
        peer = server.accept()
        if context:
            peer = Peer(context.wrap_socket(peer.connection, server_side=True))
        with connecting.result(SECONDS) as client, peer:
            login = start(client.login, "alice", features=ALL_FEATURES)
            peer.log_in("alice", "bob")
            assert login.result(SECONDS) == 2
            choose_bob((client, peer), start)
            yield client, peer


def choose_bob(pair: Pair, start: ServerStart) -> None:
    client, peer = pair
    chat = start(client.chat, 1)
    peer.expect(PacketType.CHAT_INIT)
    peer.pong()
    assert chat.result(SECONDS) == 1


def certified(host: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a server of this name, and for clients that trust it."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(server)
    trust = tls_context()
    authority.configure_trust(trust)
    return server, trust


def fill(client: ChatClient) -> None:
    """Send until there is no room, as the server reads nothing, and go on trying for a while."""
    refused = 0
    while refused < 3:
        try:
            client.send("x" * 20_000, timeout=0.05)
        except TimeoutError:
            refused += 1


def texts_up_to(peer: Peer, last: str) -> list[str]:
    """What the Messages say, up to this one."""
    texts = [""]
    while texts[-1] != last:
        texts.append(parse_text(peer.expect(PacketType.MESSAGE)).decode())
    return texts[1:]


def test_send_returns_the_numbers_that_receipts_use(chatting: Pair, start: ServerStart) -> None:
    client, peer = chatting
    assert client.sent == 0
    assert client.send("one") == range(1, 2)
    assert client.send("") == range(2, 3)
    long = client.send("x" * 300)
    assert long == range(3, 6)
    assert [parse_text(peer.expect(PacketType.MESSAGE)) for _ in range(2)] == [b"one", b""]
    assert b"".join(parse_text(peer.expect(PacketType.MESSAGE)) for _ in long) == b"x" * 300
    ping = start(client.ping)
    peer.pong()
    ping.result(SECONDS)
    choose_bob(chatting, start)
    assert client.sent == 5
    peer.send(encode_receipt(Level.DELIVERED, 3, 5))
    assert client.receive() == ReceiptReceived(Level.DELIVERED, long[0], long[-1])


def test_messages_that_a_timeout_holds_back_have_no_number(chatting: Pair, start: ServerStart) -> None:
    client, peer = chatting
    fill(client)
    before = client.sent
    last = start(client.send, "the end")
    assert len(texts_up_to(peer, "the end")) == before + 1
    assert last.result(SECONDS) == range(before + 1, before + 2)
    assert client.sent == before + 1


def test_numbers_are_exact_when_several_threads_send_and_give_up(chatting: Pair, start: ServerStart) -> None:
    """The server tells the number of each Message that it reads, by a receipt; so none may be ahead of `sent`."""
    client, peer = chatting
    fill(client)

    def send(who: int) -> dict[str, range]:
        numbers = {}
        for number in range(100):
            text = f"<{who}, {number}>" * (1 + number % 50 * 10)
            try:
                numbers[text] = client.send(text, timeout=0 if number % 2 else None)
            except TimeoutError:
                continue
        return numbers

    def listen() -> list[int]:
        return [client.sent - event.last for event in client if isinstance(event, ReceiptReceived)]

    ahead = start(listen)
    sending = [start(send, who) for who in range(4)]
    end = start(lambda: [sent.result(SECONDS) for sent in sending] and client.send("the end"))
    texts = [""]
    while texts[-1] != "the end":
        texts.append(parse_text(peer.expect(PacketType.MESSAGE)).decode())
        peer.send(encode_receipt(Level.STORED, len(texts) - 1, len(texts) - 1))
    for text, numbers in chain.from_iterable(sent.result(SECONDS).items() for sent in sending):
        assert "".join(texts[number] for number in numbers) == text
    assert end.result(SECONDS) == range(client.sent, client.sent + 1)
    assert client.sent == len(texts) - 1
    peer.close()
    assert len(ahead.result(SECONDS)) == client.sent
    assert min(ahead.result()) == 0


# Without gevent


def test_threads_are_as_the_environment_says() -> None:
    assert ("gevent" in sys.modules) != (UNPATCHED in os.environ)


@pytest.mark.skipif(UNPATCHED in os.environ, reason="this is that process")
def test_the_same_with_threads() -> None:
    run_unpatched(__file__)
