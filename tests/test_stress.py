"""How the programs in stress/ end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from testkit.processes import DEADLINE, ROOT, wait_for

pytestmark = pytest.mark.slow


@contextmanager
def start(name: str, *options: object) -> Iterator[subprocess.Popen[str]]:
    """Start `python -m stress.NAME` in a process group of its own, as a shell does."""
    command = [sys.executable, "-m", f"stress.{name}", *map(str, options)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, process_group=0) as program:
        try:
            yield program
        finally:
            program.kill()


def runs(program: str, processes: list[psutil.Process]) -> bool:
    """Whether one of these processes runs this program."""
    for process in processes:
        with suppress(psutil.Error):  # the process has just ended
            if any(part.endswith(program) for part in process.cmdline()[1:]):
                return True
    return False


@pytest.mark.parametrize(("name", "last"), [("slow_reader", "chat.py"), ("restart", "terminal.py")])
def test_ctrl_c_ends_a_program_and_every_process_it_started(name: str, last: str) -> None:
    with start(name) as program:
        process = psutil.Process(program.pid)
        wait_for(f"{last} runs", lambda: runs(last, process.children(recursive=True)))
        started = process.children(recursive=True)
        os.killpg(program.pid, signal.SIGINT)
        _, errors = program.communicate(timeout=DEADLINE)
    assert (program.returncode, errors) == (130, "stopped\n")
    _, left = psutil.wait_procs(started, DEADLINE)
    assert left == []


def test_clients_that_do_not_come_back_are_named_and_fail_the_run() -> None:
    options = ("--clients", 6, "--terminals", 1, "--restarts", 1, "--down", 3, "--patience", 0)
    with start("restart", *options) as program:
        out, errors = program.communicate(timeout=100)
    assert (program.returncode, errors) == (1, "")
    assert "full jitter: 6 of 6 notified, " in out
    assert "; missing: client-" in out
