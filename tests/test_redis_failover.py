"""A Redis that answers and cannot do its work: a node says what is the matter, and looks for the one that can."""

import shutil
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from protocol import PacketType, Reason, encode_login
from testkit.group import run_group
from testkit.processes import DEADLINE, wait_for
from testkit.redis_server import RedisServer, run_redis
from testkit.server import ServerProcess, expecting_clean_end, launch_server, run_server

LEASE = 3.0


class Name:
    """What leads to a Redis, and can be made to lead to another one, as a host name can: a link to its socket."""

    def __init__(self, folder: Path) -> None:
        self._link = folder / "redis"
        self.url = f"unix://{self._link}"

    def leads_to(self, path: Path) -> None:
        new = self._link.with_suffix(".new")
        new.symlink_to(path)
        new.replace(self._link)


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder whose path is short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="chat"))
    yield folder
    shutil.rmtree(folder)


@contextmanager
def answering(path: Path, line: bytes) -> Iterator[None]:
    """A Redis at this socket that answers everything with this error."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer(client: socket.socket) -> None:
            with client, suppress(OSError):
                while client.recv(65536):
                    client.sendall(b"-" + line + b"\r\n")

        def serve() -> None:
            with suppress(OSError):  # the listener is shut down at the end
                while True:
                    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

        server = threading.Thread(target=serve)
        server.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        server.join()


def test_nodes_follow_a_planned_failover_and_nobody_is_disconnected(tmp_path: Path, sockets: Path) -> None:
    """The old primary stays up, as a replica that can be read; so nothing breaks the connections to it."""
    one, two = sockets / "1", sockets / "2"
    with (
        run_redis(tmp_path / "1", "--unixsocket", str(one)) as primary,
        run_redis(tmp_path / "2", "--unixsocket", str(two), "--replicaof", f"127.0.0.1 {primary.port}") as replica,
    ):
        name = Name(sockets)
        name.leads_to(one)
        with run_group(tmp_path, name.url, "--lease", LEASE) as group:
            alice, bob = group.nodes[0].log_in("alice"), group.nodes[1].log_in("bob")
            alice.chat_with(2)
            assert int(primary.command("WAIT", "1", "5000")) == 1
            replica.command("REPLICAOF", "NO", "ONE")
            name.leads_to(two)
            primary.command("REPLICAOF", "127.0.0.1", str(replica.port))
            wait_for("a login", lambda: logs_in(group.nodes[0], "carol"))
            wait_for("a login at the other node", lambda: logs_in(group.nodes[1], "dave"))
            time.sleep(LEASE)  # as long as nodes that did not renew their lease would be thought to live
            alice.say("still here")
            bob.expect_message("alice:still here")
            bob.chat_with(1)
            bob.say("me too")
            alice.expect_message("bob:me too")
            assert "it is a read-only replica (READONLY)" in group.log


def logs_in(server: ServerProcess, name: str) -> bool:
    with server.connect() as wire:
        wire.send(encode_login(name))
        packet = wire.read()
        assert packet is not None
        if packet[0] == PacketType.ERROR:
            assert packet[1][2:] == Reason.STORAGE_UNAVAILABLE.encode()
        return packet[0] != PacketType.ERROR


@pytest.mark.parametrize(
    "line",
    [
        b"READONLY You can't write against a read only replica.",
        b"LOADING Redis is loading the dataset in memory",
        b"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        b"ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -READONLY You can't write.",
    ],
)
def test_a_node_that_starts_looks_for_a_redis_that_can_be_written(line: bytes, tmp_path: Path, sockets: Path) -> None:
    name = Name(sockets)
    real, unfit = sockets / "1", sockets / "2"
    name.leads_to(unfit)
    with run_redis(tmp_path / "redis", "--unixsocket", str(real)), answering(unfit, line):
        server = launch_server(tmp_path / "data", "--redis", name.url)
        server.wait_for_log("waiting for it, 60 s at most")
        name.leads_to(real)
        with expecting_clean_end(server) as node, node.log_in("alice"):
            assert node.log.count("waiting for it") == 1


def test_a_redis_whose_memory_is_full_is_told_until_it_has_room(tmp_path: Path, redis_server: RedisServer) -> None:
    with run_group(tmp_path, redis_server.url, nodes=1) as group:
        redis_server.command("CONFIG", "SET", "maxmemory", "1")
        expect_refusal(group, "its memory is full (maxmemory) (OOM)")
        redis_server.command("CONFIG", "SET", "maxmemory", "0")
        wait_for("a login", lambda: logs_in(group, "alice"))


def test_a_redis_that_cannot_save_is_told_until_it_can(tmp_path: Path) -> None:
    with run_redis(tmp_path / "redis", "--save", "3600 1") as redis, run_group(tmp_path, redis.url, nodes=1) as group:
        (tmp_path / "redis" / "dump.rdb").mkdir()
        redis.command("BGSAVE")
        wait_for("a save that fails", lambda: "Error moving temp DB file" in redis.log)
        expect_refusal(group, "it cannot save to its disk, and so accepts no writes (MISCONF)")
        (tmp_path / "redis" / "dump.rdb").rmdir()
        redis.command("BGSAVE")
        wait_for("a login", lambda: logs_in(group, "alice"))


def expect_refusal(server: ServerProcess, told: str) -> None:
    wait_for("a refusal", lambda: not logs_in(server, "alice"))
    server.wait_for_log(told)


# Which node is ready


def test_a_node_without_redis_is_not_ready_while_another_may_have_it(tmp_path: Path, sockets: Path) -> None:
    name = Name(sockets)
    name.leads_to(sockets / "1")
    with run_redis(tmp_path / "redis", "--unixsocket", str(sockets / "1")) as redis, ExitStack() as stack:
        options = ("--lease", LEASE, "--metrics-port", 0)
        cut_off, whole = (
            stack.enter_context(run_server(tmp_path / str(number), "--redis", url, *options))
            for number, url in enumerate((name.url, redis.url))
        )
        time.sleep(LEASE)  # until each has seen the other
        assert (ready(cut_off), ready(whole)) == ("ready", "ready")
        name.leads_to(sockets / "nowhere")
        redis.cut_connections()
        wait_for("not ready", lambda: ready(cut_off) == "Redis is away")
        wait_for("ready", lambda: ready(whole) == "ready")
        name.leads_to(sockets / "1")
        wait_for("ready again", lambda: ready(cut_off) == "ready")


def test_a_node_that_is_alone_stays_ready_without_redis(tmp_path: Path, redis_server: RedisServer) -> None:
    """It can do no less than any other."""
    with run_group(tmp_path, redis_server.url, "--metrics-port", 0, nodes=1) as group:
        redis_server.stop()
        group.wait_for_log("ERROR Redis")
        assert ready(group) == "ready"


def ready(server: ServerProcess) -> str:
    """What /readyz says."""
    try:
        with urllib.request.urlopen(f"{server.metrics_url}/readyz", timeout=DEADLINE) as answer:
            return str(answer.read().decode().strip())
    except urllib.error.HTTPError as refusal:
        with refusal:
            assert refusal.code == 503
            return refusal.read().decode().strip()
