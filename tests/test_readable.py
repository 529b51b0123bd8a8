"""Waiting for input below gevent's socket API: Readable keeps its three promises."""

import socket
from collections.abc import Iterator

import gevent
import pytest
from gevent import Timeout
from greenlet import GreenletExit

from chatserver.transport.readable import Interrupted, Readable, plain_socket
from testkit.processes import DEADLINE


class Counting(Readable):
    """Counts how often the loop tells it of input."""

    told = 0

    def _wake(self) -> None:
        self.told += 1
        super()._wake()


@pytest.fixture
def pair() -> Iterator[tuple[Counting, socket.socket, socket.socket]]:
    """One end, who waits for it, and the other end."""
    near, far = socket.socketpair()
    with near, far:
        readable = Counting(near.fileno())
        yield readable, near, far
        readable.close()


def outcome(readable: Readable) -> str:
    try:
        readable.wait()
    except Interrupted:
        return "over"
    except GreenletExit:
        return "killed"
    return "input"


def some_turns() -> None:
    for _ in range(5):
        gevent.sleep(0)


Pair = tuple[Counting, socket.socket, socket.socket]


def test_who_waits_is_woken_by_input_and_by_its_end(pair: Pair) -> None:
    readable, near, far = pair
    waiting = gevent.spawn(outcome, readable)
    some_turns()
    assert not waiting.dead
    far.send(b"x")
    assert waiting.get(timeout=DEADLINE) == "input"
    assert near.recv(10) == b"x"
    far.close()
    assert gevent.spawn(outcome, readable).get(timeout=DEADLINE) == "input"
    assert near.recv(10) == b""


def test_input_that_nobody_waits_for_is_told_once_and_found_later(pair: Pair) -> None:
    readable, near, far = pair
    far.send(b"x")
    assert gevent.spawn(outcome, readable).get(timeout=DEADLINE) == "input"
    told = readable.told
    some_turns()
    gevent.sleep(0.01)
    assert readable.told == told + 1, "then the loop rests"
    assert gevent.spawn(outcome, readable).get(timeout=DEADLINE) == "input"
    assert near.recv(10) == b"x"


def test_an_interrupt_ends_the_wait_and_no_later_one(pair: Pair) -> None:
    readable, _, far = pair
    readable.interrupt()
    waiting = gevent.spawn(outcome, readable)
    some_turns()
    assert not waiting.dead, "nobody waited when it came"
    readable.interrupt()
    readable.interrupt()
    assert waiting.get(timeout=DEADLINE) == "over"
    waiting = gevent.spawn(outcome, readable)
    some_turns()
    assert not waiting.dead
    far.send(b"x")
    assert waiting.get(timeout=DEADLINE) == "input"


def test_of_input_and_an_interrupt_at_once_one_ends_the_wait(pair: Pair) -> None:
    readable, _, far = pair
    waiting = gevent.spawn(outcome, readable)
    some_turns()
    far.send(b"x")
    readable.interrupt()
    assert waiting.get(timeout=DEADLINE) in ("input", "over")
    some_turns()
    assert gevent.spawn(outcome, readable).get(timeout=DEADLINE) == "input", "the other one does not end the next wait"


def test_who_is_killed_waits_no_more(pair: Pair) -> None:
    readable, _, far = pair
    waiting = gevent.spawn(outcome, readable)
    some_turns()
    waiting.kill()
    assert waiting.get(timeout=DEADLINE) == "killed"
    far.send(b"x")
    some_turns()
    assert gevent.spawn(outcome, readable).get(timeout=DEADLINE) == "input"


def test_a_timeout_ends_the_wait_and_the_next_one_goes_on(pair: Pair) -> None:
    readable, _, far = pair
    with pytest.raises(Timeout), Timeout(0.01):
        readable.wait()
    far.send(b"x")
    with Timeout(DEADLINE):
        readable.wait()


def test_a_plain_socket_has_the_connection_and_never_waits(pair: Pair) -> None:
    _, near, far = pair
    with plain_socket(near) as plain:
        assert near.fileno() == -1
        with pytest.raises(BlockingIOError):
            plain.recv(10)
        far.send(b"x")
        assert plain.recv(10) == b"x"


def test_an_error_of_the_connection_ends_the_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as near:
        far, _ = listener.accept()
        readable = Readable(near.fileno())
        waiting = gevent.spawn(outcome, readable)
        some_turns()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # on, for 0 s: a reset
        far.close()
        assert waiting.get(timeout=DEADLINE) == "input"
        readable.close()
