"""The wire tests of one server, unchanged, against groups. `make group-test` is the long form."""

import subprocess
import sys
from itertools import product

import pytest

from tests.engine import NO_REDIS, find_redis
from tests.group import NO_HAPROXY, find_haproxy
from tests.processes import ROOT, untraced

CORE = ("test_chat.py", "test_client.py", "test_errors.py")
EXTENSIONS = ("test_client_features.py", "test_history.py", "test_mailbox.py", "test_presence.py", "test_receipts.py")
GROUPS = {
    "2 nodes": ("--group", "2"),
    "3 nodes behind HAProxy": ("--group", "3", "--haproxy"),
}
RUNS = [*product(CORE, GROUPS), *((tests, "2 nodes") for tests in EXTENSIONS)]
SECONDS = 400  # generous


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize(("tests", "group"), RUNS)
def test_a_group_passes_the_tests_of_one_server(tests: str, group: str) -> None:
    if not find_redis():
        pytest.skip(NO_REDIS)
    if "HAProxy" in group and not find_haproxy():
        pytest.skip(NO_HAPROXY)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{tests}", *GROUPS[group]]
    run = subprocess.run(
        command, cwd=ROOT, env=untraced(), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr
