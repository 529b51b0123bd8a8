"""A slow reader delays nobody else: a short run of the load tester beside many of them (long: `make slow-reader`)."""

from pathlib import Path

import pytest

from stress.slow_reader import KINDS, PLACES, measure
from testkit.server import StartServer

EACH = 5
SECONDS = 6


@pytest.mark.slow
def test_flooded_slow_readers_cost_other_users_no_message(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--pool-size", PLACES, "--write-timeout", 1)
    readers = [reads for reads in KINDS.values() for _ in range(EACH)]
    measured = measure(server, tmp_path, readers, SECONDS)
    assert measured.run.status == 0, measured.run.explain()
    assert measured.run.is_balanced, measured.run.explain()
    assert measured.lost == 0
    assert measured.run.ledger["delivered"] > 0
    dropped = [number for number in range(len(readers)) if f"slow-{number} disconnected: Too Slow" in server.log]
    assert dropped == list(range(len(readers))), "not every slow reader was dropped"
    assert "load-" not in "".join(line for line in server.log.splitlines() if "Too Slow" in line)
