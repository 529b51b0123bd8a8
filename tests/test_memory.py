"""The server's bound on its memory, which it logs, and hostile clients that try to exceed it."""

import re
import sys
from pathlib import Path

import pytest

from chatserver.listener import RECEIVE_BUFFER_BYTES
from chatserver.operations import memory
from chatserver.operations.options import parse_options
from chatserver.transport.connection import RECV_BYTES
from chatserver.transport.outbox import PUT_BYTES, Outbox
from chatstorage.chat_file import ChatFile
from chatstorage.chats import ChatRow
from protocol import Envelope
from stress.hostile import attack
from testkit.server import StartServer


def growth(*options: str) -> int:
    """How much more memory the server may need with these options than without, in bytes."""
    return sum(memory.terms(parse_options(options)).values()) - sum(memory.terms(parse_options([])).values())


def test_each_more_place_adds_its_cost() -> None:
    assert growth("--pool-size", "40") >= 20 * memory.place(parse_options([]))
    assert memory.place(parse_options([])) > 2 * 64 * 1024, (
        "two outboxes: that of the client, and that of a connection that is finishing"
    )


def test_outboxes_count_for_served_clients_and_for_finishing_connections() -> None:
    assert growth("--outbox-bytes", "165536") >= 20 * memory.SLACK * 2 * 100_000


def test_each_more_user_adds_its_cost() -> None:
    notices = 20 * memory.SLACK * memory.NOTICE_BYTES  # each place may be owed one
    assert growth("--id-width", "2", "--max-users", "10128") == 10_000 * (memory.USER_BYTES + notices)


def test_with_tls_each_connection_costs_more() -> None:
    options = parse_options([])
    plain = memory.place(options)
    options.tls_cert = "server.pem"
    assert memory.place(options) >= plain + 2 * memory.TLS_BYTES


def test_kernel_memory_depends_on_the_backlog() -> None:
    few, many = parse_options(["--backlog", "1"]), parse_options(["--backlog", "11"])
    assert memory.kernel_bytes(many) - memory.kernel_bytes(few) == 10 * 2 * RECEIVE_BUFFER_BYTES


def test_the_bound_on_the_disk_counts_every_pair_with_the_longest_messages(tmp_path: Path) -> None:
    packets = Envelope("n" * 32).wrap(b"x" * 136)
    with ChatFile(tmp_path / "chats.db", 1_000_000) as chats:
        rows = [ChatRow(n, 1 + n % 120, 121, 2**31, 1, 0, packets, 0, n) for n in range(1, 20_001)]
        chats.write(rows, {})
    assert (tmp_path / "chats.db").stat().st_size <= len(rows) * memory.MESSAGE_DISK_BYTES
    options = parse_options(["--max-users", "2", "--history-messages", "800", "--mailbox-messages", "10"])
    assert memory.disk_bytes(options) == memory.MESSAGE_DISK_BYTES * (3 * 900 + 2 * 10)
    assert memory.disk_bytes(parse_options(["--history", "off"])) == 0


def test_the_server_logs_the_bound_at_startup(start_server: StartServer) -> None:
    server = start_server("--pool-size", 7, "--max-users", 9)
    server.wait_for_log(r"MiB of kernel buffers; 0.1 GB of past chats at most, on disk")
    log = server.log
    found = re.search(r"memory: (\d+) MiB now, (\d+) MiB at most \(7 places .*, 9 users .*, 2 hashes .*\)", log)
    assert found, log
    assert 128 < int(found[2]) - int(found[1]) < 200


@pytest.mark.parametrize("size", [2, 5, 36, 140])
def test_an_outbox_is_bounded_in_memory_for_packets_of_any_size(size: int) -> None:
    limit = 64 * 1024
    taken: list[bytes] = []
    box = Outbox(limit, lambda: taken.append(b""))
    kept = 0
    while box.size + PUT_BYTES + size <= limit:
        packet = bytes(size)
        box.put(packet)
        kept += -(-sys.getsizeof(packet) // 16) * 16 + 9  # as Python's allocator rounds it, and the queue's slot
    assert limit / 3 < kept <= limit


def test_the_messages_of_one_chunk_take_no_more_memory_than_is_counted() -> None:
    envelope = Envelope("n" * 32)
    for length in range(1, 137):
        wrapped = -(-sys.getsizeof(envelope.wrap(b"x" * length)) // 16) * 16 + 9
        assert RECV_BYTES // (4 + length) * wrapped <= RECV_BYTES // memory.TINY_PACKET_BYTES * memory.WRAPPED_BYTES


@pytest.mark.slow
def test_hostile_clients_neither_exceed_the_memory_bound_nor_cost_an_honest_message(tmp_path: Path) -> None:
    outcome = attack(tmp_path / "data", seconds=10)
    print(outcome.summary())
    assert not outcome.faults(), outcome.summary()
    assert outcome.peak > outcome.bound / 10, "a bound that is far too high is worthless"
    assert {"Too Slow", "Login Timeout", "Wrong Password"} <= outcome.outcomes.keys(), outcome.summary()
