"""A group of servers that a test uses like one: nodes over one Redis, with or without HAProxy in front."""

import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle, pairwise
from pathlib import Path

from testkit import HarnessError, Missing
from testkit.processes import DEADLINE, ROOT, find_program
from testkit.server import SERVER, ServerProcess, expecting_clean_end, launch_server
from testkit.wire import Wire

HAPROXY_CONFIG = ROOT / "deploy" / "haproxy.cfg"
NO_HAPROXY = "no haproxy: on Debian and Ubuntu: sudo apt install haproxy"
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
ENDED_BY_A_TEST = {0, *(-signum for signum in SIGNALS), *(128 + signum for signum in SIGNALS)}  # exit statuses


class ServerGroup(ServerProcess):
    """The nodes as one server; `process`, `data_dir` and `metrics_url` are the first node's."""

    def __init__(self, nodes: Sequence[ServerProcess], haproxy: "HaProxy | None" = None) -> None:
        """Clients connect to the `haproxy` if there is one, else to the nodes in turn."""
        super().__init__(nodes[0].process, nodes[0].log_file, nodes[0].data_dir)
        self.nodes = list(nodes)
        self.haproxy = haproxy
        self.port = haproxy.port if haproxy else nodes[0].port
        self._turns = cycle(self.nodes)

    @property
    def running(self) -> list[ServerProcess]:
        """The nodes that have not ended."""
        return [node for node in self.nodes if node.process.poll() is None]

    @property
    def log(self) -> str:
        return "".join(node.log for node in self.nodes)

    def wait_until_ready(self) -> None:
        for node in self.nodes:
            node.wait_until_ready()

    @property
    def stalls(self) -> list[str]:
        return [found for node in self.nodes for found in node.stalls]

    def metrics(self) -> dict[str, float]:
        """Each figure summed over the running nodes, also where a sum makes no sense."""
        figures: dict[str, float] = {}
        for node in self.running or self.nodes:
            for name, value in node.metrics().items():
                figures[name] = figures.get(name, 0.0) + value
        return figures

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal to all at once; returns the first exit status other than 0, else 0."""
        for node in self.nodes:
            node.process.send_signal(signum)
        return next(filter(None, [node.process.wait(DEADLINE) for node in self.nodes]), 0)

    def connect(self, source: str = "") -> Wire:
        if self.haproxy:
            return super().connect(source)
        node = next(node for node in self._turns if node.process.poll() is None)
        node.wire = self.wire
        return node.connect(source)


@contextmanager
def run_group(
    folder: Path,
    redis_url: str,
    *options: object,
    nodes: int = 2,
    behind_haproxy: bool = False,
    prefix: str = "chat",
    program: Sequence[str] = SERVER,
) -> Iterator[ServerGroup]:
    """Start nodes that form one group over this Redis. Each must end as run_server demands, unless the test ends it."""
    redis = ("--redis", redis_url, "--redis-prefix", prefix)
    with run_nodes(folder, *redis, *options, nodes=nodes, behind_haproxy=behind_haproxy, program=program) as group:
        yield group


@contextmanager
def run_nodes(
    folder: Path, *options: object, nodes: int = 2, behind_haproxy: bool = False, program: Sequence[str] = SERVER
) -> Iterator[ServerGroup]:
    """The same with any options: without --redis the nodes know nothing of each other.

    A --port goes to HAProxy if there is one, else to the first node. Raises Missing where HAProxy is not installed.
    """
    if behind_haproxy and not find_haproxy():
        raise Missing(NO_HAPROXY)
    checked = ("--metrics-port", 0) if behind_haproxy else ()
    with ExitStack() as stack:
        launched = []
        for number in range(1, nodes + 1):
            port = ("--port", 0) if behind_haproxy or number > 1 else ()
            node = launch_server(folder / f"node-{number}", *checked, *options, *port, program=program)
            stack.callback(node.process.kill)
            launched.append(node)
        for node in launched:
            stack.enter_context(expecting_clean_end(node))
        haproxy = None
        if behind_haproxy:
            port_option, places = _value(options, "--port", 0), _value(options, "--pool-size", 20)
            haproxy = stack.enter_context(run_haproxy(folder, launched, port_option, places))
        group = ServerGroup(launched, haproxy)
        yield group
        for node in launched:
            if node.process.poll() not in {None, *ENDED_BY_A_TEST}:
                raise HarnessError(node.log)


def _value(options: Sequence[object], name: str, default: int) -> int:
    """The value of this option; the last one counts if it is given more than once."""
    given = [value for option, value in pairwise(options) if option == name]
    return int(str(given[-1])) if given else default


# HAProxy


def find_haproxy() -> str | None:
    return find_program("haproxy")


class HaProxy:
    """A running HAProxy, configured by deploy/haproxy.cfg with other ports."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log_file: Path) -> None:
        self.process = process
        self.port = port
        self._log_file = log_file

    @property
    def log(self) -> str:
        return self._log_file.read_text()


@contextmanager
def run_haproxy(folder: Path, nodes: Sequence[ServerProcess], port: int = 0, places: int = 20) -> Iterator[HaProxy]:
    """Start it in front of these nodes, which need --metrics-port. It must run to the end, unless the test ends it."""
    config, log_file = folder / "haproxy.cfg", folder / "haproxy.log"
    with socket.create_server(("127.0.0.1", port)) as listener, log_file.open("wb") as log:
        config.write_text(haproxy_config(f"fd@{listener.fileno()}", nodes, places))
        command = [find_haproxy() or "haproxy", "-db", "-f", str(config)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[listener.fileno()]
        )
        haproxy = HaProxy(process, listener.getsockname()[1], log_file)
    try:
        yield haproxy
        if process.poll() not in {None, *ENDED_BY_A_TEST}:
            raise HarnessError(haproxy.log)
    finally:
        process.kill()
        process.wait()


def haproxy_config(address: str, nodes: Sequence[ServerProcess], places: int) -> str:
    """deploy/haproxy.cfg for another address and for these nodes, each with this many places."""
    text = HAPROXY_CONFIG.read_text()
    servers = re.findall(r"^ +server .*\n", text, re.MULTILINE)
    own = [
        _replace(
            servers[0],
            {
                "node-1": f"node-{number}",
                ":9041": f":{node.port}",
                " 9141": f" {node.metrics_url.rpartition(':')[2]}",
            },
        )
        for number, node in enumerate(nodes, 1)
    ]
    changes = {
        "bind 127.0.0.1:9034": f"bind {address}",
        " maxconn 20 ": f" maxconn {places} ",
        "".join(servers): "".join(own),
    }
    return _replace(text, changes)


def _replace(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        if text.count(old) != 1:
            raise HarnessError(f"{old!r} is in the text {text.count(old)} times, not once:\n{text}")
        text = text.replace(old, new)
    return text
