"""Several servers as one: who is online, who wins, what crosses from one to the other, in order and bounded."""

import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from protocol import (
    PacketType,
    Reason,
    encode,
    encode_chat_init,
    encode_error,
    encode_login,
    encode_message,
    encode_user,
)
from testkit.flood import BIG
from testkit.group import ServerGroup, run_group
from testkit.processes import DEADLINE, wait_for
from testkit.redis_server import RedisServer, run_redis
from testkit.server import ServerProcess, expecting_clean_end, launch_server, run_to_end
from testkit.wire import Wire

pytestmark = pytest.mark.measured

LEASE = 3.0
FAST = ("--lease", LEASE)  # for who waits until it runs out; to others a node that is held up for so long is alive


@pytest.fixture
def pair(shared_redis: RedisServer, redis_prefix: str, tmp_path: Path) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Two nodes."""
    with run_group(tmp_path, shared_redis.url, "--metrics-port", 0, prefix=redis_prefix) as group:
        yield group.nodes[0], group.nodes[1]


@pytest.fixture
def three(shared_redis: RedisServer, redis_prefix: str, tmp_path: Path) -> Iterator[ServerGroup]:
    options = ("--max-users", 2000, "--id-width", 2, "--pool-size", 200)
    with run_group(tmp_path, shared_redis.url, *options, nodes=3, prefix=redis_prefix) as group:
        yield group


def list_again(wire: Wire, name: str) -> dict[str, int]:
    wire.send(encode_login(name))
    wire.read_list(name)
    return wire.users


# The list of online users


def test_the_list_has_the_users_of_all_nodes_in_the_order_of_their_ids(
    pair: tuple[ServerProcess, ServerProcess],
) -> None:
    one, two = pair
    names = [f"u{number}" for number in range(8)]
    wires = [(one, two)[number % 2].log_in(name) for number, name in enumerate(names)]
    for wire, name in zip(wires, names, strict=True):
        others = [other for other in names if other != name]
        assert list(list_again(wire, name)) == [*others, name]


def test_a_user_who_left_one_node_can_log_in_at_another_at_once(pair: tuple[ServerProcess, ServerProcess]) -> None:
    one, two = pair
    for number in range(20):
        node = (one, two)[number % 2]
        with node.log_in("alice") as alice:
            alice.expect_pong()
        node.wait_for_log("alice disconnected", times=number // 2 + 1)


@pytest.mark.slow
def test_exactly_one_of_simultaneous_logins_with_one_name_at_three_nodes_wins(three: ServerGroup) -> None:
    refused = encode_error(Reason.USER_ALREADY_ONLINE)
    with ThreadPoolExecutor(3) as threads:
        for race in range(300):
            name = f"u{race // 3}"  # first as a sign-up, then as a login
            wires = [node.connect() for node in three.nodes]
            list(threads.map(lambda wire, name=name: wire.send(encode_login(name)), wires))
            answers = [wire.read() for wire in wires]
            lost = answers.count((refused[0], refused[2:]))
            won = encode_user(name, race // 3 + 1, 2)
            assert (lost, answers.count((won[0], won[2:]))) == (2, 1), answers
            for wire in wires:
                wire.half_close()
                while wire.read():
                    pass
                wire.close()


def test_ids_are_unique_over_all_nodes(three: ServerGroup) -> None:
    def sign_up(number: int) -> int:
        name = f"u{number}"
        with three.nodes[number % 3].log_in(name) as wire:
            return wire.users[name]

    with ThreadPoolExecutor(12) as threads:
        ids = list(threads.map(sign_up, range(300)))
    assert sorted(ids) == list(range(1, 301))


def test_the_limit_of_users_holds_for_all_nodes_together(
    shared_redis: RedisServer, redis_prefix: str, tmp_path: Path
) -> None:
    with run_group(tmp_path, shared_redis.url, "--max-users", 5, prefix=redis_prefix) as group:
        for number in range(5):
            group.log_in(f"u{number}")
        wire = group.connect()
        wire.send(encode_login("u5"))
        wire.expect_error(Reason.USER_LIMIT_REACHED)


def test_groups_with_another_prefix_know_nothing_of_each_other(
    shared_redis: RedisServer, redis_prefix: str, tmp_path: Path
) -> None:
    with (
        run_group(tmp_path / "a", shared_redis.url, nodes=1, prefix=f"{redis_prefix}-a") as one,
        run_group(tmp_path / "b", shared_redis.url, nodes=1, prefix=f"{redis_prefix}-b") as other,
    ):
        wires = [one.log_in("alice"), other.log_in("bob"), other.log_in("alice")]
        assert [wire.users for wire in wires] == [{"alice": 1}, {"bob": 1}, {"bob": 1, "alice": 2}]


def test_ids_of_four_bytes_go_beyond_what_two_can_number(
    shared_redis: RedisServer, redis_prefix: str, tmp_path: Path
) -> None:
    shared_redis.command("SET", f"{redis_prefix}:last-id", str(3_000_000))
    options = ("--id-width", 4, "--max-users", 4_000_000)
    with run_group(tmp_path, shared_redis.url, *options, prefix=redis_prefix) as group:
        alice, bob = group.log_in("alice"), group.log_in("bob")
        assert bob.users == {"alice": 3_000_001, "bob": 3_000_002}
        alice.chat_with(3_000_002)
        alice.say("hi")
        bob.expect_message("alice:hi")


# What crosses


def test_messages_cross_nodes_in_order_or_are_refused(pair: tuple[ServerProcess, ServerProcess]) -> None:
    one, two = pair
    alice, bob = one.log_in("alice"), two.log_in("bob")
    alice.chat_with(2)
    alice.send(*(encode_message(b"%d" % number) for number in range(3000)))
    for number in range(3000):
        bob.expect_message(f"alice:{number}")
    bob.close()
    two.wait_for_log("bob disconnected")
    alice.say("too late")
    alice.expect_error(Reason.USER_NOT_ONLINE)
    alice.send(encode_chat_init(2))
    alice.expect_error(Reason.USER_NOT_ONLINE)
    bob = two.log_in("bob")
    alice.say("again")
    bob.expect_message("alice:again")


def test_a_slow_reader_throttles_the_sender_at_the_other_node_and_nothing_is_lost(
    pair: tuple[ServerProcess, ServerProcess],
) -> None:
    one, two = pair
    bob = Wire(two.host, two.port, receive_buffer=65536)
    bob.send(encode_login("bob"))
    bob.read_list("bob")
    alice = one.log_in("alice")
    alice.chat_with(1)
    alice.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    alice.socket.settimeout(1.0)
    much = 4 * 1024 * 1024  # more than the kernel's buffers hold, above all: without a bound it goes on
    sent = 0

    def is_held_up() -> bool:
        nonlocal sent
        with suppress(TimeoutError):
            while sent < much:
                sent += alice.socket.send((BIG * 100)[sent % len(BIG) :])
        return two.metrics()["chat_outbox_bytes_max"] > 0

    wait_for("the sender is held up", is_held_up)
    assert two.metrics()["chat_outbox_bytes_max"] <= 64 * 1024
    assert sent < much
    for _ in range(sent // len(BIG)):
        bob.expect_message("alice:" + "x" * 100)
    alice.socket.settimeout(DEADLINE)
    alice.send(BIG[sent % len(BIG) :])
    bob.expect_message("alice:" + "x" * 100)
    alice.expect_pong()


def test_a_ping_is_a_barrier_for_messages_to_another_node(pair: tuple[ServerProcess, ServerProcess]) -> None:
    one, two = pair
    alice, bob = one.log_in("alice"), two.log_in("bob")
    alice.chat_with(2)
    for number in range(50):
        alice.send(encode_message(b"%d" % number), encode(PacketType.PING, b"p"))
        alice.expect(encode(PacketType.PONG, b"p"))
        bob.expect_message(f"alice:{number}")


def test_a_message_between_nodes_is_counted_at_both(
    pair: tuple[ServerProcess, ServerProcess],
) -> None:
    one, two = pair
    alice, bob = one.log_in("alice"), two.log_in("bob")
    alice.chat_with(2)
    for number in range(10):
        alice.say(str(number))
        bob.expect_message(f"alice:{number}")
    alice.expect_pong()
    for node, name in ((one, "chat_messages_handed_on_total"), (two, "chat_messages_taken_on_total")):
        figures = node.metrics()
        assert figures[name] == 10
        assert figures["chat_messages_in_flight"] == 0


# A node that fails or is paused


def test_a_node_that_is_killed_has_its_users_offline_after_the_lease_and_their_names_are_free(
    shared_redis: RedisServer, redis_prefix: str, tmp_path: Path
) -> None:
    with run_group(tmp_path, shared_redis.url, "--lease", 6, prefix=redis_prefix) as group:
        one, two = group.nodes
        alice, bob = two.log_in("alice"), one.log_in("bob")
        alice.chat_with(2)
        early = two.connect()
        one.process.kill()
        early.send(encode_login("bob"))
        early.expect_error(Reason.USER_ALREADY_ONLINE)
        wait_for("bob is offline", lambda: list_again(alice, "alice") == {"alice": 1})
        alice.say("hello?")
        alice.expect_error(Reason.USER_NOT_ONLINE)
        bob = two.log_in("bob")
        alice.say("there you are")
        bob.expect_message("alice:there you are")


def test_a_message_in_flight_to_a_node_that_fails_is_answered_with_an_error(
    shared_redis: RedisServer, redis_prefix: str, tmp_path: Path
) -> None:
    with run_group(tmp_path, shared_redis.url, *FAST, prefix=redis_prefix) as group:
        one, two = group.nodes
        alice, bob = two.log_in("alice"), one.log_in("bob")
        alice.chat_with(2)
        one.process.send_signal(signal.SIGSTOP)
        alice.say("are you there?")
        time.sleep(0.1)
        one.process.kill()
        alice.expect_error(Reason.USER_NOT_ONLINE)
        alice.expect_pong()
        bob.close()


def test_a_node_paused_for_longer_than_its_lease_neither_delivers_nor_speaks_for_its_users(
    shared_redis: RedisServer, redis_prefix: str, tmp_path: Path
) -> None:
    with run_group(tmp_path, shared_redis.url, *FAST, prefix=redis_prefix) as group:
        one, two = group.nodes
        bob, carol, alice = one.log_in("bob"), one.log_in("carol"), two.log_in("alice")
        alice.chat_with(1)
        bob.chat_with(3)
        carol.chat_with(1)
        one.process.send_signal(signal.SIGSTOP)
        alice.say("to the frozen one")
        bob.say("to alice, from the frozen one")
        carol.say("within the frozen node")
        alice.expect_error(Reason.USER_NOT_ONLINE)
        new_bob = two.log_in("bob")
        alice.say("to the new one")
        new_bob.expect_message("alice:to the new one")
        one.process.send_signal(signal.SIGCONT)
        for wire in (bob, carol):
            while packet := wire.read():
                assert packet[0] != PacketType.MESSAGE, packet
        one.wait_for_log("declared it failed")
        one.wait_for_log(f"of group {redis_prefix!r}", times=2)  # it has come back, under another name
        alice.expect_pong()
        new_bob.expect_pong()
        carol = one.log_in("carol")
        assert list_again(carol, "carol") == {"bob": 1, "alice": 3, "carol": 2}
        carol.chat_with(1)
        carol.say("again")
        new_bob.expect_message("carol:again")


def test_a_node_paused_for_less_than_its_lease_goes_on(
    shared_redis: RedisServer, redis_prefix: str, tmp_path: Path
) -> None:
    lease = 8.0
    with run_group(tmp_path, shared_redis.url, "--lease", lease, prefix=redis_prefix) as group:
        one, two = group.nodes
        with one.log_in("bob") as bob, two.log_in("alice") as alice:
            alice.chat_with(1)
            one.process.send_signal(signal.SIGSTOP)
            alice.say("wait for it")
            time.sleep(lease / 5)
            one.process.send_signal(signal.SIGCONT)
            bob.expect_message("alice:wait for it")
            alice.expect_pong()


def test_a_node_that_stops_says_goodbye_and_its_users_are_offline_at_once(
    pair: tuple[ServerProcess, ServerProcess],
) -> None:
    one, two = pair
    bob, alice = one.log_in("bob"), two.log_in("alice")
    assert one.stop() == 0
    bob.expect_error(Reason.SERVER_SHUTTING_DOWN)
    assert list_again(alice, "alice") == {"alice": 2}


# Redis is away


@pytest.mark.slow
def test_while_redis_is_away_users_of_one_node_chat_and_all_else_is_refused_until_it_returns(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    lease = 5.0  # in which the second node comes back, however late it tries
    with run_group(tmp_path, redis_server.url, "--lease", lease, "--history", "off", "--metrics-port", 0) as group:
        one, two = group.nodes
        alice, bob, carol = one.log_in("alice"), one.log_in("bob"), two.log_in("carol")
        alice.chat_with(2)
        bob.chat_with(3)
        redis_server.stop()
        one.wait_for_log("ERROR Redis")
        alice.say("here")
        bob.expect_message("alice:here")
        refused: list[tuple[Wire, bytes]] = [
            (bob, encode_message(b"to another node")),
            (alice, encode_chat_init(3)),
            (alice, encode_login("alice")),
            (one.connect(), encode_login("dave")),
            (one.connect(), encode_login("carol")),
        ]
        for wire, packet in refused:
            wire.send(packet)
            wire.expect_error(Reason.STORAGE_UNAVAILABLE)
        figures = one.metrics()
        assert figures["chat_online"] == 2
        assert "chat_signed_up" not in figures
        time.sleep(1.2 * lease)
        alice.say("still here")
        bob.expect_message("alice:still here")
        redis_server.start()
        one.wait_for_log("Redis is back")
        two.wait_for_log("Redis is back")
        bob.say("over there")
        carol.expect_message("bob:over there")
        assert list_again(carol, "carol") == {"alice": 1, "bob": 2, "carol": 3}
        assert two.log_in("dave").users == {"alice": 1, "bob": 2, "carol": 3, "dave": 4}


def test_a_user_who_left_while_redis_was_away_is_offline_when_it_returns(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    with run_group(tmp_path, redis_server.url) as group:
        one, two = group.nodes
        alice, carol = one.log_in("alice"), two.log_in("carol")
        redis_server.stop()
        one.wait_for_log("ERROR Redis")
        alice.close()
        one.wait_for_log("alice disconnected")
        redis_server.start()
        one.wait_for_log("Redis is back")
        two.wait_for_log("Redis is back")
        assert list_again(carol, "carol") == {"carol": 2}
        two.log_in("alice")


def test_a_node_uses_little_cpu_while_redis_is_away(redis_server: RedisServer, tmp_path: Path) -> None:
    with run_group(tmp_path, redis_server.url, nodes=1) as group:
        redis_server.stop()
        group.wait_for_log("ERROR Redis")
        before, began = _cpu_seconds(group.process.pid), time.monotonic()
        time.sleep(3)
        share = (_cpu_seconds(group.process.pid) - before) / (time.monotonic() - began)
        assert share < 0.3
        assert group.log.count("ERROR") == 1


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_connections_that_are_cut_lose_nothing(redis_server: RedisServer, tmp_path: Path) -> None:
    with run_group(tmp_path, redis_server.url, "--lease", 5) as group:
        alice, bob = group.nodes[0].log_in("alice"), group.nodes[1].log_in("bob")
        alice.chat_with(2)
        for first in range(0, 1500, 300):
            for number in range(first, first + 300):
                alice.say(str(number))
                if number % 100 == 50:
                    redis_server.cut_connections()
            refused = read_up_to_pong(alice).count(Reason.STORAGE_UNAVAILABLE)
            numbers = [int(text.removeprefix("alice:")) for text in read_up_to_pong(bob)]
            assert numbers == sorted(set(numbers))
            assert len(numbers) + refused == 300


def read_up_to_pong(wire: Wire) -> list[str]:
    """The texts of the Messages and Errors that come before the answer to a Ping."""
    wire.send(encode(PacketType.PING, b""))
    texts = []
    while (packet := wire.read()) != (PacketType.PONG, b""):
        assert packet is not None
        texts.append(packet[1][2:].decode())
    return texts


# How it starts


@pytest.mark.parametrize(
    ("options", "status", "line"),
    [
        (
            ("--redis", "redis://127.0.0.1:1/0", "--wait-for-redis", "0"),
            1,
            r"cannot start: Redis: Error 111 connecting to 127.0.0.1:1",
        ),
        (
            ("--redis", "redis://127.0.0.1:1/0", "--wait-for-redis", "1"),
            1,
            r"cannot start: Redis(| is away): Error 111",
        ),
        (("--redis", "redis://127.0.0.1:1/0?no_such=option"), 1, r"cannot start: Redis( is away)?: .*no_such"),
        (("--redis", "http://127.0.0.1"), 2, r"--redis: this is not a URL of Redis"),
        (("--redis", "redis://127.0.0.1:1/0", "--redis-prefix", "a b"), 2, r"'a b' has characters other than letters"),
        (("--redis", "redis://127.0.0.1:1/0", "--lease", "0.1"), 2, r"'0.1' is too short"),
    ],
)
def test_a_node_that_cannot_start_says_why(options: tuple[str, ...], status: int, line: str, tmp_path: Path) -> None:
    run = run_to_end("--port", 0, "--data-dir", tmp_path, *options)
    assert run.returncode == status, run.stderr
    assert re.search(line, run.stderr.splitlines()[-1]), run.stderr
    assert "Traceback" not in run.stderr


def test_a_node_waits_for_a_redis_that_starts_after_it(tmp_path: Path) -> None:
    with run_redis(tmp_path / "redis") as redis:
        redis.kill()
        server = launch_server(tmp_path / "data", "--redis", redis.url)
        server.wait_for_log("waiting for it, 60 s at most")
        redis.start()
        with expecting_clean_end(server) as node, node.log_in("alice"):
            assert node.log.count("waiting for it") == 1


def test_a_node_that_waits_for_redis_can_be_stopped(tmp_path: Path) -> None:
    server = launch_server(tmp_path / "data", "--redis", "redis://127.0.0.1:1/0")
    server.wait_for_log("waiting for it")
    assert server.stop() == 0
    assert "stopped before it had started" in server.log


def test_redis_may_ask_for_a_password_and_speak_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    with run_redis(tmp_path / "redis", password="geheim", authority=authority) as redis:
        url = f"{redis.url}?ssl_ca_certs={redis.ca_file}"
        with run_group(tmp_path, url) as group:
            alice, bob = group.log_in("alice"), group.log_in("bob")
            alice.chat_with(2)
            alice.say("hi")
            bob.expect_message("alice:hi")
            assert "geheim" not in group.log
        wrong = run_to_end("--port", 0, "--data-dir", tmp_path / "d", "--redis", url.replace("geheim", "falsch"))
        assert wrong.returncode == 1
        assert "cannot start: " in wrong.stderr
        assert "falsch" not in wrong.stderr


def test_several_nodes_listen_on_one_port(shared_redis: RedisServer, redis_prefix: str, tmp_path: Path) -> None:
    with run_group(tmp_path, shared_redis.url, "--reuse-port", nodes=1, prefix=redis_prefix) as one:
        options = ("--reuse-port", "--port", one.port)
        with run_group(tmp_path / "two", shared_redis.url, *options, nodes=1, prefix=redis_prefix) as two:
            wires = [one.log_in(f"u{number}") for number in range(16)]
            assert set(list_again(wires[0], "u0")) == {f"u{number}" for number in range(16)}
            assert one.log.count("logged in") + two.log.count("logged in") == 16
            assert one.log.count("logged in") < 16
            assert two.log.count("logged in") < 16
