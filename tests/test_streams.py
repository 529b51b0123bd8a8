"""Standard streams that are closed, or that do not block: no traceback, a true exit status, and no line lost."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import gevent
import pytest

from protocol import Feature
from testkit.processes import DEADLINE, ROOT
from testkit.server import ServerProcess, StartServer, run_server

LINES = 900  # more than a pipe holds


@pytest.fixture
def server(start_server: StartServer) -> ServerProcess:
    server = start_server()
    server.visit("bob")
    return server


def command_of(server: ServerProcess, program: str) -> list[str]:
    """`program` with its first words; TERMINAL and ADMIN stand for the two programs on this server."""
    folder = str(server.data_dir)
    words = {"TERMINAL": ["terminal.py", "eve", server.address], "ADMIN": ["admin.py", "--data-dir", folder]}
    first, *rest = program.split()
    return [sys.executable, *words[first], *rest]


@pytest.mark.parametrize(
    ("program", "streams", "status", "complaint"),
    [
        ("TERMINAL", "<&-", 0, ""),
        ("TERMINAL", "</dev/null >&-", 1, "the output cannot be written: Bad file descriptor"),
        ("TERMINAL", "</dev/null >&- 2>&-", 1, ""),
        ("ADMIN passwd bob", "<&-", 1, "no password"),
        ("ADMIN users", ">&-", 1, "the output cannot be written: Bad file descriptor"),
        ("ADMIN users", ">/dev/full", 1, "the output cannot be written: No space left on device"),
        ("ADMIN export", ">&-", 1, "the output cannot be written: Bad file descriptor"),
        ("ADMIN remove bob", "<&- >&- 2>&-", 0, ""),
        ("ADMIN remove bob", ">/dev/full", 0, "the output cannot be written: No space left on device"),
        ("ADMIN remove nobody", "<&- >&- 2>&-", 1, ""),
    ],
)
def test_a_closed_stream_is_no_traceback_and_the_exit_status_is_true(
    server: ServerProcess, program: str, streams: str, status: int, complaint: str
) -> None:
    shell = f"{shlex.join(command_of(server, program))} {streams}"
    done = subprocess.run(
        ["sh", "-c", shell],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert complaint in done.stderr


def test_a_server_with_closed_streams_keeps_them_apart_from_its_files(tmp_path: Path) -> None:
    with run_server(tmp_path / "data", under=["sh", "-c", 'exec "$0" "$@" <&- >&-']) as server:
        server.visit("alice")
        assert (server.data_dir / "users.csv").read_bytes() == b"1,alice\n"


@pytest.mark.parametrize("program", ["TERMINAL --linger 1", "ADMIN export"])
def test_a_pipe_that_does_not_block_loses_no_line_to_a_slow_reader(server: ServerProcess, program: str) -> None:
    server.visit("eve")
    with server.log_in("bob", features=Feature.MAILBOX) as bob:
        bob.chat_with(2)
        for number in range(LINES):
            bob.say(f"{number:04} {'y' * 100}")
        bob.expect_pong()
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    command = command_of(server, program)
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=writes, stderr=subprocess.PIPE
    ) as process:
        os.close(writes)
        gevent.sleep(1)
        with os.fdopen(reads, "rb") as pipe:
            output = gevent.get_hub().threadpool.apply(pipe.read)
        assert process.wait(DEADLINE) == 0
    assert output.count(b"yyy\n") == LINES
