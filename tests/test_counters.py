"""What is counted when a connection breaks, in process. test_metrics.py has what real clients cause."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pytest

from chatserver.counters import Counters, Latency
from chatserver.transport.connection import Connection
from chatserver.transport.states import Output
from chatserver.transport.turns import Turn
from protocol import Run, encode_message
from testkit.processes import DEADLINE, wait_for
from testkit.wire import reset_on_close


@contextmanager
def small_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's and the client's end of a connection with small buffers."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        sock, _ = listener.accept()
        sock.setblocking(False)
        with sock:
            yield sock, client


@pytest.mark.parametrize("shift", range(6))
def test_a_connection_that_breaks_within_a_packet_counts_the_whole_messages_before_it(shift: int) -> None:
    counters, first, small = Counters(), encode_message(b"x" * shift), encode_message(b"xx")
    count = 200_000
    with small_pair() as (sock, client):
        connection = Connection(sock, counters, 10_000_000, DEADLINE)
        connection.outbox.deliver(Run(first + small * count, 1 + count), counters, Turn())
        gevent.sleep(0.05)
        reset_on_close(client)
        client.close()
        wait_for("the reset", lambda: connection.outbox.state is Output.UNREACHABLE)
        connection.finish(DEADLINE)
    delivered = 1 + (counters.bytes_sent - len(first)) // len(small)
    assert counters.messages_delivered == delivered
    assert counters.messages_undeliverable == count + 1 - delivered
    assert connection.undelivered == len(first) + count * len(small) - counters.bytes_sent
    assert connection.outbox.size == 0


def test_each_measured_block_is_counted_once() -> None:
    latency = Latency()
    with latency.measured():
        pass
    with pytest.raises(ZeroDivisionError), latency.measured():
        raise ZeroDivisionError
    assert sum(latency.counts) == 2
    assert latency.seconds > 0
