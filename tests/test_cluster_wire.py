"""The wire tests of a single server, run unchanged against groups.

`make group-test` runs all of them against all groups. Here the many tests of malformed packets are left out, since a
node handles those without its group.
"""

import subprocess
import sys

import pytest

from testkit.group import NO_HAPROXY, find_haproxy
from testkit.processes import ROOT, untraced
from testkit.redis_server import NO_REDIS, find_redis

GROUPS = {
    "2 nodes": ("--group", "2"),
    "3 nodes behind HAProxy": ("--group", "3", "--haproxy"),
}
RUNS = [
    *((tests, "2 nodes") for tests in ("chat", "errors", "mailbox", "receipts")),
    ("client", "3 nodes behind HAProxy"),
]
SECONDS = 400  # generous


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize(("tests", "group"), RUNS)
def test_a_group_passes_the_tests_of_a_single_server(tests: str, group: str) -> None:
    if not find_redis():
        pytest.skip(NO_REDIS)
    if "HAProxy" in group and not find_haproxy():
        pytest.skip(NO_HAPROXY)
    options = ("-q", "-p", "no:cacheprovider", "-k", "not a_protocol_error_closes", *GROUPS[group])
    command = [sys.executable, "-m", "pytest", *options, f"tests/test_{tests}.py"]
    run = subprocess.run(
        command, cwd=ROOT, env=untraced(), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr
