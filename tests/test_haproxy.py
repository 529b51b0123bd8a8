"""deploy/haproxy.cfg: what the protocol promises holds through HAProxy, and a node that is gone is not missed."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatserver.operations.options import parse_options
from protocol import PacketType, Reason, encode, encode_error, encode_login
from testkit.flood import BIG, stuck_pair
from testkit.group import HAPROXY_CONFIG, NO_HAPROXY, ServerGroup, find_haproxy, run_group, run_nodes
from testkit.processes import DEADLINE, wait_for
from testkit.redis_server import RedisServer

pytestmark = pytest.mark.skipif(find_haproxy() is None, reason=NO_HAPROXY)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[ServerGroup]:
    """Two servers that know nothing of each other, with a place each."""
    with run_nodes(tmp_path, "--pool-size", 1, behind_haproxy=True) as group:
        yield group


def judged(config: Path) -> str:
    """What HAProxy says of it, if it has no fault."""
    command = [find_haproxy() or "", "-c", "-f", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_haproxy_accepts_the_configuration() -> None:
    assert judged(HAPROXY_CONFIG).strip() == "Configuration file is valid"


def test_haproxy_accepts_the_optional_limit_of_connections(tmp_path: Path) -> None:
    whole = re.sub(r"^( *)# ( *)(tcp-request|backend|stick-table) ", r"\1\2\3 ", HAPROXY_CONFIG.read_text(), flags=re.M)
    assert whole.count("addresses") == HAPROXY_CONFIG.read_text().count("addresses") > 0
    (tmp_path / "haproxy.cfg").write_text(whole)
    assert judged(tmp_path / "haproxy.cfg").strip() == "Configuration file is valid"


def test_haproxy_has_as_many_places_as_the_servers() -> None:
    assert f" maxconn {parse_options([]).pool_size} " in HAPROXY_CONFIG.read_text()


def test_clients_go_to_the_node_with_the_fewest(tmp_path: Path) -> None:
    with run_nodes(tmp_path, nodes=3, behind_haproxy=True) as group:
        clients = [group.log_in(f"u{number}") for number in range(6)]
        assert [node.log.count("logged in") for node in group.nodes] == [2, 2, 2]
        del clients


def test_a_waiting_client_gets_the_first_free_place_of_any_node(pair: ServerGroup) -> None:
    served = [pair.log_in("alice"), pair.log_in("bob")]
    for number in (1, 0):
        waiting = pair.connect()
        waiting.send(encode_login(f"next{number}"))
        served[number].close()
        waiting.read_list(f"next{number}")
        served.append(waiting)


def test_a_client_that_half_closes_at_once_is_still_answered(pair: ServerGroup) -> None:
    with pair.connect() as client:
        client.send(encode_login("alice"))
        client.half_close()
        client.read_list("alice")
        client.expect_end()


@pytest.mark.slow
def test_a_client_that_half_closed_is_answered_however_late(tmp_path: Path) -> None:
    with run_nodes(tmp_path, "--history", "off", "--write-timeout", 4, nodes=1, behind_haproxy=True) as group:
        reader, sender, _ = stuck_pair(group)
        late = group.log_in("late")
        late.chat_with(1)
        started = time.monotonic()
        late.send(BIG * 1000, encode(PacketType.PING, b"last"))  # more than an outbox holds, less than a socket
        late.half_close()
        answers = list(iter(late.read, None))
        assert answers[-1] == (PacketType.PONG, b"last")
        assert answers[0] == (PacketType.ERROR, encode_error(Reason.USER_NOT_ONLINE)[2:])
        assert time.monotonic() - started > 3, "the reader was dropped before any timeout of HAProxy's"
        group.wait_for_log("late disconnected: left")
        reader.close()
        sender.close()


def test_an_error_that_closes_arrives_and_a_client_that_does_not_close_is_disconnected(pair: ServerGroup) -> None:
    rude = pair.connect()
    rude.send(b"\x00\x00", b"x" * 100_000)
    rude.expect_error(Reason.UNKNOWN_PACKET_TYPE)
    rude.expect_end()
    others = [pair.log_in("alice"), pair.log_in("bob")]
    for other in others:
        other.expect_pong()


def test_clients_of_a_stopping_node_are_notified_and_later_ones_get_another_node(pair: ServerGroup) -> None:
    first = pair.log_in("alice")
    (node,) = [node for node in pair.nodes if "alice" in node.log]
    assert node.stop() == 0
    first.expect_error(Reason.SERVER_SHUTTING_DOWN)
    first.expect_end()
    with pair.log_in("bob") as second:
        second.expect_pong()


def test_clients_of_a_killed_node_are_disconnected_and_later_ones_get_another_node(pair: ServerGroup) -> None:
    with pair.log_in("alice") as client:
        (node,) = [node for node in pair.nodes if "alice" in node.log]
        node.process.kill()
        client.expect_end()
    with pair.log_in("bob") as client:
        client.expect_pong()


def test_users_at_different_nodes_chat(tmp_path: Path, shared_redis: RedisServer, redis_prefix: str) -> None:
    with run_group(tmp_path, shared_redis.url, behind_haproxy=True, prefix=redis_prefix) as group:
        alice, bob = group.log_in("alice"), group.log_in("bob")
        assert all("logged in" in node.log for node in group.nodes)
        bob.chat_with(1)
        bob.say("hello")
        alice.expect_message("bob:hello")


def test_the_metrics_of_a_group_are_the_sum(pair: ServerGroup) -> None:
    clients = [pair.log_in("alice"), pair.log_in("bob")]
    assert pair.metrics()["chat_connected"] == 2
    assert pair.stop(signal.SIGINT) == 0
    del clients


def test_a_group_without_haproxy_is_reached_node_by_node(tmp_path: Path) -> None:
    with run_nodes(tmp_path, nodes=3) as group:
        assert group.address == group.nodes[0].address
        clients = [group.log_in(f"u{number}") for number in range(4)]
        group.wait_for_log("logged in", times=4)
        assert [node.log.count("logged in") for node in group.nodes] == [2, 1, 1]
        group.nodes[1].process.kill()
        wait_for("its end", lambda: len(group.running) == 2)
        clients += [group.connect() for _ in range(2)]
        assert group.stop() == -signal.SIGKILL
