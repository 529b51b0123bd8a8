"""The measures: each takes a running server and returns figures by name."""

import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.dialects import DEADLINE, BenchmarkClient, WrongAnswer
from benchmarks.report import GROUP, PARTY
from benchmarks.servers import GROUPS, PEERS, RELAYS, VARIANTS, Running, Server
from benchmarks.traffic import Load, flows, open_arrival, ping_pong, pipelined
from loadtest.core.histogram import Histogram

MICRO = 1e6
KIB = 1024
RATE = 2000.0  # messages a second, where latency is measured
RATE_PAIRS = 10
LOGINS = 400  # users, one after the other
FIRST_CLIENTS = 20  # not measured: they also cost what all clients share


@dataclass(frozen=True)
class Measure:
    """`run` takes a server and a duration in seconds; report.UNITS has the units of the figures it returns."""

    name: str
    clients: int  # at once
    run: Callable[[Running, float], dict[str, float]]
    without: Sequence[Server] = (*VARIANTS, *GROUPS)  # servers that are left out


Pairs = list[tuple[BenchmarkClient, BenchmarkClient]]


def _pairs(server: Running, count: int, first: int = 0) -> Pairs:
    """Pairs of logged-in clients, numbered from `first`, each knowing where to write to the other."""
    numbers = range(first, first + count)
    pairs = [(server.log_in(f"s{number:04}"), server.log_in(f"r{number:04}")) for number in numbers]
    for sender, receiver in pairs:
        server.server.dialect.pair(sender, receiver)
        server.server.dialect.pair(receiver, sender)
    return pairs


def pipelined_cpu(server: Running, seconds: float, pairs: int, text_bytes: int) -> dict[str, float]:
    """CPU per message with many messages in flight."""
    streams = flows(server.server.dialect, _pairs(server, pairs), text_bytes)
    return _cpu(server, lambda: pipelined(streams, seconds))


def ping_pong_cpu(server: Running, seconds: float, pairs: int, text_bytes: int) -> dict[str, float]:
    """CPU per message with one message of each pair in flight."""
    couples = _pairs(server, pairs)
    return _cpu(server, lambda: _ping_pong(server, couples, seconds, text_bytes))


def _ping_pong(server: Running, pairs: Pairs, seconds: float, text_bytes: int) -> Load:
    dialect = server.server.dialect
    there = flows(dialect, pairs, text_bytes, cycle=8)
    back = flows(dialect, [(receiver, sender) for sender, receiver in pairs], text_bytes, cycle=8)
    return ping_pong(there, back, seconds)


def _cpu(server: Running, run: Callable[[], Load]) -> dict[str, float]:
    with _scraped(server):
        before = server.cpu_seconds()
        load = run()
        used = _used(server, before, "CPU per message", load.messages)
    return used | {"messages a second": load.messages / load.seconds, "generator": load.generator_share}


def _used(server: Running, before: dict[str, float], name: str, count: int) -> dict[str, float]:
    """CPU since `before`, divided by `count`, and each party's share of it if there are several."""
    used = {party: (seconds - before[party]) / count * MICRO for party, seconds in sorted(server.cpu_seconds().items())}
    shares = {PARTY + party: share for party, share in used.items()} if len(used) > 1 else {}
    return {name: sum(used.values())} | shares


@contextmanager
def _scraped(server: Running) -> Iterator[None]:
    """Request /metrics at once and then each second, if the server serves it. Raises WrongAnswer if a request fails."""
    if not server.metrics_port:
        yield
        return
    done, errors = threading.Event(), []

    def ask() -> None:
        try:
            while True:
                urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=DEADLINE).read()
                if done.wait(1.0):
                    return
        except OSError as error:
            errors.append(error)

    asks = threading.Thread(target=ask)
    asks.start()
    try:
        yield
    finally:
        done.set()
        asks.join()
    if errors:
        raise WrongAnswer(f"/metrics: {errors[0]}")


def latency(server: Running, seconds: float) -> dict[str, float]:
    """The time from when a message was due until it arrived."""
    streams = flows(server.server.dialect, _pairs(server, RATE_PAIRS), text_bytes=16, cycle=64)
    load, times = open_arrival(streams, RATE, seconds)
    histogram = Histogram()
    for one in times:
        histogram.record(one)
    found = {f"p{percent:g}": histogram.percentile(percent) * MICRO for percent in (50, 99, 99.9)}
    return found | {"generator": load.generator_share}


def idle_memory(server: Running, _seconds: float, clients: int) -> dict[str, float]:
    """Resident memory per client that is logged in and does nothing."""
    for number in range(FIRST_CLIENTS):
        server.log_in(f"f{number:04}")
    before = server.resident_bytes()
    for number in range(clients):
        server.log_in(f"u{number:04}")
    found = {"memory per client": (server.resident_bytes() - before) / clients / KIB}
    for client in server.clients:
        _expect_connected(client)
    return found


def chatting_memory(server: Running, seconds: float, pairs: int) -> dict[str, float]:
    """Resident memory per client that is logged in and chats with another one, one message at a time."""
    _ping_pong(server, _pairs(server, FIRST_CLIENTS // 2), seconds, text_bytes=16)
    before = server.resident_bytes()
    _ping_pong(server, _pairs(server, pairs, FIRST_CLIENTS), seconds, text_bytes=16)
    return {"memory per client": (server.resident_bytes() - before) / (2 * pairs) / KIB}


def _expect_connected(client: BenchmarkClient) -> None:
    """Raises WrongAnswer if the server has disconnected this client."""
    client.sock.setblocking(False)
    try:
        if not client.sock.recv(1, socket.MSG_PEEK):
            raise WrongAnswer(f"{client.name} was disconnected")
    except BlockingIOError:
        return


def login_cpu(server: Running, _seconds: float) -> dict[str, float]:
    """CPU per login without a password: connecting, logging in and leaving. All users have signed up before."""
    _visit(server, LOGINS)
    before = server.cpu_seconds()
    for _ in range(4):
        _visit(server, LOGINS)
    return _used(server, before, "CPU per login", 4 * LOGINS)


def _visit(server: Running, count: int) -> None:
    for number in range(count):
        server.log_in(f"u{number:04}")
        server.clients.pop().sock.close()


def _traffic() -> Iterator[Measure]:
    for kind, run in (("pipelined", pipelined_cpu), ("ping-pong", ping_pong_cpu)):
        for text_bytes in (16, 100):
            for pairs in (10, 100, 1000):
                yield Measure(
                    f"{kind}, {pairs} pairs, {text_bytes} bytes",
                    2 * pairs,
                    partial(run, pairs=pairs, text_bytes=text_bytes),
                    without=GROUPS if (pairs, text_bytes) == (10, 16) else (*VARIANTS, *GROUPS),
                )


MEASURES = {
    measure.name: measure
    for measure in [
        *_traffic(),
        Measure(f"latency at {RATE:.0f} messages a second", 2 * RATE_PAIRS, latency),
        *(
            Measure(f"memory, {count} idle clients", count + FIRST_CLIENTS, partial(idle_memory, clients=count))
            for count in (1000, 5000)
        ),
        Measure("memory, 1000 chatting clients", 1000 + FIRST_CLIENTS, partial(chatting_memory, pairs=500)),
        Measure("login", 10, login_cpu),
    ]
}
MEASURES |= {
    GROUP + name: replace(MEASURES[name], name=GROUP + name, without=(*PEERS, *RELAYS, *VARIANTS))
    for name in (
        *(f"{kind}, {pairs} pairs, 16 bytes" for kind in ("pipelined", "ping-pong") for pairs in (10, 100)),
        "login",
    )
}
QUICK = ["pipelined, 10 pairs, 16 bytes", "ping-pong, 10 pairs, 16 bytes"]
