"""What docs/LOADTEST.md promises for tests of other protocols, and how fast the load tester itself is."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import gevent
import pytest

from testkit.loadtests import CAPACITY, load, run_locust, run_until, start_locust
from testkit.ports import answers, free_port
from testkit.processes import DEADLINE, ROOT, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.measured]

ECHO = ROOT / "examples" / "echo.py"


@pytest.fixture
def echo_server() -> Iterator[str]:
    """The example's server; its address."""
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "examples.echo", str(port)], cwd=ROOT) as server:
        wait_for("the example's server", lambda: answers(port))
        yield f"127.0.0.1:{port}"
        server.terminate()


def at(address: str) -> list[object]:
    """For 4 users of a server whose addresses have no scheme."""
    return ["--host", address, *load(address, users=4)[2:]]


def test_the_example_tests_a_protocol_of_its_own(echo_server: str, tmp_path: Path) -> None:
    run = run_until(tmp_path, {"deliver": 100}, *at(echo_server), files=(ECHO,))
    assert run.status == 0, run.explain()
    assert run.ledger["delivered"] == run.ledger["sent"]
    assert run.rows["deliver"].count == run.ledger["sent"]
    assert "Traceback" not in run.log


def test_the_example_says_in_a_line_that_its_port_is_taken(echo_server: str) -> None:
    port = echo_server.rpartition(":")[2]
    command = [sys.executable, "-m", "examples.echo", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stderr) == (1, f"echo: port {port}: Address already in use\n")


def test_the_capacity_test_serves_another_protocol_too(echo_server: str, tmp_path: Path) -> None:
    options = ["--first-rate", "4", "--trial-time", "1", "--target-p99", "0.1"]  # ms, which nobody can promise
    run = run_locust(tmp_path, *at(echo_server), *options, files=(ECHO, CAPACITY))
    assert run.status == 1, run.explain()
    assert run.certificate["capacity"].startswith("none found")
    assert run.certificate["users"] == "4, in 1 process"
    assert "p99 over 100 us" in run.out


def test_a_server_that_hangs_up_on_everybody_fails_the_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with suppress(OSError):  # the test is over
                while True:
                    listener.accept()[0].close()

        gevent.spawn(hang_up)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        run = run_until(tmp_path, {"connection": 4}, *at(address), files=(ECHO,))
    assert run.status == 1, run.explain()
    assert run.rows["connection"].failures == 4


def test_an_example_server_that_is_not_there_fails_the_run_at_once(tmp_path: Path) -> None:
    run = run_locust(tmp_path, *at(f"127.0.0.1:{free_port()}"), "--run-time", "60s", files=(ECHO,))
    assert run.status == 1, run.explain()
    assert run.rows["connect"].failures == 1


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("self.go_online()", "enter() has to call go_online()"),
        ('self.receive_message(self.name, line.rstrip("\\n"))', "division by zero"),
        ("self.drain()", "division by zero"),
    ],
)
def test_a_mistake_in_a_user_is_an_exception_and_not_the_servers_fault(
    echo_server: str, tmp_path: Path, mistake: str, told: str
) -> None:
    users = ECHO.read_text()
    assert mistake in users
    file = tmp_path / "mistaken.py"
    file.write_text(users.replace(mistake, "pass" if "online" in mistake else "print(1 / 0)"))
    with start_locust(tmp_path, *at(echo_server), "--drain", 0.1, files=(file,)) as locust:
        locust.wait_for_counts({"connect": 4})
        if "drain" not in mistake:  # which nobody makes before the end
            locust.wait_for_log(told)
        locust.interrupt()
        run = locust.end()
    assert run.status == 1, run.explain()
    assert "exceptions > 0" in run.failed
    assert told in run.log


def test_the_bench_of_the_tester_prints_both_rates_and_the_share_of_locust() -> None:
    command = [sys.executable, "-m", "benchmarks.tester", "--rounds", "1", "--seconds", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=4 * DEADLINE, check=True)
    assert re.search(r"with Locust +\d+ +\d+ +\d+\n", done.stdout), done.stdout
    assert re.search(r"without +\d+ +\d+ +\d+\n", done.stdout), done.stdout
    assert re.search(r"share of Locust itself +-?\d+% +-?\d+% +-?\d+%", done.stdout), done.stdout
