"""The real server as a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from protocol import NO_FEATURES, Feature, encode_login
from testkit import HarnessError
from testkit.processes import DEADLINE, ROOT, wait_for
from testkit.wire import Wire

SERVER = ("server.py",)  # what Python runs
LATE = re.compile(r"^.* the loop was blocked for .*\n(?:  .*\n|\(no stack\)\n)*\n?", re.MULTILINE)
STALL_SECONDS = 1.0  # nothing may block the loop for this long: work that takes long runs in threads


def altered(constant: str, value: float) -> Sequence[str]:
    """A `program` for run_server: the server with another value for this constant, given by its full name."""
    return "-m", "testkit.altered_server", f"{constant}={value}"


PATIENT = altered(
    "chatserver.transport.connection.LINGER_SECONDS", DEADLINE
)  # waits long for a client to read its Error
UNWATCHED = altered("chatserver.operations.lag.BEAT_SECONDS", 3600)  # never logs that its loop was late


def without_lateness(log: str) -> str:
    """This log without its reports of a late loop, which any server may write on a busy machine."""
    return LATE.sub("", log)


class ServerProcess:
    """A running `python server.py`."""

    def __init__(self, process: subprocess.Popen[bytes], log_file: Path, data_dir: Path) -> None:
        self.process = process
        self.data_dir = data_dir
        self.host = "127.0.0.1"
        self.port = 0
        self.may_stall = False  # set by a test that gives the loop too much to do in one turn
        self.wire: Callable[[str, int], Wire] = Wire  # how its clients connect
        self.log_file = log_file

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def wait_until_ready(self) -> None:
        """Wait until it listens. Raises HarnessError, with the log, if it ends or takes too long."""
        wait_for("listening on", lambda: "listening on" in self.log or self.process.poll() is not None)
        ready = re.search(r"listening on (\S+):(\d+)$", self.log, re.MULTILINE)
        if not ready:
            raise HarnessError(self.log)
        self.port = int(ready[2])

    def wait_for_log(self, text: str, times: int = 1) -> None:
        wait_for(f"{text!r} in the log", lambda: self.log.count(text) >= times)

    @property
    def warnings(self) -> list[str]:
        """The lines of the log that an operator should look at; reports of a late loop are in `stalls` instead."""
        return [line for line in without_lateness(self.log).splitlines() if " INFO " not in line]

    @property
    def stalls(self) -> list[str]:
        """The log's reports of a loop blocked for STALL_SECONDS or more, each beginning with the seconds."""
        blocked = re.findall(r"the loop was blocked for ([\d.]+ s\n(?:  .*\n)*)", self.log)
        return [report for report in blocked if float(report.split()[0]) >= STALL_SECONDS]

    @property
    def metrics_url(self) -> str:
        """Where --metrics-port serves, without the path."""
        found = re.search(r"metrics on (\S+)/metrics$", self.log, re.MULTILINE)
        if not found:
            raise HarnessError(self.log)
        return found[1]

    def metrics(self) -> dict[str, float]:
        """The figures of /metrics, by name and label: "chat_messages_refused_total{No Chat Started}"."""
        with urllib.request.urlopen(f"{self.metrics_url}/metrics", timeout=DEADLINE) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return {
            sample.name + "".join(f"{{{label}}}" for label in sample.labels.values()): sample.value
            for family in families
            for sample in family.samples
        }

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(signum)
        return self.process.wait(DEADLINE)

    def connect(self, source: str = "") -> Wire:
        return Wire(self.host, self.port, source=source) if source else self.wire(self.host, self.port)

    def log_in(self, name: str, password: str = "", source: str = "", features: Feature = NO_FEATURES) -> Wire:
        """A client that is online and has read the list of users."""
        wire = self.connect(source)
        wire.send(encode_login(name, password, features))
        wire.read_list(name)
        return wire

    def visit(self, name: str, password: str = "") -> None:
        """Log this user in and out again; the user is offline when this returns."""
        goodbyes = self.log.count(f"{name} disconnected")
        self.log_in(name, password).close()
        self.wait_for_log(f"{name} disconnected", goodbyes + 1)


StartServer = Callable[..., ServerProcess]  # the fixture `start_server`


def launch_server(
    data_dir: Path,
    *options: object,
    under: Sequence[str] = (),
    program: Sequence[str] = SERVER,
    folder: Path = ROOT,
) -> ServerProcess:
    """Start a server, on a free port unless the options name one; it may not be ready yet.

    `program` is what Python runs, in `folder`; the command `under`, if there is one, replaces itself with Python.
    """
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    log_file = data_dir.parent / f"server-{time.monotonic_ns()}.log"
    arguments = ["--port", "0", "--data-dir", str(data_dir), *map(str, options)]
    command = [*under, sys.executable, *program, *arguments]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    return ServerProcess(process, log_file, data_dir)


@contextmanager
def run_server(
    data_dir: Path, *options: object, under: Sequence[str] = (), program: Sequence[str] = SERVER
) -> Iterator[ServerProcess]:
    """Start a server on a free port, wait until it is ready, and stop it at the end.

    Raises HarnessError if it does not start, stops with another status than 0, logs a traceback or blocks its loop.
    """
    with expecting_clean_end(launch_server(data_dir, *options, under=under, program=program)) as server:
        yield server


@contextmanager
def expecting_clean_end(server: ServerProcess) -> Iterator[ServerProcess]:
    """What run_server does, for a server that has been launched."""
    process = server.process
    try:
        server.wait_until_ready()
        yield server
        if process.poll() is None and server.stop() != 0:
            raise HarnessError(server.log)
        if "Traceback" in server.log:
            raise HarnessError(server.log)
        if server.stalls and not server.may_stall:
            raise HarnessError(f"the loop was blocked for {', '.join(server.stalls)}")
    finally:
        process.kill()
        process.wait()


def run_to_end(*options: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a server that is expected to end by itself."""
    command = [sys.executable, *SERVER, *map(str, options)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
