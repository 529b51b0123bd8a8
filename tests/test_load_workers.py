"""Runs in more than one process."""

import csv
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from testkit.loadtests import (
    CHAT,
    LoadRun,
    LocustProcess,
    load,
    read_ledger,
    run_locust,
    signed_up,
    start_locust,
    two_processes,
)
from testkit.ports import free_port
from testkit.processes import wait_for
from testkit.server import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.measured]
USERS = 20
ENOUGH = 100  # messages of each worker


class Cluster:
    """A master and its workers, each a process of its own, in a folder of its own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._port = free_port()
        self.workers: list[LocustProcess] = []

    def start_worker(self) -> LocustProcess:
        where = ("--master-host", "127.0.0.1", "--master-port", self._port)
        worker = self._start("worker", "--worker", *where, headless=False)
        self.workers.append(worker)
        return worker

    def start_master(self, *options: object, workers: int, files: tuple[Path, ...] = (CHAT,)) -> LocustProcess:
        where = ("--master-bind-host", "127.0.0.1", "--master-bind-port", self._port)
        return self._start("master", "--master", "--expect-workers", workers, *where, *options, files=files)

    def _start(
        self, name: str, *options: object, files: tuple[Path, ...] = (CHAT,), headless: bool = True
    ) -> LocustProcess:
        folder = self._folder / f"{name}-{time.monotonic_ns()}"
        folder.mkdir()
        return self._stack.enter_context(start_locust(folder, *options, files=files, headless=headless))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path, stack)


@pytest.fixture
def patient(tmp_path: Path) -> tuple[Path, ...]:
    """Files of a master that takes no worker for missing because it is held up."""
    file = tmp_path / "patient.py"
    file.write_text("from locust import runners\n\nrunners.HEARTBEAT_LIVENESS = 60\n")
    return CHAT, file


def wait_for_both(server: ServerProcess) -> None:
    """Until the users of each worker have said enough to each other, by the server's database."""

    def said() -> list[int]:
        with closing(sqlite3.connect(server.data_dir / "chats.db")) as chats:
            pairs = chats.execute("SELECT low, messages FROM pairs").fetchall()
        with (server.data_dir / "users.csv").open(newline="") as file:
            ranks = {int(line[0]): int(line[1].removeprefix("load-")) % 2 for line in csv.reader(file)}
        return [sum(messages for user_id, messages in pairs if ranks[user_id] == rank) for rank in (0, 1)]

    wait_for("messages of both workers", lambda: min(said()) > ENOUGH)


def expect_two_workers(run: LoadRun, ledger: Path, names: list[str]) -> None:
    """A clean run, to which both workers have contributed; the numbers of one are even, of the other odd."""
    assert run.status == 0, run.explain()
    assert "Traceback" not in run.log
    assert run.is_balanced
    assert run.faults == {}
    assert run.failed == set()
    assert run.verdict["missing_reports > 0"].figure == "0"
    assert run.rows["deliver"].count == run.rows["send"].count == run.ledger["sent"]
    assert sorted(names) == sorted(f"load-{number}" for number in range(USERS))
    delivered = [0, 0]
    for (sender, receiver), line in read_ledger(ledger).items():
        ranks = {int(name.removeprefix("load-")) % 2 for name in (sender, receiver)}
        assert len(ranks) == 1, "a pair belongs to one worker"
        delivered[ranks.pop()] += int(line["delivered"])
    assert min(delivered) > ENOUGH
    assert sum(delivered) == run.ledger["delivered"]


def test_two_processes_share_the_users(server: ServerProcess, tmp_path: Path, patient: tuple[Path, ...]) -> None:
    options = [*load(server.address, USERS, 5), *two_processes(), "--ledger", "ledger.csv"]
    run = run_locust(tmp_path, *options, files=patient)
    expect_two_workers(run, tmp_path / "ledger.csv", signed_up(server.data_dir))


def test_master_and_workers_may_be_started_apart(
    server: ServerProcess, cluster: Cluster, tmp_path: Path, patient: tuple[Path, ...]
) -> None:
    workers = [cluster.start_worker(), cluster.start_worker()]
    ledger = tmp_path / "ledger.csv"
    master = cluster.start_master(*load(server.address, USERS), "--ledger", ledger, workers=2, files=patient)
    wait_for("users in the server", lambda: len(signed_up(server.data_dir)) == USERS)
    wait_for_both(server)
    master.interrupt()
    run = master.end()
    expect_two_workers(run, ledger, signed_up(server.data_dir))
    for worker in workers:
        ended = worker.end()
        assert ended.status == 0, ended.explain()
        assert "Traceback" not in ended.log


def test_a_worker_that_is_killed_fails_the_run(server: ServerProcess, cluster: Cluster) -> None:
    workers = [cluster.start_worker(), cluster.start_worker()]
    master = cluster.start_master(*load(server.address, 8), workers=2)
    wait_for_both(server)
    workers[0].kill()
    master.interrupt()
    run = master.end()
    assert run.status == 1, run.explain()
    assert "missing_reports > 0" in run.failed
    assert run.verdict["missing_reports > 0"].figure == "1"
    assert run.ledger["delivered"] > 0  # of the other one
    assert run.is_balanced
    assert "Traceback" not in run.log
    workers[1].end()


def test_a_run_that_loses_all_its_workers_fails(server: ServerProcess, cluster: Cluster) -> None:
    worker = cluster.start_worker()
    master = cluster.start_master(*load(server.address, 4, 600), "--drain", 1, workers=1)
    master.wait_for_users()
    worker.kill()
    run = master.end(30)  # long before its time: there is nothing left to wait for
    assert run.status == 1, run.explain()
    assert run.verdict["missing_reports > 0"].figure == "1"


def test_ctrl_c_ends_all_processes_in_order(server: ServerProcess, tmp_path: Path, patient: tuple[Path, ...]) -> None:
    options = [*load(server.address, USERS, rate=100), *two_processes(), "--ledger", "ledger.csv"]
    with start_locust(tmp_path, *options, files=patient) as locust:
        wait_for("users in the server", lambda: len(signed_up(server.data_dir)) == USERS)
        wait_for_both(server)
        locust.interrupt()
        run = locust.end()
    expect_two_workers(run, tmp_path / "ledger.csv", signed_up(server.data_dir))


def test_a_host_where_nobody_answers_ends_a_run_of_two_processes(tmp_path: Path) -> None:
    run = run_locust(tmp_path, *load(f"127.0.0.1:{free_port()}", USERS, 60), *two_processes())
    assert run.status == 1, run.explain()
    assert 1 <= run.rows["connect"].failures <= 2  # one for each worker
    assert run.failed == {"connect.failures > 0", "given_up > 0"}
    assert "Traceback" not in run.log
