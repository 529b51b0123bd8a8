"""A server that gets no memory for a password's hash says so, and blames neither the password nor the file."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol import Reason, encode_login
from testkit.server import ServerProcess, run_server

HASH_BYTES = 64 << 20  # that argon2 asks for; half of it is left
ATTEMPTS = 11  # more wrong passwords than a minute allows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of another process"),
]


@contextmanager
def without_memory(server: ServerProcess) -> Iterator[None]:
    """The server gets hardly more memory than it has."""
    pid = server.process.pid
    size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (size + HASH_BYTES // 2, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)


def test_without_memory_for_a_hash_a_login_is_refused_as_our_fault_and_counts_against_nobody(tmp_path: Path) -> None:
    logins = [*[("alice", "right")] * ATTEMPTS, ("alice", "wrong"), ("carol", "new"), ("bob", "first")]
    with run_server(tmp_path / "data") as server:
        server.visit("alice", "right")
        server.visit("bob")
        with without_memory(server), server.connect() as wire:
            for name, password in logins:
                wire.send(encode_login(name, password))
                wire.expect_error(Reason.STORAGE_UNAVAILABLE)
            server.visit("bob")
        server.visit("alice", "right")
        server.visit("carol", "new")
        assert "passwords cannot be hashed: Memory allocation error" in server.log
        assert "not a valid argon2 hash" not in server.log
