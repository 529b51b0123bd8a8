"""What starting any process takes: where it runs, how long to wait for it, and in which environment."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from testkit import HarnessError

ROOT = Path(__file__).parent.parent
DEADLINE = 30.0  # seconds: generous, since machines are slow and shared
SYSTEM_FOLDERS = ":/usr/sbin:/usr/local/sbin"  # where servers are installed; not every user has them on PATH
UNPATCHED = "CHAT_TEST_UNPATCHED"  # set in the process of run_unpatched


def wait_for(what: str, condition: Callable[[], object], deadline: float = DEADLINE) -> None:
    """Poll until `condition` holds. Raises HarnessError, which names `what`, after `deadline` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() >= end:
            raise HarnessError(f"waited {deadline} s in vain: {what}")
        time.sleep(0.01)


def find_program(name: str) -> str | None:
    """The path of an installed program, None if there is none."""
    return shutil.which(name, path=os.environ.get("PATH", "") + SYSTEM_FOLDERS)


def untraced() -> dict[str, str]:
    """The environment of a process whose coverage is not measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COV")}


def run_unpatched(test_file: str) -> None:
    """Run these tests again in a process without gevent, where threads are real. Raises HarnessError if one fails."""
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider", test_file]
    environment = untraced() | {UNPATCHED: "1"}  # coverage imports gevent
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    if run.returncode:
        raise HarnessError(run.stdout + run.stderr)
