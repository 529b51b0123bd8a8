"""The servers that are compared: how each is started, with fair settings, and how its cost is read."""

import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from textwrap import dedent

import psutil
import trustme

from benchmarks.dialects import DEADLINE, BenchmarkClient, ChatDialect, Dialect, Irc, Mqtt, Nats, Redis, WrongAnswer
from testkit import HarnessError
from testkit.ports import answers, free_ports
from testkit.processes import ROOT, find_program, wait_for
from testkit.redis_server import RedisServer, find_redis
from testkit.server import launch_server

RELAY_SOURCES = Path(__file__).parent / "relays"
START_SECONDS = 30.0
MAX_USERS = 20000


@dataclass(frozen=True)
class StartOptions:
    """What starting a server takes."""

    folder: Path  # of this run alone; logs in it are named *.log
    port: int
    metrics_port: int
    clients: int  # the most at once
    redis_port: int = 0  # of the Redis that nodes share


@dataclass(frozen=True)
class Server:
    """One kind of server. `settings` says what differs from its defaults, `hint` how to get it.

    With a `redis` it is a group of `nodes`, and clients log in at the nodes of `seats` in turn.
    """

    name: str
    dialect: Dialect
    launch: "Launch"
    settings: str
    program: str = sys.executable  # has to be installed
    hint: str = ""
    version: tuple[str, ...] = ()  # the options that print it
    options: tuple[str, ...] = ()  # of our server; {names} are those of StartOptions
    secure: bool = False  # speaks TLS
    scraped: bool = False  # /metrics is requested during measures
    folder: Path = ROOT  # the working copy of our server
    redis: "Server | None" = None  # shared by the nodes
    nodes: int = 1
    seats: tuple[int, ...] = (1,)  # numbers of nodes

    @property
    def missing(self) -> str:
        """How to get it; "" if it is installed."""
        return "" if find(self.program) else f"{self.name} is left out: {self.hint}"


Launch = Callable[[Server, StartOptions], "subprocess.Popen[bytes]"]  # starts one process, which may not listen yet


def find(program: str) -> str | None:
    """The path of an installed program, None if there is none."""
    if program == "redis-server":
        return str(path) if (path := find_redis()) else None
    return find_program(program)


@dataclass
class Running:
    """A server that accepts clients."""

    server: Server
    ports: Iterator[int]  # for one client after the other
    metrics_port: int  # 0: nobody requests metrics
    trust: ssl.SSLContext | None = None
    parties: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)  # its processes, by role
    clients: list[BenchmarkClient] = field(default_factory=list)

    def connect(self) -> socket.socket:
        """A connection whose socket blocks. Raises OSError."""
        sock = socket.create_connection(("127.0.0.1", next(self.ports)), timeout=DEADLINE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.trust.wrap_socket(sock, server_hostname="127.0.0.1") if self.trust else sock

    def log_in(self, name: str) -> BenchmarkClient:
        """One more client, closed at the end of the run. Raises WrongAnswer, OSError."""
        client = BenchmarkClient(name, self.connect())
        self.clients.append(client)
        self.server.dialect.log_in(client)
        return client

    def cpu_seconds(self) -> dict[str, float]:
        """The CPU time of all threads of each party, in steps of 10 ms, as the kernel counts it."""
        times = {party: psutil.Process(process.pid).cpu_times() for party, process in self.parties.items()}
        return {party: float(used.user + used.system) for party, used in times.items()}

    def resident_bytes(self) -> int:
        return sum(int(psutil.Process(process.pid).memory_info().rss) for process in self.parties.values())


@contextmanager
def running(server: Server, clients: int) -> Iterator[Running]:
    """Start a server in a folder of its own, and end it. Raises WrongAnswer, with the end of its log, if it fails."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        metrics_port, redis_port, *ports = free_ports(2 + server.nodes)
        start = StartOptions(folder, ports[0], metrics_port, clients, redis_port)
        trust = _certify(folder) if server.secure else None
        scraped_port = metrics_port if server.scraped else 0
        run = Running(server, cycle(ports[seat - 1] for seat in server.seats), scraped_port, trust)
        try:
            if server.redis:
                _launch(run, "redis", server.redis, replace(start, port=redis_port))
            for number, port in enumerate(ports, 1):
                _launch(run, f"node {number}", server, replace(start, port=port))
                if server.redis:
                    _visit(server, number, port)
            yield run
        except (WrongAnswer, HarnessError, OSError) as error:
            log = "".join(file.read_text(errors="replace") for file in sorted(folder.glob("*.log")))[-1000:].strip()
            raise WrongAnswer(f"{server.name}: {error}\n{log}".strip()) from error
        finally:
            for client in run.clients:
                client.sock.close()
            for process in reversed(run.parties.values()):  # nodes first: they sign off at their Redis
                _end(process)


def _launch(run: Running, party: str, server: Server, start: StartOptions) -> None:
    """Start one process, and wait until it listens."""
    process = server.launch(server, start)
    run.parties[party] = process
    wait_for("it listens", lambda: process.poll() is not None or answers(start.port), START_SECONDS)
    if process.poll() is not None:
        raise WrongAnswer("it did not start")


def _visit(server: Server, number: int, port: int) -> None:
    """Log in at a node and leave, so that no node is still joining its group when a measure begins."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as sock:
        server.dialect.log_in(BenchmarkClient(f"n{number:04}", sock))


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(START_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _certify(folder: Path) -> ssl.SSLContext:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return trust


def launching(command: Callable[[StartOptions], list[str | Path]]) -> Launch:
    """Launches the program of this command, which need not be on PATH if it is in a system folder."""

    def launch(_: Server, start: StartOptions) -> "subprocess.Popen[bytes]":
        program, *arguments = map(str, command(start))
        with (start.folder / "server.log").open("ab") as log:
            return subprocess.Popen(
                [find(program) or program, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    return launch


# Ours, and relays of the same protocol


def _ours(server: Server, start: StartOptions) -> "subprocess.Popen[bytes]":
    sizes = ["--pool-size", start.clients + 10, "--max-users", MAX_USERS, "--backlog", 1024]
    basics = ["--port", start.port, "--id-width", 2, "--log-level", "warning"]
    options = [option.format_map(vars(start)) for option in server.options]
    return launch_server(start.folder / "data", *basics, *sizes, *options, folder=server.folder).process


def _our(name: str, settings: str, *options: str) -> Server:
    return Server(name, ChatDialect(), _ours, settings, options=options)


def before(folder: Path) -> Server:
    """Another working copy of this project, to compare a change with."""
    return replace(OURS, name="before", settings="as ours", folder=folder)


def _group(nodes: int, seats: tuple[int, ...], server: Server) -> Server:
    shared = ("--redis", "redis://127.0.0.1:{redis_port}/0", "--redis-prefix", "bench")
    return replace(
        server,
        settings=f"{server.settings}; nothing saved by Redis",
        options=(*server.options, *shared),
        program=REDIS.program,
        hint=REDIS.hint,
        redis=REDIS,
        nodes=nodes,
        seats=seats,
    )


def _relay(module: str) -> Launch:
    return launching(lambda start: [sys.executable, "-m", f"benchmarks.relays.{module}", str(start.port)])


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


def _redis(_: Server, start: StartOptions) -> "subprocess.Popen[bytes]":
    saving = ("--appendonly", "no", "--logfile", "/dev/null")
    limits = ("--tcp-keepalive", "0", "--maxclients", str(start.clients + 100))
    unbounded = ("--client-output-buffer-limit", "pubsub", "0", "0", "0")
    redis = RedisServer(
        Path(find("redis-server") or "redis-server"), start.folder, *saving, *limits, *unbounded, port=start.port
    )
    return redis.start()


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

HISTORY_OFF = ("--history", "off")
OURS = _our("ours", "--history off --log-level warning", *HISTORY_OFF)
VARIANTS = [
    replace(
        _our("ours, TLS", "as ours, TLS 1.3", *HISTORY_OFF, "--tls-cert", "{folder}/server.pem"),
        secure=True,
    ),
    _our("ours, history", "--history on", "--history", "on"),
    replace(
        _our("ours, scraped", "/metrics requested each second", *HISTORY_OFF, "--metrics-port", "{metrics_port}"),
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
        launching(_mosquitto),
        "QoS 0, no persistence, no log, queues unbounded, TCP_NODELAY",
        "mosquitto",
        APT.format("mosquitto"),
        ("-h",),
    ),
    Server("nats-server", Nats(), launching(_nats), "no log", "nats-server", APT.format("nats-server"), ("--version",)),
    REDIS,
    Server(
        "ngircd",
        Irc(),
        launching(_ngircd),
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
        "C epoll",
        ChatDialect(),
        launching(_epoll),
        "one thread, the same protocol, no checks: the floor",
        "cc",
        APT.format("gcc"),
    ),
]
GROUPS = [
    _group(2, (1,), _our("ours, within a node", "a group of 2 nodes, all clients at one", *HISTORY_OFF)),
    _group(
        2,
        (1, 2),
        _our("ours, across 2 nodes", "a group of 2 nodes, senders at one, receivers at the other", *HISTORY_OFF),
    ),
    _group(
        3,
        (1, 2, 2, 3, 3, 1),
        _our("ours, across 3 nodes", "a group of 3 nodes, a third of the pairs from each to the next", *HISTORY_OFF),
    ),
]
ALL = [OURS, *GROUPS, *PEERS, *RELAYS, *VARIANTS]
