"""The real server as a process, and a client that speaks plain bytes to it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from protocol import (
    NO_FEATURES,
    Envelope,
    Feature,
    PacketType,
    Reason,
    encode,
    encode_chat_init,
    encode_error,
    encode_login,
    encode_message,
)

ROOT = Path(__file__).parent.parent
SERVER = ("server.py",)  # what Python runs
BIG = encode_message(b"x" * 100)
PUSH_BYTES = 65536  # however small the packet: a flood must be over before the server's patience is, on a busy machine
RELAYED_BIG = Envelope("sender").wrap(b"x" * 100)
UNPATCHED = "CHAT_TEST_UNPATCHED"  # set in the process of run_unpatched
DEADLINE = 30.0  # seconds: generous, since machines are slow and shared
LATE = re.compile(r"^.* the loop was blocked for .*\n(?:  .*\n|\(no stack\)\n)*\n?", re.MULTILINE)
STALL_SECONDS = 1.0  # for so long nothing blocks the loop: what may take long has threads


def wait_for(what: str, condition: Callable[[], object], deadline: float = DEADLINE) -> None:
    """Poll until `condition` holds; fails the test with `what` after `deadline` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"waited {deadline} s in vain: {what}"
        time.sleep(0.01)


def answers(port: int) -> bool:
    """Whether somebody listens on this port of 127.0.0.1."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def altered(constant: str, value: float) -> Sequence[str]:
    """A program for run_server: the server with another value for this constant, by its full name."""
    return "-m", "testkit.altered_server", f"{constant}={value}"


PATIENT = altered("chatserver.transport.connection.LINGER_SECONDS", DEADLINE)  # with who is slow to read its last Error
UNWATCHED = altered("chatserver.operations.lag.BEAT_SECONDS", 3600)  # never says that its loop was late


def but_for_lateness(log: str) -> str:
    """This log without what it says of a loop that was late, as any may be where the machine has much to do."""
    return LATE.sub("", log)


class ServerProcess:
    """A running `python server.py`."""

    def __init__(self, process: subprocess.Popen[bytes], log_file: Path, data_dir: Path) -> None:
        self.process = process
        self.data_dir = data_dir
        self.host = "127.0.0.1"
        self.port = 0
        self.may_stall = False  # a test that gives its loop too much to do in a turn says so
        self.wire: Callable[[str, int], Wire] = Wire  # how its clients connect
        self.log_file = log_file

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def wait_until_ready(self) -> None:
        wait_for("listening on", lambda: "listening on" in self.log or self.process.poll() is not None)
        ready = re.search(r"listening on (\S+):(\d+)$", self.log, re.MULTILINE)
        assert ready, self.log
        self.port = int(ready[2])

    def wait_for_log(self, text: str, times: int = 1) -> None:
        wait_for(f"{text!r} in the log", lambda: self.log.count(text) >= times)

    @property
    def warnings(self) -> list[str]:
        """The lines of the log that somebody should look at; `stalls` are told apart."""
        return [line for line in but_for_lateness(self.log).splitlines() if " INFO " not in line]

    @property
    def stalls(self) -> list[str]:
        """What the log says of a loop that something blocked, the seconds first, but for short times."""
        blocked = re.findall(r"the loop was blocked for ([\d.]+ s\n(?:  .*\n)*)", self.log)
        return [found for found in blocked if float(found.split()[0]) >= STALL_SECONDS]

    @property
    def metrics_url(self) -> str:
        """Where --metrics-port serves, without the path."""
        found = re.search(r"metrics on (\S+)/metrics$", self.log, re.MULTILINE)
        assert found, self.log
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

    def connect(self, source: str = "") -> "Wire":
        return Wire(self.host, self.port, source=source) if source else self.wire(self.host, self.port)

    def log_in(self, name: str, password: str = "", source: str = "", features: Feature = NO_FEATURES) -> "Wire":
        """A client that is online and has read the list."""
        wire = self.connect(source)
        wire.send(encode_login(name, password, features))
        wire.read_list(name)
        return wire

    def visit(self, name: str, password: str = "") -> None:
        """Somebody comes and goes, and is offline then."""
        goodbyes = self.log.count(f"{name} disconnected")
        self.log_in(name, password).close()
        self.wait_for_log(f"{name} disconnected", goodbyes + 1)


def launch_server(
    data_dir: Path, *options: object, under: Sequence[str] = (), program: Sequence[str] = SERVER
) -> ServerProcess:
    """Start a server on a free port, as the process that the command `under` becomes; it may not be ready yet.

    `program` is what Python runs.
    """
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    log_file = data_dir.parent / f"server-{time.monotonic_ns()}.log"
    arguments = ["--port", "0", "--data-dir", str(data_dir), *map(str, options)]
    command = [*under, sys.executable, *program, *arguments]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    return ServerProcess(process, log_file, data_dir)


@contextmanager
def run_server(
    data_dir: Path, *options: object, under: Sequence[str] = (), program: Sequence[str] = SERVER
) -> Iterator[ServerProcess]:
    """Start a server on a free port; at the end it must stop with status 0, without a traceback in its log, and nothing
    may have blocked its loop.
    """
    with ending_well(launch_server(data_dir, *options, under=under, program=program)) as server:
        yield server


@contextmanager
def ending_well(server: ServerProcess) -> Iterator[ServerProcess]:
    """Wait until it is ready; at the end it is as run_server says."""
    process = server.process
    try:
        server.wait_until_ready()
        yield server
        if process.poll() is None:
            assert server.stop() == 0, server.log
        assert "Traceback" not in server.log, server.log
        assert server.may_stall or not server.stalls, server.stalls
    finally:
        process.kill()
        process.wait()


def run_to_end(*options: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a server that is expected to end by itself."""
    command = [sys.executable, "server.py", *map(str, options)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=DEADLINE, check=False
    )


def untraced() -> dict[str, str]:
    """The environment of a process whose coverage is not measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COV")}


def run_unpatched(test_file: str) -> None:
    """Run these tests once more, in a process without gevent, whose threads are threads."""
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider", test_file]
    environment = untraced() | {UNPATCHED: "1"}  # coverage brings gevent
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


class Wire:
    """A client as plain as can be: bytes out, packets in, a deadline on each read."""

    def __init__(self, host: str, port: int, receive_buffer: int | None = None, source: str = "") -> None:
        """`source` is the address it comes from, where that matters."""
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.socket.settimeout(DEADLINE)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect((host, port))
        self._buffer = b""
        self._at = 0  # how much of it has been read
        self.users: dict[str, int] = {}

    def send(self, *packets: bytes) -> None:
        self.socket.sendall(b"".join(packets))

    def read(self) -> tuple[int, bytes] | None:
        """The next packet as (type, body); None at the end of the stream."""
        header = self._take(2)
        if not header:
            return None
        body = self._take(header[1])
        assert len(body) == header[1], f"the stream ended after a header: {header!r}"
        return header[0], body

    def expect(self, packet: bytes) -> None:
        received = self.read()
        assert received == (packet[0], packet[2:]), f"expected {packet!r}, not {received!r}"

    def expect_error(self, reason: Reason) -> None:
        self.expect(encode_error(reason))

    def expect_end(self) -> None:
        assert self.read() is None

    def expect_pong(self) -> None:
        """Everything sent so far has been handled, and nothing but this answer is left to read."""
        self.send(encode(PacketType.PING, b"barrier"))
        self.expect(encode(PacketType.PONG, b"barrier"))

    def read_list(self, own_name: str) -> None:
        """Read entries up to the own one."""
        self.users = {}
        while own_name not in self.users:
            packet = self.read()
            assert packet is not None, "the connection ended before the list was complete"
            assert packet[0] == PacketType.CONFIG, packet
            length = int.from_bytes(packet[1][:2], "big")
            self.users[packet[1][2 : 2 + length].decode()] = int.from_bytes(packet[1][2 + length :], "big")

    def chat_with(self, user_id: int) -> None:
        self.send(encode_chat_init(user_id))
        self.expect_pong()

    def say(self, text: str) -> None:
        self.send(encode_message(text.encode()))

    def expect_message(self, text: str) -> None:
        self.expect(encode_message(text.encode()))

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < self._at + count:
            chunk = self.socket.recv(65536)
            rest = self._buffer[self._at :]
            if not chunk:
                assert not rest, f"the stream ended inside a packet: {rest!r}"
                return b""
            self._buffer, self._at = rest + chunk, 0
        self._at += count
        return self._buffer[self._at - count : self._at]


class Flood:
    """Sends one packet over and over, as far as the server reads, and can end on a whole one."""

    def __init__(self, client: Wire, packet: bytes) -> None:
        self._client = client
        self._packet = packet
        self._many = packet * (PUSH_BYTES // len(packet))
        self._sent = 0

    def push(self, timeout: float = 0.0) -> bool:
        """Send some more; False when the server takes nothing for `timeout` seconds."""
        self._client.socket.settimeout(timeout)
        try:
            self._sent += self._client.socket.send(self._many[self._sent % len(self._packet) :])
        except (TimeoutError, BlockingIOError):
            return False
        finally:
            self._client.socket.settimeout(DEADLINE)
        return True

    def until_stuck(self, timeout: float) -> None:
        """Send until the server takes nothing for `timeout` seconds."""
        while self.push(timeout):
            pass

    def end(self, after: bytes = b"") -> int:
        """Complete the last packet, send `after`; returns how many of its packets have been sent."""
        rest = -self._sent % len(self._packet)
        self._client.send(self._packet[len(self._packet) - rest :], after)
        return (self._sent + rest) // len(self._packet)


def stuck_pair(server: ServerProcess, timeout: float = 0.5) -> tuple[Wire, Wire, Flood]:
    """The users reader, who does not read, and sender, who floods it with BIG: stuck by now."""
    reader, sender = server.log_in("reader"), server.log_in("sender")
    sender.chat_with(reader.users["reader"])
    flood = Flood(sender, BIG)
    flood.until_stuck(timeout)
    return reader, sender, flood
