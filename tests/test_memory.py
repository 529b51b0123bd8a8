"""What the server can come to need of memory: the bound that it logs, and hostile clients who try it."""

import re
import sys
from pathlib import Path

import pytest

from chatserver.listener import RECEIVE_BUFFER_BYTES
from chatserver.operations import memory
from chatserver.operations.options import parse_options
from chatserver.transport.connection import RECV_BYTES
from chatserver.transport.outbox import PUT_BYTES, Outbox
from protocol import Envelope
from stress.hostile import attack
from testkit.server import StartServer


def growth(*options: str) -> int:
    """How much more memory the server may need with these options than without, in bytes."""
    return sum(memory.terms(parse_options(options)).values()) - sum(memory.terms(parse_options([])).values())


def test_each_place_more_costs_what_a_place_costs() -> None:
    assert growth("--pool-size", "40") >= 20 * memory.place(parse_options([]))
    assert memory.place(parse_options([])) > 2 * 64 * 1024, "both outboxes, that of a client and of its predecessor"


def test_the_outboxes_count_for_those_who_are_served_and_those_who_are_seen_off() -> None:
    assert growth("--outbox-bytes", "165536") >= 20 * memory.SLACK * 2 * 100_000


def test_each_user_more_costs_what_a_user_costs() -> None:
    notices = 20 * memory.SLACK * memory.NOTICE_BYTES  # each place may be owed one
    assert growth("--id-width", "2", "--max-users", "10128") == 10_000 * (memory.USER_BYTES + notices)


def test_with_tls_each_connection_costs_more() -> None:
    options = parse_options([])
    plain = memory.place(options)
    options.tls_cert = "server.pem"
    assert memory.place(options) >= plain + 2 * memory.TLS_BYTES


def test_what_the_kernel_keeps_follows_the_places_and_the_backlog() -> None:
    few, many = parse_options(["--backlog", "1"]), parse_options(["--backlog", "11"])
    assert memory.kernel_bytes(many) - memory.kernel_bytes(few) == 10 * 2 * RECEIVE_BUFFER_BYTES


def test_the_server_logs_the_bound_at_its_start(start_server: StartServer) -> None:
    server = start_server("--pool-size", 7, "--max-users", 9)
    server.wait_for_log("MiB besides")
    log = server.log
    found = re.search(r"memory: (\d+) MiB now, (\d+) MiB at most \(7 places .*, 9 users .*, 2 hashes .*\)", log)
    assert found, log
    assert 128 < int(found[2]) - int(found[1]) < 200


@pytest.mark.parametrize("size", [2, 5, 36, 140])
def test_an_outbox_is_bounded_in_memory_however_small_the_packets_are(size: int) -> None:
    limit = 64 * 1024
    taken: list[bytes] = []
    box = Outbox(limit, lambda: taken.append(b""))
    kept = 0
    while box._size + PUT_BYTES + size <= limit:
        packet = bytes(size)
        box.put(packet)
        kept += -(-sys.getsizeof(packet) // 16) * 16 + 9  # as Python's allocator rounds it, and the queue's slot
    assert limit / 3 < kept <= limit


def test_the_messages_of_one_chunk_take_no_more_than_is_counted_for_them() -> None:
    envelope = Envelope("n" * 32)
    for length in range(1, 137):
        wrapped = -(-sys.getsizeof(envelope.wrap(b"x" * length)) // 16) * 16 + 9
        assert RECV_BYTES // (4 + length) * wrapped <= RECV_BYTES // memory.TINY_PACKET_BYTES * memory.WRAPPED_BYTES


@pytest.mark.slow
def test_hostile_clients_cannot_make_the_server_exceed_its_bound_nor_lose_an_honest_message(tmp_path: Path) -> None:
    outcome = attack(tmp_path / "data", seconds=10)
    print(outcome.summary())
    assert not outcome.faults(), outcome.summary()
    assert outcome.peak > outcome.bound / 10, "a bound that is far too high tells nothing"
    assert {"Too Slow", "Login Timeout", "Wrong Password"} <= outcome.outcomes.keys(), outcome.summary()
