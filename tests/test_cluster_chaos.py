"""Groups under the load tester: undisturbed, and while Redis or a node is disturbed. Every message is accounted for."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from testkit.group import ServerGroup, run_group
from testkit.loadtests import LoadRun, expect_clean, load, run_locust, start_locust
from testkit.processes import wait_for
from testkit.redis_server import RedisServer

pytestmark = pytest.mark.slow

LEASE = 4.0  # where something has to last for longer than one
USERS = 26  # thirteen pairs: whether partners come in one after the other or not, not all meet on one of two nodes
OPTIONS = ("--pool-size", 60)
TOLERANT = [
    part
    for row in ("connection", "connect", "login", "chat init", "send", "deliver", "refresh")
    for part in ("--fail-if", f"{row}.failures>10000")
]


@contextmanager
def on_one_port(folder: Path, redis: RedisServer, nodes: int, *more: object) -> Iterator[list[ServerGroup]]:
    """Nodes among which the kernel shares clients out."""
    with ExitStack() as stack:
        port: object = 0
        groups: list[ServerGroup] = []
        for number in range(nodes):
            options = (*OPTIONS, *more, "--reuse-port", "--port", port)
            groups.append(stack.enter_context(run_group(folder / str(number), redis.url, *options, nodes=1)))
            port = groups[0].port
        yield groups


def expect_both_to_work(nodes: list[ServerGroup]) -> None:
    for node in nodes:
        assert node.log.count("logged in") > 1


# Undisturbed


@pytest.mark.parametrize("nodes", [2, 3])
def test_a_run_against_nodes_on_one_port_is_clean(redis_server: RedisServer, tmp_path: Path, nodes: int) -> None:
    with on_one_port(tmp_path, redis_server, nodes) as group:
        expect_clean(run := run_locust(tmp_path, *load(group[0].address, USERS, 6)))
        expect_both_to_work(group)
    assert run.ledger["refused"] == run.ledger["in flight"] == 0


@pytest.mark.parametrize("nodes", [2, 3])
def test_a_run_through_haproxy_is_clean(redis_server: RedisServer, tmp_path: Path, nodes: int) -> None:
    with run_group(tmp_path, redis_server.url, *OPTIONS, nodes=nodes, behind_haproxy=True) as group:
        expect_clean(run := run_locust(tmp_path, *load(group.address, USERS, 6)))
        assert group.metrics()["chat_messages_handed_on_total"] > 0
    assert run.ledger["refused"] == run.ledger["in flight"] == 0


def test_a_run_with_history_receipts_and_mailboxes_is_clean(redis_server: RedisServer, tmp_path: Path) -> None:
    with on_one_port(tmp_path, redis_server, 2) as group:
        expect_clean(run := run_locust(tmp_path, *load(group[0].address, USERS, 8), "--features", "all"))
    assert run.rows["mailbox"].count > 0
    assert run.rows["history"].count > 0


# Disturbed

AWAY = {f"{error}('Storage Unavailable')" for error in ("ServerError", "LoginRefused", "ChatRefused")}
AWAY.add("LoginRefused('User Already Online!')")  # at a node that is back before the one where this user has been


def disturbed(
    redis: RedisServer, folder: Path, disturb: Callable[[list[ServerGroup]], object], *more: object, in_doubt: int = 0
) -> LoadRun:
    """What the load tester has found of two nodes. Nothing may be lost, doubled, changed or out of order; what was not
    delivered was refused, or went to a connection that ended. So many Errors may be about Messages that have arrived:
    one run of each sender's, which a node that ended had delivered and not yet answered.
    """
    options = [*load("", USERS, rate=20), *TOLERANT, "--drain", 10, "--fail-if", f"unbalanced>{in_doubt}"]
    with (
        on_one_port(folder, redis, 2, *more) as nodes,
        start_locust(folder, *options, "--host", f"tcp://{nodes[0].address}") as locust,
    ):
        locust.wait_for_users()
        wait_for("both nodes have users", lambda: all(node.log.count("logged in") > 5 for node in nodes))
        time.sleep(1)
        disturb(nodes)
        logins = [node.log.count("logged in") for node in nodes if node.running]
        wait_for(
            "life goes on",
            lambda: sum(node.log.count("logged in") for node in nodes if node.running) > sum(logins) + 5,
        )
        locust.interrupt()
        run = locust.end()
    assert run.status == 0, run.explain()
    assert run.is_balanced or in_doubt, run.explain()
    assert run.faults == {}, run.explain()
    assert run.ledger["delivered"] > 0
    return run


def errors_of(run: LoadRun) -> set[str]:
    """What users were told, without which row it was."""
    return {error.partition(": ")[2] for error in run.errors}


def test_redis_restarted(redis_server: RedisServer, tmp_path: Path) -> None:
    def disturb(nodes: list[ServerGroup]) -> None:
        redis_server.stop()
        for node in nodes:
            node.wait_for_log("ERROR Redis")
        time.sleep(1)
        redis_server.start()
        for node in nodes:
            node.wait_for_log("Redis is back")

    run = disturbed(redis_server, tmp_path, disturb)
    assert run.ledger["in flight"] == 0
    assert errors_of(run) <= AWAY


def test_redis_paused_for_five_seconds(redis_server: RedisServer, tmp_path: Path) -> None:
    def disturb(nodes: list[ServerGroup]) -> None:
        redis_server.pause()
        time.sleep(5)
        for node in nodes:
            node.wait_for_log("ERROR Redis")
        redis_server.resume()
        for node in nodes:
            node.wait_for_log("Redis is back")

    run = disturbed(redis_server, tmp_path, disturb, "--lease", LEASE)
    assert run.ledger["in flight"] == 0
    assert errors_of(run) <= AWAY


def test_connections_to_redis_cut_again_and_again(redis_server: RedisServer, tmp_path: Path) -> None:
    def disturb(nodes: list[ServerGroup]) -> None:
        for times in range(1, 6):
            redis_server.cut_connections()
            for node in nodes:
                node.wait_for_log("Redis is back", times)

    run = disturbed(redis_server, tmp_path, disturb)
    assert run.ledger["in flight"] == 0
    assert errors_of(run) <= AWAY


def test_a_node_killed(redis_server: RedisServer, tmp_path: Path) -> None:
    run = disturbed(
        redis_server, tmp_path, lambda nodes: nodes[1].process.kill(), "--lease", 1.5 * LEASE, in_doubt=USERS
    )
    assert run.rows["connection"].failures > 0
    assert "LoginRefused('User Already Online!')" in errors_of(run), "until the lease has run out"


def test_a_node_frozen_for_longer_than_its_lease(redis_server: RedisServer, tmp_path: Path) -> None:
    def disturb(nodes: list[ServerGroup]) -> None:
        nodes[1].process.send_signal(signal.SIGSTOP)
        wait_for("the other one to end it", lambda: redis_server.command("ZCARD", "chat:nodes") == "1")
        nodes[1].process.send_signal(signal.SIGCONT)
        nodes[1].wait_for_log("declared it failed")

    run = disturbed(redis_server, tmp_path, disturb, "--lease", LEASE, in_doubt=USERS)
    assert run.rows["connection"].failures > 0
    assert "ServerError('User Not Online')" in errors_of(run)
