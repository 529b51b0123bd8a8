"""The verdict of a run: conditions, exit statuses, and a generator that cannot keep up."""

from pathlib import Path

import pytest

from testkit.faulty_proxy import FaultyProxy, lose_every
from testkit.loadtests import load, run_locust, run_until
from testkit.server import ServerProcess

pytestmark = pytest.mark.measured

INVALID = "INVALID: the load generator itself was the bottleneck, so its latencies say nothing (exit status 3)"
SLOW_GENERATOR = ("--max-generator-cpu", 1)


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ("nonsense", "'nonsense' is not a condition; for example deliver.p99>50ms"),
        ("deliver.p99>50", "a time needs us, ms or s"),
        ("found>0", "'found' is not a count; the counts are sent, delivered"),
    ],
)
def test_a_condition_that_is_none_is_refused_before_the_run(tmp_path: Path, condition: str, text: str) -> None:
    run = run_locust(tmp_path, *load("127.0.0.1:1", 4, 60), "--fail-if", condition)
    assert run.status == 2, run.explain()
    assert "argument --fail-if: " in run.log.strip().splitlines()[-1]
    assert text in run.log.strip().splitlines()[-1]
    assert "Traceback" not in run.log
    assert run.verdict == {}


def test_each_condition_is_judged_and_one_that_holds_fails_the_run(server: ServerProcess, tmp_path: Path) -> None:
    conditions = ("deliver.p99<60s", "login.failures>50%", "deliver.rate<1", "sent<1", "lost>3")
    options = [option for condition in conditions for option in ("--fail-if", condition)]
    run = run_until(tmp_path, {"deliver": 100}, *load(server.address, 4), *options)
    assert run.status == 1, run.explain()
    assert run.failed == {"deliver.p99 < 60 s"}
    for condition in ("login.failures > 50%", "deliver.rate < 1", "sent < 1", "lost > 3"):
        assert run.verdict[condition].result == "pass"
    assert "lost > 0" not in run.verdict  # the condition has taken its place
    assert run.verdict["sent < 1"].figure == str(run.ledger["sent"])
    assert "FAILED (exit status 1)" in run.out


def test_a_latency_that_was_not_measured_fails_the_run(server: ServerProcess, tmp_path: Path) -> None:
    run = run_until(tmp_path, {"deliver": 1}, *load(server.address, 2), "--fail-if", "refresh.p99>1s", "Chatter")
    assert run.status == 1, run.explain()
    assert run.failed == {"refresh.p99 > 1 s"}
    assert run.verdict["refresh.p99 > 1 s"].figure == "no such row: not measured"


@pytest.mark.slow
def test_a_generator_that_cannot_keep_up_makes_the_latencies_invalid(server: ServerProcess, tmp_path: Path) -> None:
    options = [*load(server.address, 8), "--fail-if", "deliver.p99>60s", *SLOW_GENERATOR]
    run = run_until(tmp_path, {"deliver": 300}, *options)
    assert run.status == 3, run.explain()
    assert run.verdict["deliver.p99 > 60 s"].result == "invalid"
    assert run.failed == {"generator.cpu > 1%"}
    assert run.is_balanced
    assert INVALID in run.out


@pytest.mark.slow
def test_faults_fail_the_run_whatever_the_generator_did(server: ServerProcess, tmp_path: Path) -> None:
    with FaultyProxy(server.host, server.port, lose_every(50)) as proxy:
        options = [*load(proxy.address, 4), "--fail-if", "deliver.p99>60s", "--drain", 1, *SLOW_GENERATOR]
        run = run_until(tmp_path, {"deliver": 300}, *options, "Chatter")
    assert run.status == 1, run.explain()
    assert run.verdict["deliver.p99 > 60 s"].result == "invalid"
    assert run.failed == {"generator.cpu > 1%", "lost > 0"}
