"""A Message that needs no waiting is relayed as it arrives, past the receiver's queue and the sender's greenlet."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pytest

from chatserver.counters import Counters
from chatserver.transport.connection import FEW_BYTES, Connection
from chatserver.transport.readable import plain_socket
from protocol import PacketType, encode, encode_message
from testkit.processes import DEADLINE
from testkit.wire import reset_on_close

MESSAGE = encode_message(b"hello")
LAST = encode(PacketType.PONG, b"the last")


class CountedSends:
    """A socket that counts how often something is sent."""

    def __init__(self, sock: socket.socket) -> None:
        self.sends = 0
        self._sock = sock

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)

    def send(self, data: bytes) -> int:
        self.sends += 1
        return self._sock.send(data)


@contextmanager
def connected() -> Iterator[tuple[Connection, socket.socket]]:
    """A Connection and its client's socket, over TCP, where the kernel may take a part of what is sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = socket.create_connection(listener.getsockname())
        here, _ = listener.accept()
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    there.settimeout(DEADLINE)
    with there:
        connection = Connection(plain_socket(here, here.detach()), Counters(), 10_000_000, DEADLINE)
        yield connection, there
        there.close()
        connection.finish(0)


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    with connected() as pair:
        yield pair


Pair = tuple[Connection, socket.socket]


def receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = sock.recv(65536)
        assert chunk, f"the end after {len(data)} bytes"
        data += chunk
    return data


# What the hub reads


def test_a_chunk_that_is_taken_does_not_wake_the_greenlet_and_any_other_does(pair: Pair) -> None:
    connection, client = pair
    offered: list[bytes] = []

    def offer(data: bytes) -> bool:
        offered.append(data)
        return data == MESSAGE

    connection.offer = offer
    reads = gevent.spawn(connection.read)
    gevent.sleep(0)
    began = connection.waiting_since
    for count in (1, 2):
        client.sendall(MESSAGE)
        with gevent.Timeout(DEADLINE):
            while len(offered) < count:
                gevent.sleep(0)
    assert not reads.dead
    assert began is not None
    assert connection.waiting_since is not None
    assert connection.waiting_since > began, "it is not idle"
    client.sendall(LAST)
    assert reads.get(timeout=DEADLINE) == LAST
    assert offered == [MESSAGE, MESSAGE, LAST]
    assert connection._counters.bytes_received == 2 * len(MESSAGE) + len(LAST)


def test_while_the_greenlet_handles_a_chunk_the_next_one_waits(pair: Pair) -> None:
    connection, client = pair
    offered: list[bytes] = []

    def refuse(data: bytes) -> bool:
        offered.append(data)
        return False

    connection.offer = refuse
    client.sendall(LAST)
    assert connection.read() == LAST
    client.sendall(MESSAGE)
    gevent.sleep(0.05)
    assert offered == [LAST]
    assert connection.read() == MESSAGE
    assert offered == [LAST, MESSAGE]


def test_a_connection_that_stops_reading_offers_nothing_more(pair: Pair) -> None:
    connection, client = pair
    connection.offer = lambda _: True
    reads = gevent.spawn(connection.read)
    gevent.sleep(0)
    client.sendall(MESSAGE)
    connection.stop_reading()
    assert reads.get(timeout=DEADLINE) in (b"", MESSAGE)
    assert connection._counters.bytes_received in (0, len(MESSAGE)), "the session has what was read"


def test_a_long_chunk_is_read_whole(pair: Pair) -> None:
    connection, client = pair
    connection.offer = lambda _: False
    client.sendall(MESSAGE * 1000)
    data = connection.read()
    assert len(data) > FEW_BYTES
    assert connection._counters.bytes_received == len(data)


def test_an_error_of_the_session_and_of_the_socket_reach_the_greenlet(pair: Pair) -> None:
    connection, client = pair

    def fail(_: bytes) -> bool:
        raise KeyError(1)

    connection.offer = fail
    reads = gevent.spawn(connection.read)
    gevent.sleep(0)
    client.sendall(MESSAGE)
    with pytest.raises(KeyError):
        reads.get(timeout=DEADLINE)
    client.sendall(MESSAGE)
    gevent.sleep(0.05)  # after an error nothing more is offered
    connection.offer = lambda _: False
    assert connection.read() == MESSAGE
    connection.offer = lambda _: True
    reads = gevent.spawn(connection.read)
    gevent.sleep(0)
    reset_on_close(client)
    client.close()
    assert reads.get(timeout=DEADLINE) == b""
    assert connection.outcome == "Connection reset by peer"


# What is sent at once


class Delivered:
    """A fate that counts."""

    count = lost = 0

    def delivered(self, count: int) -> None:
        self.count += count

    def dropped(self, count: int) -> None:
        self.lost += count


def test_a_message_is_with_the_kernel_when_it_has_been_offered(pair: Pair) -> None:
    connection, client = pair
    fate = Delivered()
    assert connection.outbox.offer(MESSAGE, 1, fate)
    assert fate.count == 1
    assert connection.outbox.size == 0
    assert receive(client, len(MESSAGE)) == MESSAGE


def test_further_messages_of_a_turn_go_out_together(pair: Pair) -> None:
    connection, client = pair
    counted = CountedSends(connection._sock)  # type: ignore[arg-type]
    connection._sock = counted  # type: ignore[assignment]
    fate = Delivered()
    texts = [encode_message(b"%d" % number) for number in range(10)]
    gevent.sleep(0)
    for text in texts:
        assert connection.outbox.offer(text, 1, fate)
    assert counted.sends == 1
    assert receive(client, len(b"".join(texts))) == b"".join(texts)
    gevent.sleep(0)
    assert counted.sends == 2
    assert fate.count == 10


def test_what_the_kernel_does_not_take_follows_in_order_and_is_delivered_then(pair: Pair) -> None:
    connection, client = pair
    fate = Delivered()
    many = MESSAGE * 200_000  # 1.8 MB
    assert connection.outbox.offer(many, 200_000, fate)
    assert fate.count == 0
    assert 0 < connection.outbox.size < len(many) + 1000
    assert connection.outbox.offer(LAST, 1, fate)
    assert receive(client, len(many + LAST)) == many + LAST
    with gevent.Timeout(DEADLINE):
        while connection.outbox.size:
            gevent.sleep(0.01)
    assert fate.count == 200_001
    assert fate.lost == 0


def test_what_the_kernel_has_not_taken_is_lost_with_the_connection(pair: Pair) -> None:
    connection, client = pair
    fate = Delivered()
    many = MESSAGE * 200_000
    assert connection.outbox.offer(many, 200_000, fate)
    assert receive(client, 1)
    reset_on_close(client)
    client.close()
    with gevent.Timeout(DEADLINE):
        while connection.outbox.takes:
            gevent.sleep(0.01)
    assert fate.lost > 0
    assert fate.count + fate.lost == 200_000
    assert connection.outbox.size == 0


def test_nothing_overtakes_what_waits(pair: Pair) -> None:
    connection, client = pair
    fate = Delivered()
    gevent.sleep(0)
    assert connection.outbox.put(LAST)
    assert connection.outbox.offer(MESSAGE, 1, fate)
    assert fate.count == 0
    assert receive(client, len(LAST + MESSAGE)) == LAST + MESSAGE


def test_notices_that_wait_go_first(pair: Pair) -> None:
    connection, client = pair
    fate = Delivered()
    notices = [LAST]
    connection.outbox.notices.append(lambda: notices.pop() if notices else b"")
    connection.outbox.announce()
    assert connection.outbox.offer(MESSAGE, 1, fate)
    assert fate.count == 0, "it waits for the notice's turn"
    assert receive(client, len(LAST + MESSAGE)) == MESSAGE + LAST


@pytest.mark.parametrize("obstacle", ["full", "reserved", "closed"])
def test_an_offer_that_would_wait_changes_nothing(obstacle: str) -> None:
    with connected() as (connection, client):
        outbox, fate = connection.outbox, Delivered()
        if obstacle == "full":
            outbox._limit = len(MESSAGE)
        elif obstacle == "reserved":
            outbox.reserve()
        else:
            outbox.close()
        assert not outbox.offer(MESSAGE, 1, fate)
        assert (fate.count, fate.lost, outbox.size) == (0, 0, 0)
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)


def test_a_send_that_fails_is_noted_and_the_message_dropped(pair: Pair) -> None:
    connection, client = pair
    reset_on_close(client)
    client.close()
    fate = Delivered()
    gevent.sleep(0.05)
    assert connection.outbox.offer(MESSAGE, 1, fate)
    gevent.sleep(0.05)
    assert (fate.count, fate.lost) == (0, 1)
    assert not connection.outbox.takes
    assert connection.outcome == "Connection reset by peer"
