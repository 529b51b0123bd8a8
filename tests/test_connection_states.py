"""The life of a connection: what each event leads to in each state, and what each state allows."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import gevent
import pytest

from chatserver.counters import Counters
from chatserver.transport.connection import Connection
from chatserver.transport.outbox import Outbox
from chatserver.transport.readable import plain_socket
from chatserver.transport.states import INPUT, OUTPUT, Input, InputEvent, Output, OutputEvent
from protocol import PacketType, Reason, encode, encode_error
from testkit.processes import DEADLINE

PONG = encode(PacketType.PONG, b"?")
LAST = encode_error(Reason.TOO_SLOW)

INPUT_LIFE = {  # a column for each event: STOP, HANDLED, CLIENT_CLOSED; "-" is a no-op
    Input.OPEN: "STOPPED UNREAD ENDED",
    Input.STOPPED: "- UNREAD ENDED",
    Input.UNREAD: "- - ENDED",
    Input.ENDED: "- - -",
}
OUTPUT_LIFE = {  # CLOSE, SEND_FAILED, NO_PROGRESS, HALF_CLOSE, SOCKET_CLOSED
    Output.OPEN: "CLOSING UNREACHABLE - - -",
    Output.UNREACHABLE: "ABANDONED - - - -",
    Output.CLOSING: "- ABANDONED TRUNCATED HALF_CLOSED CLOSED",
    Output.TRUNCATED: "- ABANDONED - HALF_CLOSED CLOSED",
    Output.ABANDONED: "- - - HALF_CLOSED CLOSED",
    Output.HALF_CLOSED: "- - - - CLOSED",
    Output.CLOSED: "- - - - -",
}
HOW_TO_REACH: dict[Output, tuple[OutputEvent, ...]] = {
    Output.OPEN: (),
    Output.UNREACHABLE: (OutputEvent.SEND_FAILED,),
    Output.CLOSING: (OutputEvent.CLOSE,),
    Output.TRUNCATED: (OutputEvent.CLOSE, OutputEvent.NO_PROGRESS),
    Output.ABANDONED: (OutputEvent.SEND_FAILED, OutputEvent.CLOSE),
    Output.HALF_CLOSED: (OutputEvent.CLOSE, OutputEvent.HALF_CLOSE),
    Output.CLOSED: (OutputEvent.CLOSE, OutputEvent.SOCKET_CLOSED),
}


def sentence(state: Input | Output, event: InputEvent | OutputEvent, following: Input | Output) -> str:
    verb = "stays so" if state is following else f"becomes {following.name}"
    return f"{state.name} {verb} on {event.name}"


INPUT_STEPS = [
    pytest.param(state, event, following, id=sentence(state, event, following))
    for state, row in INPUT_LIFE.items()
    for event, name in zip(InputEvent, row.split(), strict=True)
    for following in [state if name == "-" else Input[name]]
]
OUTPUT_STEPS = [
    pytest.param(state, event, following, id=sentence(state, event, following))
    for state, row in OUTPUT_LIFE.items()
    for event, name in zip(OutputEvent, row.split(), strict=True)
    for following in [state if name == "-" else Output[name]]
]


@pytest.mark.parametrize(("state", "event", "following"), INPUT_STEPS)
def test_input(state: Input, event: InputEvent, following: Input) -> None:
    assert INPUT.get((state, event), state) is following


@pytest.mark.parametrize(("state", "event", "following"), OUTPUT_STEPS)
def test_output(state: Output, event: OutputEvent, following: Output) -> None:
    box = in_state(state)
    assert box.advance(event) is (state is not following)
    assert box.state is following
    assert box.takes is (following is Output.OPEN)
    assert box.closed is (following not in {Output.OPEN, Output.UNREACHABLE})


def test_the_tables_list_no_event_that_changes_nothing() -> None:
    steps = [*INPUT.items(), *OUTPUT.items()]
    assert all(state is not following for (state, _), following in steps)
    assert len(INPUT_STEPS) == len([*product(Input, InputEvent)])
    assert len(OUTPUT_STEPS) == len([*product(Output, OutputEvent)])


def in_state(state: Output) -> Outbox:
    box = Outbox(10_000, lambda: None)
    for event in HOW_TO_REACH[state]:
        box.advance(event)
    assert box.state is state
    return box


# What the output's states allow


@pytest.mark.parametrize("state", Output)
def test_only_an_open_output_takes_packets(state: Output) -> None:
    assert in_state(state).put(PONG) is (state is Output.OPEN)


@pytest.mark.parametrize("state", Output)
def test_only_an_output_that_was_not_closed_before_takes_a_last_packet(state: Output) -> None:
    box = in_state(state)
    box.close(LAST)
    assert box.take() == (LAST if state in {Output.OPEN, Output.UNREACHABLE} else b"")


@contextmanager
def connected(write_timeout: float = DEADLINE) -> Iterator[tuple[Connection, socket.socket]]:
    """A Connection and its client's socket. Its own is left to finish()."""
    here, there = socket.socketpair()
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    there.settimeout(DEADLINE)
    with there:
        yield Connection(plain_socket(here, here.detach()), Counters(), 1_000_000, write_timeout), there


def output(connection: Connection) -> Output:
    return connection.outbox.state


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


def test_a_closing_connection_sends_what_is_queued_then_the_error_then_the_end() -> None:
    with connected() as (connection, client):
        connection.outbox.put(PONG)
        connection.close(Reason.SERVER_SHUTTING_DOWN)
        connection.close(Reason.TOO_SLOW)
        finish = gevent.spawn(connection.finish, DEADLINE)
        assert read_all(client) == PONG + encode_error(Reason.SERVER_SHUTTING_DOWN)
        assert output(connection) is Output.HALF_CLOSED
        client.close()
        finish.get(timeout=DEADLINE)
    assert output(connection) is Output.CLOSED
    assert connection.input is Input.ENDED
    assert connection.outcome == Reason.SERVER_SHUTTING_DOWN


def test_a_client_that_takes_nothing_is_sent_the_rest_of_the_packet_in_flight_and_the_error_alone() -> None:
    with connected(write_timeout=0.1) as (connection, client):
        for _ in range(10_000):
            connection.outbox.put(PONG)
        gevent.sleep(0.05)
        sent = connection.outbox.size
        gevent.sleep(0.3)
        assert output(connection) is Output.TRUNCATED
        assert connection.outbox.size < sent
        finish = gevent.spawn(connection.finish, DEADLINE)
        data = read_all(client)
        client.close()
        finish.get(timeout=DEADLINE)
    assert data.endswith(LAST)
    assert len(data.removesuffix(LAST)) % len(PONG) == 0
    assert connection.undelivered > 0


def test_after_a_failed_send_the_input_is_still_read_and_nothing_is_put() -> None:
    with connected() as (connection, client):
        client.sendall(b"before")
        client.shutdown(socket.SHUT_RD)
        connection.outbox.put(PONG)
        gevent.sleep(0.05)
        assert output(connection) is Output.UNREACHABLE
        assert connection.outbox.put(PONG) is False
        assert connection.read() == b"before"
        connection.close(Reason.TOO_SLOW)
        assert output(connection) is Output.ABANDONED
        client.close()
        connection.finish(DEADLINE)
    assert output(connection) is Output.CLOSED
    assert connection.undelivered == len(PONG + LAST)


# What the input's states allow


def test_stopping_wakes_a_session_that_reads_and_one_that_pauses() -> None:
    with connected() as (connection, client):
        reads, pauses = gevent.spawn(connection.read), gevent.spawn(connection.pause, DEADLINE)
        gevent.sleep(0.01)
        connection.stop_reading()
        assert reads.get(timeout=1) == b""
        pauses.get(timeout=1)
        assert connection.input is Input.STOPPED
        connection.pause(DEADLINE)
        client.close()
        connection.finish(0)


@pytest.mark.parametrize("state", [Input.STOPPED, Input.UNREAD, Input.ENDED])
def test_input_that_is_not_open_is_not_read(state: Input) -> None:
    with connected() as (connection, client):
        client.sendall(b"unread")
        connection.input = state
        assert connection.read() == b""
        assert connection.is_handled is (state is not Input.STOPPED)
        client.close()
        connection.finish(0)


def test_unread_input_is_discarded_until_the_client_closes() -> None:
    with connected() as (connection, client):
        client.sendall(b"unread")
        connection.set_handled()
        assert not connection.is_finished
        finish = gevent.spawn(connection.finish, DEADLINE)
        client.sendall(b"more")
        assert read_all(client) == b""
        gevent.sleep(0.05)
        assert not finish.dead
        client.close()
        finish.get(timeout=1)
    assert connection.input is Input.ENDED


def test_stopping_ends_the_wait_for_a_client_that_does_not_close() -> None:
    with connected() as (connection, client):
        connection.set_handled()
        finish = gevent.spawn(connection.finish, DEADLINE)
        assert read_all(client) == b""
        connection.stop_reading()
        finish.get(timeout=1)
    assert connection.input is Input.UNREAD
    assert output(connection) is Output.CLOSED


def test_a_connection_whose_client_has_closed_is_finished_once_all_is_sent() -> None:
    with connected() as (connection, client):
        client.close()
        assert connection.read() == b""
        assert connection.input is Input.ENDED
        assert connection.is_finished
        connection.outbox.put(PONG)
        assert not connection.is_finished
        connection.finish(0)
