"""What nodes say to each other goes through Redis unchanged, in order, and never makes who says it wait."""

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import gevent
import pytest
import trustme

from chatstorage.interface import StorageUnavailable
from cluster.engine import Engine
from cluster.link import Link
from cluster.wire import READ_BYTES
from testkit.processes import DEADLINE, wait_for
from testkit.redis_server import RedisServer, run_redis

CHANNEL = "news"
MUCH = 16 * 1024 * 1024  # more than two sockets hold


@pytest.fixture(params=["plain", "encrypted"])
def redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    with run_redis(tmp_path / "redis", authority=trustme.CA() if request.param == "encrypted" else None) as redis:
        yield redis


@pytest.fixture
def engine(redis: RedisServer) -> Iterator[Engine]:
    url = f"{redis.url}?ssl_ca_certs={redis.ca_file}" if redis.url.startswith("rediss") else redis.url
    with closing(Engine(url, "test")) as engine:
        yield engine


def heard(link: Link, count: int) -> list[tuple[str, bytes]]:
    """The next messages."""
    listener = gevent.spawn(lambda: list(islice(link.messages(), count)))
    said: list[tuple[str, bytes]] = listener.get(timeout=DEADLINE)
    return said


def test_messages_of_any_bytes_and_size_come_in_order(engine: Engine) -> None:
    messages = [(CHANNEL, text) for text in (b"", b"\r\n$0\r\n\x00\xff", b"x" * 3 * READ_BYTES, b"*1\r\n", b"last")]
    with Link(engine, [CHANNEL]) as link:
        link.publish(messages[:2])
        link.publish(messages[2:])
        assert heard(link, len(messages)) == messages


def test_only_channels_that_were_named_are_heard(engine: Engine) -> None:
    with Link(engine, [CHANNEL, "mine"]) as link:
        link.publish([("yours", b"1"), ("mine", b"2"), ("newsreel", b"3"), (CHANNEL, b"4")])
        assert heard(link, 2) == [("mine", b"2"), (CHANNEL, b"4")]


def test_messages_that_a_busy_redis_does_not_accept_wait_and_arrive_in_order(
    redis: RedisServer, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.link.ANSWER_SECONDS", DEADLINE)
    texts = [b"%07d" % number * 10_000 for number in range(MUCH // 70_000)]
    with Link(engine, [CHANNEL]) as link:
        redis.pause()
        for text in texts:
            link.publish([(CHANNEL, text)])
        redis.resume()
        link.publish([(CHANNEL, b"last")])
        assert [text for _, text in heard(link, len(texts) + 1)] == [*texts, b"last"]
        assert not link.failed.is_set()


def test_a_redis_that_accepts_no_more_data_is_away(redis: RedisServer, engine: Engine) -> None:
    with Link(engine, [CHANNEL]) as link:
        redis.pause()
        link.publish([(CHANNEL, bytes(MUCH))])
        assert link.failed.wait(DEADLINE)
        assert link.problem == "Redis: it accepts no more data"


def test_a_connection_that_ends_is_reported_without_an_exception(redis: RedisServer, engine: Engine) -> None:
    with Link(engine, [CHANNEL]) as link:
        listener = gevent.spawn(lambda: list(link.messages()))
        redis.kill()
        assert listener.get(timeout=DEADLINE) == []
        assert link.problem.startswith("Redis: ")
        for _ in range(3):  # the first write after the end may still succeed
            link.publish([(CHANNEL, b"into the void")])
            gevent.sleep(0.01)


def test_a_redis_that_does_not_let_us_subscribe_is_away(redis: RedisServer, engine: Engine) -> None:
    redis.command("ACL", "SETUSER", "default", "-subscribe")
    with pytest.raises(StorageUnavailable, match="permissions"), Link(engine, [CHANNEL]):
        pass
    redis.command("ACL", "SETUSER", "default", "+subscribe")
    with Link(engine, [CHANNEL]) as link:
        link.publish([(CHANNEL, b"now")])
        assert heard(link, 1) == [(CHANNEL, b"now")]


def test_nothing_is_left_of_a_link_that_has_ended(redis: RedisServer, engine: Engine) -> None:
    with Link(engine, [CHANNEL]):
        before = redis.command("CLIENT", "LIST").count("name=")
    wait_for("both are gone", lambda: redis.command("CLIENT", "LIST").count("name=") == before - 2)
