"""The servers that are compared: how each is started, fairly, and how it is watched."""

import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from textwrap import dedent
from typing import IO

import psutil
import trustme

from benchmarks.dialects import DEADLINE, BenchmarkClient, ChatDialect, Dialect, Irc, Mqtt, Nats, Redis, WrongAnswer
from testkit.ports import free_ports

ROOT = Path(__file__).parent.parent
RELAY_SOURCES = Path(__file__).parent / "relays"
START_SECONDS = 30.0
MAX_USERS = 20000
SYSTEM_FOLDERS = ":/usr/sbin:/usr/local/sbin"  # where servers are, but not on everybody's PATH


@dataclass(frozen=True)
class StartOptions:
    """What a command needs to know."""

    folder: Path  # of this run alone
    port: int
    metrics_port: int
    clients: int  # at once, at most
    engine_port: int = 0  # of the Redis that nodes share


@dataclass(frozen=True)
class Server:
    """One kind of server. `settings` says what differs from its defaults, `hint` how to get it.

    With an `engine` it is a group of `nodes`, and clients log in at these `seats` in turn.
    """

    name: str
    dialect: Dialect
    command: Callable[[StartOptions], list[str | Path]]
    settings: str
    program: str = sys.executable  # what has to be there
    hint: str = ""
    version: tuple[str, ...] = ()  # the options that ask for it
    secure: bool = False  # speaks TLS
    scraped: bool = False  # is asked for metrics all the while
    folder: Path = ROOT  # where it runs
    engine: "Server | None" = None  # what the nodes share
    nodes: int = 1
    seats: tuple[int, ...] = (1,)  # numbers of nodes

    @property
    def missing(self) -> str:
        """How to get it, where it is not there."""
        return "" if find(self.program) else f"{self.name} is left out: {self.hint}"


def find(program: str) -> str | None:
    """The path of a program that is installed."""
    return shutil.which(program, path=os.environ.get("PATH", "") + SYSTEM_FOLDERS)


@dataclass
class Running:
    """A server that answers."""

    server: Server
    ports: Iterator[int]  # for one client after the other
    metrics_port: int  # 0: nobody asks for metrics
    trust: ssl.SSLContext | None = None
    parties: dict[str, psutil.Popen] = field(default_factory=dict)  # its processes, by what each is
    clients: list[BenchmarkClient] = field(default_factory=list)

    def connect(self) -> socket.socket:
        """A connection whose socket blocks. Raises OSError."""
        sock = socket.create_connection(("127.0.0.1", next(self.ports)), timeout=DEADLINE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.trust.wrap_socket(sock, server_hostname="127.0.0.1") if self.trust else sock

    def log_in(self, name: str) -> BenchmarkClient:
        """One more client, which is closed at the end. Raises WrongAnswer, OSError."""
        client = BenchmarkClient(name, self.connect())
        self.clients.append(client)
        self.server.dialect.log_in(client)
        return client

    def cpu_seconds(self) -> dict[str, float]:
        """What the kernel has charged to all threads of each party, to a hundredth of a second."""
        times = {party: process.cpu_times() for party, process in self.parties.items()}
        return {party: float(used.user + used.system) for party, used in times.items()}

    def resident_bytes(self) -> int:
        return sum(int(process.memory_info().rss) for process in self.parties.values())


@contextmanager
def running(server: Server, clients: int) -> Iterator[Running]:
    """Start it in a folder of its own, and end it. Raises WrongAnswer where it does not start."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, (Path(folder) / "log").open("w+b") as log:
        metrics_port, engine_port, *ports = free_ports(2 + server.nodes)
        start = StartOptions(Path(folder), ports[0], metrics_port, clients, engine_port)
        trust = _certify(start.folder) if server.secure else None
        scraped_port = metrics_port if server.scraped else 0
        run = Running(server, cycle(ports[seat - 1] for seat in server.seats), scraped_port, trust)
        try:
            if server.engine:
                _launch(run, "redis", server.engine, replace(start, port=start.engine_port), log)
            for number, port in enumerate(ports, 1):
                _launch(run, f"node {number}", server, replace(start, port=port), log)
                if server.engine:
                    _enter(server, number, port)
            yield run
        except (WrongAnswer, OSError) as error:
            log.seek(0)
            said = log.read().decode(errors="replace")[-1000:].strip()
            raise WrongAnswer(f"{server.name}: {error}\n{said}".strip()) from error
        finally:
            for client in run.clients:
                client.sock.close()
            for process in reversed(run.parties.values()):  # nodes say goodbye to what they share
                _end(process)


def _launch(run: Running, party: str, server: Server, start: StartOptions, log: IO[bytes]) -> None:
    """Start one process, and wait until it listens."""
    program, *arguments = map(str, server.command(start))
    command = [find(program) or program, *arguments]
    process = psutil.Popen(command, cwd=server.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    run.parties[party] = process
    _wait_until_it_listens(process, start.port)


def _enter(server: Server, number: int, port: int) -> None:
    """Log in at a node and leave, so that none is still joining its group when a measure begins."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as sock:
        server.dialect.log_in(BenchmarkClient(f"n{number:04}", sock))


def _end(process: psutil.Popen) -> None:
    with suppress(psutil.NoSuchProcess):
        process.terminate()
    try:
        process.wait(START_SECONDS)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_it_listens(process: psutil.Popen, port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=DEADLINE).close()
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > end:
                raise WrongAnswer("it did not start") from None
            time.sleep(0.02)
        else:
            return


def _certify(folder: Path) -> ssl.SSLContext:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return trust


# Ours, and other relays of the same protocol


def _ours(*options: str) -> Callable[[StartOptions], list[str | Path]]:
    def command(start: StartOptions) -> list[str | Path]:
        sizes = ["--pool-size", str(start.clients + 10), "--max-users", str(MAX_USERS), "--backlog", "1024"]
        files = ["--data-dir", str(start.folder / "data")]
        filled = [option.format_map(vars(start)) for option in options]
        basics = ["--port", str(start.port), "--id-width", "2", "--log-level", "warning"]
        return [sys.executable, "server.py", *basics, *sizes, *files, *filled]

    return command


def before(folder: Path) -> Server:
    """Another working copy of this project, to compare a change with."""
    return Server("before", ChatDialect(), _ours("--history", "off"), "as ours", folder=folder)


def _group(name: str, nodes: int, seats: tuple[int, ...], settings: str) -> Server:
    shared = ("--redis", "redis://127.0.0.1:{engine_port}/0", "--redis-prefix", "bench")
    return Server(
        name,
        ChatDialect(),
        _ours("--history", "off", *shared),
        f"{settings}; nothing saved by Redis",
        REDIS.program,
        REDIS.hint,
        engine=REDIS,
        nodes=nodes,
        seats=seats,
    )


def _relay(module: str) -> Callable[[StartOptions], list[str | Path]]:
    return lambda start: [sys.executable, "-m", f"benchmarks.relays.{module}", str(start.port)]


def _epoll(start: StartOptions) -> list[str | Path]:
    program = start.folder / "epoll"
    subprocess.run([find("cc") or "cc", "-O2", "-o", program, RELAY_SOURCES / "epoll.c"], check=True)
    return [program, str(start.port)]


# The peers


def _mosquitto(start: StartOptions) -> list[str | Path]:
    return _configured(
        start,
        ["mosquitto", "-c"],
        f"""\
        listener {start.port} 127.0.0.1
        allow_anonymous true
        persistence false
        log_dest none
        max_queued_messages 0
        max_inflight_messages 0
        set_tcp_nodelay true
        """,
    )


def _nats(start: StartOptions) -> list[str | Path]:
    return _configured(
        start,
        ["nats-server", "-c"],
        f"""\
        listen: "127.0.0.1:{start.port}"
        logfile: "/dev/null"
        ping_interval: "1h"
        """,
    )


def _redis(start: StartOptions) -> list[str | Path]:
    return _configured(
        start,
        ["redis-server"],
        f"""\
        bind 127.0.0.1
        port {start.port}
        save ""
        appendonly no
        dir {start.folder}
        logfile /dev/null
        tcp-keepalive 0
        maxclients {start.clients + 100}
        client-output-buffer-limit pubsub 0 0 0
        """,
    )


def _ngircd(start: StartOptions) -> list[str | Path]:
    return _configured(
        start,
        ["ngircd", "--nodaemon", "--config"],
        f"""\
        [Global]
        Name = bench.example
        Listen = 127.0.0.1
        Ports = {start.port}
        MotdPhrase = bench
        [Limits]
        MaxConnections = 0
        MaxConnectionsIP = 0
        MaxPenaltyTime = 0
        PingTimeout = 3600
        [Options]
        DNS = no
        Ident = no
        PAM = no
        SyslogFacility = local0
        """,
    )


def _configured(start: StartOptions, command: list[str | Path], text: str) -> list[str | Path]:
    file = start.folder / "config"
    file.write_text(dedent(text))
    return [*command, file]


APT = "apt install {}"

OURS = Server("ours", ChatDialect(), _ours("--history", "off"), "--history off --log-level warning")
VARIANTS = [
    Server(
        "ours, TLS",
        ChatDialect(),
        _ours("--history", "off", "--tls-cert", "{folder}/server.pem"),
        "as ours, TLS 1.3",
        secure=True,
    ),
    Server("ours, history", ChatDialect(), _ours("--history", "on"), "--history on"),
    Server(
        "ours, scraped",
        ChatDialect(),
        _ours("--history", "off", "--metrics-port", "{metrics_port}"),
        "/metrics asked for each second",
        scraped=True,
    ),
]
REDIS = Server(
    "redis",
    Redis(),
    _redis,
    "pub/sub over RESP3, CLIENT REPLY OFF, nothing saved, no log, output buffers unbounded",
    "redis-server",
    APT.format("redis-server"),
    ("--version",),
)
PEERS = [
    Server(
        "mosquitto",
        Mqtt(),
        _mosquitto,
        "QoS 0, no persistence, no log, queues unbounded, TCP_NODELAY",
        "mosquitto",
        APT.format("mosquitto"),
        ("-h",),
    ),
    Server("nats-server", Nats(), _nats, "no log", "nats-server", APT.format("nats-server"), ("--version",)),
    REDIS,
    Server(
        "ngircd",
        Irc(),
        _ngircd,
        "private messages; no flood control, no DNS, ident or PAM",
        "ngircd",
        APT.format("ngircd"),
        ("--version",),
    ),
]
RELAYS = [
    Server("uvloop", ChatDialect(), _relay("uvloop_asyncio"), "asyncio on uvloop, the same protocol, no checks"),
    Server(
        "naive gevent", ChatDialect(), _relay("naive_gevent"), "two recv and one sendall for each packet, no checks"
    ),
    Server(
        "C epoll", ChatDialect(), _epoll, "one thread, the same protocol, no checks: the floor", "cc", APT.format("gcc")
    ),
]
GROUPS = [
    _group("ours, within a node", 2, (1,), "a group of 2 nodes, all clients at one"),
    _group("ours, across 2 nodes", 2, (1, 2), "a group of 2 nodes, senders at one, receivers at the other"),
    _group(
        "ours, across 3 nodes", 3, (1, 2, 2, 3, 3, 1), "a group of 3 nodes, a third of the pairs from each to the next"
    ),
]
ALL = [OURS, *GROUPS, *PEERS, *RELAYS, *VARIANTS]
