"""Groups where much happens at one moment, or late: what a single server's one loop keeps apart by itself."""

import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from chatserver.counters import Counters
from chatserver.messages.delivery import UnrecordedRoute
from chatserver.people.presence import Member
from chatserver.transport.outbox import Outbox
from chatstorage.interface import StorageUnavailable, User
from cluster.archive import SETTLING, ClusterArchive
from cluster.delivery import NodeRoute
from cluster.directory import Directory
from cluster.engine import Engine
from cluster.lease import Lease, now
from cluster.presence import ClusterPresence
from cluster.storage import RedisStorage
from protocol import Feature, PacketType, encode, encode_chat_init, encode_login, encode_message, encode_user
from testkit.group import run_group
from testkit.processes import wait_for
from testkit.redis_server import RedisServer
from testkit.server import ServerProcess
from testkit.wire import Wire
from tests.test_cluster import list_again, read_up_to_pong

pytestmark = pytest.mark.measured

LEASE = 3.5  # longer than whoever comes back later than the others is held up
Pair = tuple[ServerProcess, ServerProcess]
BOB = User(1, "bob")


@pytest.fixture
def pair(shared_redis: RedisServer, redis_prefix: str, tmp_path: Path) -> Iterator[Pair]:
    with run_group(tmp_path, shared_redis.url, prefix=redis_prefix) as group:
        yield group.nodes[0], group.nodes[1]


@pytest.fixture
def engine(shared_redis: RedisServer, redis_prefix: str) -> Iterator[Engine]:
    engine = Engine(shared_redis.url, redis_prefix)
    yield engine
    engine.close()


@pytest.fixture
def directories(engine: Engine) -> Iterator[tuple[Directory, Directory]]:
    """Those of two nodes; bob (1) has signed up."""
    one, two = Directory(engine, LEASE), Directory(engine, LEASE)
    with RedisStorage(one, 10, 255) as storage:
        two.join()
        storage.sign_up(BOB.name, None)
        yield one, two
        two.quit()


@pytest.mark.parametrize("features", [Feature.RECEIPTS, Feature.MAILBOX])
def test_no_message_from_another_node_comes_before_the_end_of_the_list(pair: Pair, features: Feature) -> None:
    one, two = pair
    two.visit("bob")
    alice = one.log_in("alice", features=features)

    def write() -> None:
        while True:  # refused, or to the mailbox, as long as bob is away
            alice.send(encode(PacketType.CHAT_INIT, b"\1"), *(encode_message(b"%d" % n) for n in range(20)))
            gevent.sleep(0.001)

    def ignore() -> None:
        while alice.read():
            pass

    busy = [gevent.spawn(write), gevent.spawn(ignore)]
    own = encode_user("bob", 1, 1)
    for times in range(2, 40):
        with two.connect() as bob:
            bob.send(encode_login("bob"))
            packets = [bob.read(), bob.read()]
            assert [packet and packet[0] for packet in packets] == [PacketType.CONFIG, PacketType.CONFIG]
            assert packets[1] == (own[0], own[2:])
        two.wait_for_log("bob disconnected", times)
    gevent.killall(busy)


def test_mail_arrives_in_order_and_once_however_often_its_reader_reconnects(pair: Pair) -> None:
    one, two = pair
    one.visit("bob")
    alice = one.log_in("alice", features=Feature.MAILBOX)
    alice.chat_with(1)
    read: list[int] = []
    written = 0
    for turn in range(30):
        for _ in range(10):
            alice.say(str(written))
            written += 1
        alice.expect_pong()
        with (one, two)[turn % 2].log_in("bob") as bob:
            read += [int(text.removeprefix("alice:")) for text in read_up_to_pong(bob)]
        wait_for("bob has left", lambda: "bob" not in list_again(alice, "alice"))
    assert read == list(range(written))


def test_a_user_who_leaves_while_its_node_reports_who_is_online_is_offline(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    with run_group(tmp_path, redis_server.url) as group:
        one, two = group.nodes
        bob, alice = one.log_in("bob"), two.log_in("alice")
        redis_server.command("CLIENT", "PAUSE", "1200", "WRITE")
        redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")  # both nodes report again, which takes so long
        time.sleep(0.5)
        bob.close()
        group.wait_for_log("Redis is back", times=2)
        wait_for("bob is offline", lambda: set(list_again(alice, "alice")) == {"alice"})
        two.log_in("bob").close()


class Departures:
    """A queue and a directory for ClusterArchive, whose steps the test takes; `log` has what Redis would execute."""

    def __init__(self) -> None:
        self.engine = None
        self.has_unwritten = True
        self.log: list[str] = []
        self.may_commit, self.reports_fail = Event(), False
        self.archive = ClusterArchive(None, self, self, Counters(), 10)  # type: ignore[arg-type]

    def leave(self) -> None:
        """User 1 leaves with something unwritten, as ClusterPresence has it."""
        self.archive.has_changed(1)
        self.log.append("released")
        self.archive.settle(1)

    def has_in_flight(self, _: int) -> bool:
        return False

    def commit(self) -> None:
        self.may_commit.wait()

    def settled(self, _: int) -> None:
        self.log.append("settled")
        gevent.sleep(0)
        if self.reports_fail:
            raise StorageUnavailable("on purpose")


@pytest.fixture
def departures(monkeypatch: pytest.MonkeyPatch) -> Departures:
    monkeypatch.setattr("cluster.archive.RETRY_SECONDS", 0.01)
    return Departures()


def test_a_departure_is_not_reported_as_settled_by_what_was_written_for_an_earlier_one(departures: Departures) -> None:
    departures.leave()
    gevent.sleep(0)
    departures.leave()
    departures.may_commit.set()
    wait_for("nothing to settle", lambda: not departures.archive.settling)
    assert departures.log == ["released", "released", "settled"]


def test_a_departure_during_a_report_that_fails_is_settled_too(departures: Departures) -> None:
    departures.reports_fail = True
    departures.may_commit.set()
    departures.leave()
    wait_for("a report", lambda: departures.log == ["released", "settled"])
    departures.leave()
    departures.reports_fail = False
    wait_for("nothing to settle", lambda: not departures.archive.settling)
    assert departures.log[-1] == "settled"


def test_a_departure_while_an_earlier_one_is_reported_is_settled_after_it(departures: Departures) -> None:
    departures.may_commit.set()
    departures.leave()
    wait_for("a report", lambda: departures.log == ["released", "settled"])
    departures.leave()
    wait_for("nothing to settle", lambda: not departures.archive.settling)
    assert departures.log == ["released", "settled", "released", "settled"]


def test_a_user_who_comes_and_goes_while_redis_cannot_be_written_is_not_waited_for_afterwards(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Twice within two seconds: what the node writes of the first departure meets the second one."""
    with run_group(tmp_path, redis_server.url) as group:
        one, two = group.nodes
        bob, carol = one.log_in("bob"), one.log_in("carol")
        carol.chat_with(1)
        redis_server.command("REPLICAOF", "127.0.0.1", "1")
        carol.say("unwritten")
        carol.expect_pong()
        bob.expect_message("carol:unwritten")
        time.sleep(0.1)
        began = time.monotonic()
        bob.close()
        for moment, step in (
            (0.3, ("REPLICAOF", "NO", "ONE")),
            (0.97, ("REPLICAOF", "127.0.0.1", "1")),
            (1.3, ()),
            (1.8, ("REPLICAOF", "NO", "ONE")),
        ):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            if step:
                redis_server.command(*step)
                continue
            carol.send(encode_chat_init(2), encode_message(b"to myself"), encode(PacketType.PING, b""))
            read_up_to(carol, PacketType.PONG)
            with one.connect() as again:  # refused, and yet perhaps executed
                again.send(encode_login("bob"))
                again.read()
        group.wait_for_log("Redis is back", times=2)
        for node in (one, two, one):
            with returned(node, "bob") as again:
                again.expect_pong()
            carol.send(encode_chat_init(1), encode_message(b"are you there?"), encode(PacketType.PING, b""))
            read_up_to(carol, PacketType.PONG)
        wait_for("nothing is left", lambda: redis_server.command("EXISTS", "chat:settling:1") == "0")


def read_up_to(wire: Wire, last: PacketType) -> None:
    while (packet := wire.read()) and packet[0] != last:
        continue


def returned(server: ServerProcess, name: str) -> Wire:
    """A client with this name, as soon as it is let in."""
    while True:
        wire = server.connect()
        wire.send(encode_login(name))
        packet = wire.read()
        while packet and packet[0] == PacketType.CONFIG:
            if name.encode() in packet[1]:
                return wire
            packet = wire.read()
        wire.close()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_redis_paused_for_longer_than_the_lease_disconnects_nobody(redis_server: RedisServer, tmp_path: Path) -> None:
    with run_group(tmp_path, redis_server.url, "--lease", LEASE, nodes=3) as group:
        wires = [group.log_in(name) for name in ("alice", "bob", "carol")]
        time.sleep(1.25 * LEASE)  # from here on each node may end the others
        redis_server.pause()
        time.sleep(1.1 * LEASE)
        group.wait_for_log("ERROR Redis", times=3)
        redis_server.resume()
        group.wait_for_log("Redis is back", times=3)
        for wire, name in zip(wires, ("alice", "bob", "carol"), strict=True):
            assert set(list_again(wire, name)) == {"alice", "bob", "carol"}
        wires[0].chat_with(3)
        wires[0].say("still here")
        wires[2].expect_message("alice:still here")
        assert "declared it failed" not in group.log


def test_unwritten_mail_of_a_failed_node_delays_nobody(pair: Pair, engine: Engine) -> None:
    one, _ = pair
    one.visit("bob")
    engine.call("SADD", engine.key("settling", 1), "0123456789ab")
    with one.log_in("bob") as bob:
        bob.expect_pong()


def test_connections_to_redis_can_be_opened_any_number_of_times(engine: Engine) -> None:
    for _ in range(300):
        engine.connect().disconnect()  # type: ignore[no-untyped-call]
    assert engine.call("PING")


def test_a_late_request_does_not_release_a_name(engine: Engine, directories: tuple[Directory, Directory]) -> None:
    one, two = directories
    one.claim(BOB)
    assert one.rejoin([BOB], []) == []
    late = Directory(engine, LEASE)
    late.node = one.node  # what the same node asked for before it rejoined
    late.release(BOB.id, settling=False)
    assert one.is_online(BOB.id)
    two.release(BOB.id, settling=False)
    assert one.is_online(BOB.id), "another node cannot release it"
    one.release(BOB.id, settling=False)
    assert not one.is_online(BOB.id)


def test_a_rejoin_says_exactly_whose_mail_is_unwritten(
    engine: Engine, directories: tuple[Directory, Directory]
) -> None:
    """Whatever has become of earlier reports: those that Redis has not executed, and those whose answer was lost."""
    one, _ = directories
    for user_id in (1, 2):
        one.release(user_id, settling=True)
    assert one.rejoin([], [2, 3]) == []
    assert [bool(engine.run(SETTLING, user_id)) for user_id in (1, 2, 3)] == [False, True, True]
    one.settled(2)
    assert not engine.run(SETTLING, 2)


def test_ids_go_on_from_the_clock_of_the_node_that_a_user_has_left(directories: tuple[Directory, Directory]) -> None:
    ahead, behind = directories
    ahead.claim(BOB)
    ahead.clock.hear(time.time_ns() // 1000 + 60_000_000)
    given = ahead.clock.new_id()
    ahead.release(BOB.id, settling=False)
    behind.claim(BOB)
    assert behind.clock.new_id() > given


def test_a_reserved_outbox_is_free_again_after_a_login_that_fails(directories: tuple[Directory, Directory]) -> None:
    directory, other = directories
    other.claim(BOB)
    presence = ClusterPresence(directory, Lease(LEASE), 1, None)
    member = Member(BOB.id, encode_user(BOB.name, BOB.id, 1), Outbox(1024, lambda: None))
    assert not presence.join(member)
    assert not member.outbox.is_reserved


def test_a_node_relays_at_once_only_while_its_lease_is_certain_and_the_sender_is_here(
    directories: tuple[Directory, Directory],
) -> None:
    lease = Lease(LEASE)
    presence = ClusterPresence(directories[0], lease, 1, None)
    outbox = Outbox(1024, lambda: None)
    bob = Member(BOB.id, encode_user(BOB.name, BOB.id, 1), outbox)
    route = NodeRoute(UnrecordedRoute(outbox, Counters()), presence, bob)
    assert route.is_open
    assert not route.offer(b"x", 1), "the lease was never confirmed"
    lease.confirm(now())
    assert not route.offer(b"x", 1), "the sender is not here"
    presence.here[BOB.id] = bob
    assert route.offer(b"x", 1)
    lease.confirm(now() - LEASE)
    assert not route.offer(b"x", 2)
    assert outbox.take() == b"x"
