"""The load tester's first user, with real Locust and the real server."""

import csv
import subprocess
import sys
from pathlib import Path

from tests.processes import DEADLINE, ROOT, ServerProcess


def run_locust(folder: Path, *options: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "locustfiles" / "chat.py"), "--headless"]
    command += ["--csv", str(folder / "load"), "--run-time", "3s", "--spawn-rate", "20", *map(str, options)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=2 * DEADLINE, check=False)


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "load_stats.csv").open(newline="") as file:
        return {row["Name"]: row for row in csv.DictReader(file)}


def test_what_is_sent_is_received_and_counted_from_any_directory(server: ServerProcess, tmp_path: Path) -> None:
    done = run_locust(tmp_path, "--users", 10, "--host", f"tcp://{server.address}")
    assert done.returncode == 0, done.stderr
    figures = rows(tmp_path)
    sent, delivered = (int(figures[name]["Request Count"]) for name in ("send", "deliver"))
    assert sent > 50
    assert delivered == sent
    assert figures["Aggregated"]["Failure Count"] == "0"
    assert len((server.data_dir / "users.csv").read_text().splitlines()) == 10


def test_a_server_that_is_not_there_fails_the_run(tmp_path: Path) -> None:
    done = run_locust(tmp_path, "--users", 1, "--host", "tcp://127.0.0.1:1")
    assert done.returncode == 1
    assert "nobody answers at 127.0.0.1:1" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_host_that_is_none_fails_the_run(tmp_path: Path) -> None:
    done = run_locust(tmp_path, "--users", 1, "--host", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert "http:// is unknown" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
