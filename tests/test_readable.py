"""Waiting for input below gevent's socket API: the three promises of Readable."""

import socket
from collections.abc import Iterator

import gevent
import pytest
from gevent import Timeout
from greenlet import GreenletExit

from chatserver.transport.readable import Interrupted, Readable, plain_socket
from testkit.processes import DEADLINE
from testkit.wire import reset_on_close


class Counting(Readable):
    """Counts how often the loop reports input."""

    reports = 0

    def wake(self) -> None:
        self.reports += 1
        super().wake()


@pytest.fixture
def pair() -> Iterator[tuple[Counting, socket.socket, socket.socket]]:
    """(what waits for the near end, the near end, the far end)."""
    near, far = socket.socketpair()
    with near, far:
        readable = Counting(near.fileno())
        yield readable, near, far
        readable.close()


def outcome(readable: Readable) -> str:
    try:
        readable.wait()
    except Interrupted:
        return "interrupted"
    except GreenletExit:
        return "killed"
    return "input"


def some_turns() -> None:
    for _ in range(5):
        gevent.sleep(0)


Pair = tuple[Counting, socket.socket, socket.socket]


def test_a_wait_ends_on_input_and_on_the_end_of_input(pair: Pair) -> None:
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


def test_input_without_a_waiter_is_reported_once_and_found_later(pair: Pair) -> None:
    readable, near, far = pair
    far.send(b"x")
    assert gevent.spawn(outcome, readable).get(timeout=DEADLINE) == "input"
    before = readable.reports
    some_turns()
    gevent.sleep(0.01)
    assert readable.reports == before + 1, "the watcher is stopped then"
    assert gevent.spawn(outcome, readable).get(timeout=DEADLINE) == "input"
    assert near.recv(10) == b"x"


def test_an_interrupt_ends_the_current_wait_and_no_later_one(pair: Pair) -> None:
    readable, _, far = pair
    readable.interrupt()
    waiting = gevent.spawn(outcome, readable)
    some_turns()
    assert not waiting.dead, "no greenlet waited when the interrupt came"
    readable.interrupt()
    readable.interrupt()
    assert waiting.get(timeout=DEADLINE) == "interrupted"
    waiting = gevent.spawn(outcome, readable)
    some_turns()
    assert not waiting.dead
    far.send(b"x")
    assert waiting.get(timeout=DEADLINE) == "input"


def test_input_and_an_interrupt_at_once_end_one_wait_only(pair: Pair) -> None:
    readable, _, far = pair
    waiting = gevent.spawn(outcome, readable)
    some_turns()
    far.send(b"x")
    readable.interrupt()
    assert waiting.get(timeout=DEADLINE) in ("input", "interrupted")
    some_turns()
    assert gevent.spawn(outcome, readable).get(timeout=DEADLINE) == "input", (
        "the other event does not end the next wait"
    )


def test_a_killed_greenlet_waits_no_more(pair: Pair) -> None:
    readable, _, far = pair
    waiting = gevent.spawn(outcome, readable)
    some_turns()
    waiting.kill()
    assert waiting.get(timeout=DEADLINE) == "killed"
    far.send(b"x")
    some_turns()
    assert gevent.spawn(outcome, readable).get(timeout=DEADLINE) == "input"


def test_a_timeout_ends_the_wait_and_a_later_wait_works(pair: Pair) -> None:
    readable, _, far = pair
    with pytest.raises(Timeout), Timeout(0.01):
        readable.wait()
    far.send(b"x")
    with Timeout(DEADLINE):
        readable.wait()


def test_a_plain_socket_never_blocks(pair: Pair) -> None:
    _, near, far = pair
    with plain_socket(near, near.detach()) as plain:
        with pytest.raises(BlockingIOError):
            plain.recv(10)
        far.send(b"x")
        assert plain.recv(10) == b"x"


def test_a_connection_error_ends_the_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as near:
        far, _ = listener.accept()
        readable = Readable(near.fileno())
        waiting = gevent.spawn(outcome, readable)
        some_turns()
        reset_on_close(far)
        far.close()
        assert waiting.get(timeout=DEADLINE) == "input"
        readable.close()
