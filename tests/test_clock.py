"""The wall clock is no measure of life: stepping it, as NTP does, ends nothing early and keeps nothing too long."""

import os
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest

from protocol import PacketType, Reason, encode, encode_error
from testkit import Missing
from testkit.clock import SteppedClock
from testkit.group import run_group
from testkit.redis_server import run_redis
from testkit.server import run_server

pytestmark = pytest.mark.slow

HOUR = 3600
PING, PONG = encode(PacketType.PING, b"?"), encode(PacketType.PONG, b"?")


@pytest.fixture
def clock(tmp_path: Path) -> SteppedClock:
    try:
        return SteppedClock(tmp_path)
    except Missing as reason:
        pytest.skip(str(reason))


def test_a_clock_set_back_keeps_no_place(clock: SteppedClock, tmp_path: Path) -> None:
    with (
        run_server(tmp_path / "data", "--login-timeout", 2, under=clock.under) as server,
        server.connect() as silent,
    ):
        server.wait_for_log("connected")
        clock.step(-HOUR)
        silent.expect(encode_error(Reason.LOGIN_TIMEOUT))
        silent.expect_end()


def test_a_clock_set_forward_ends_no_idle_time(clock: SteppedClock, tmp_path: Path) -> None:
    options = ("--login-timeout", 1, "--idle-timeout", 600)
    with run_server(tmp_path / "data", *options, under=clock.under) as server, server.log_in("alice") as alice:
        clock.step(HOUR)
        gevent.sleep(2)  # until the deadline of the login has been looked at
        alice.send(PING)
        alice.expect(PONG)


@pytest.mark.parametrize("seconds", [60, -60])
def test_a_step_of_the_clock_of_redis_ends_no_node(
    seconds: int, clock: SteppedClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as preloaded, ExitStack() as stack:
        for name, value in clock.environment.items():
            preloaded.setitem(os.environ, name, value)
        redis = stack.enter_context(run_redis(tmp_path / "redis"))
        preloaded.undo()
        group = stack.enter_context(run_group(tmp_path, redis.url, "--lease", 4))
        alice, bob = (
            stack.enter_context(node.log_in(name)) for node, name in zip(group.nodes, ("alice", "bob"), strict=True)
        )
        gevent.sleep(5)  # after a lease the nodes may end others
        clock.step(seconds)
        for node in group.nodes:
            node.wait_for_log("clock was stepped")
        gevent.sleep(8)  # two leases
        alice.chat_with(2)
        alice.say("still here")
        bob.expect_message("alice:still here")
        for node in group.nodes:
            assert "lease of this node ran out" not in node.log
