"""The log when standard error is full, slow, broken or closed."""

import fcntl
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver.operations.logs import LineHandler
from protocol import encode_login
from testkit.ports import answers, free_port
from testkit.processes import DEADLINE, ROOT, wait_for
from testkit.server import without_lateness
from testkit.wire import Wire

pytestmark = pytest.mark.measured

LOST = re.compile(r"(\d+) lines of this log were lost: nobody reads it")


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("test", logging.INFO, __file__, 1, text, None, None)


class SmallPipe:
    """A pipe that takes one page, and then nothing until it is drained."""

    def __init__(self) -> None:
        if not hasattr(fcntl, "F_SETPIPE_SZ"):
            pytest.skip("only Linux can make a pipe small")
        self.output, self.input = os.pipe()
        for end in (self.output, self.input):
            os.set_blocking(end, False)
        fcntl.fcntl(self.input, fcntl.F_SETPIPE_SZ, 4096)
        self.read = b""

    def drain(self, count: int) -> None:
        try:
            self.read += os.read(self.output, count)
        except BlockingIOError:
            return

    def close(self) -> None:
        os.close(self.output)
        os.close(self.input)


@pytest.fixture
def pipe() -> Iterator[SmallPipe]:
    pipe = SmallPipe()
    yield pipe
    pipe.close()


@given(st.lists(st.tuples(st.integers(1, 20_000), st.integers(0, 10_000)), max_size=30))
def test_every_line_is_whole_or_counted_and_in_order(steps: list[tuple[int, int]]) -> None:
    pipe = SmallPipe()
    handler = LineHandler(pipe.input)
    try:
        for number, (length, drained) in enumerate(steps):
            handler.handle(record(f"{number} {'x' * length}"))
            if drained:
                pipe.drain(drained)
        for _ in range(1000):
            handler.flush()
            pipe.drain(65536)
    finally:
        pipe.close()
    whole: list[int] = []
    lost = 0
    assert not pipe.read or pipe.read.endswith(b"\n")
    for line in pipe.read.decode().splitlines():
        if report := LOST.fullmatch(line):
            lost += int(report[1])
            continue
        number = int(line.split()[0])
        assert line == f"{number} {'x' * steps[number][0]}"
        assert number == len(whole) + lost, "the lines that are missing here have been counted"
        whole.append(number)
    assert len(whole) + lost == len(steps)


def test_a_partly_written_line_is_completed_at_the_end_of_the_process(pipe: SmallPipe) -> None:
    handler = LineHandler(pipe.input)
    handler.handle(record("x" * 5000))
    handler.handle(record("lost"))
    pipe.drain(65536)
    handler.flush()
    pipe.drain(65536)
    line, report, rest = pipe.read.split(b"\n")
    assert line == b"x" * 5000
    assert report == b"1 lines of this log were lost: nobody reads it"
    assert rest == b""


def test_all_lines_of_a_lost_traceback_count(pipe: SmallPipe) -> None:
    handler = LineHandler(pipe.input)
    os.write(pipe.input, b"x" * 4096)
    handler.handle(record("a\nb\nc"))
    pipe.drain(4096)
    pipe.read = b""
    handler.handle(record("d"))
    pipe.drain(4096)
    assert pipe.read == b"3 lines of this log were lost: nobody reads it\nd\n"


def test_a_bad_log_call_raises_nothing(pipe: SmallPipe, capsys: pytest.CaptureFixture[str]) -> None:
    LineHandler(pipe.input).handle(logging.LogRecord("test", logging.INFO, __file__, 1, "%d", ("x",), None))
    assert "Logging error" in capsys.readouterr().err


def test_unencodable_characters_are_logged_escaped(pipe: SmallPipe) -> None:
    LineHandler(pipe.input).handle(record("\ud800"))
    pipe.drain(100)
    assert pipe.read == b"\\ud800\n"


STDERR = {
    "closed": "exec 2>&-",
    "a pipe that nobody reads": "exec 2> >(exec true)",
    "a full device": "exec 2>/dev/full",
}


@pytest.mark.parametrize("stderr", STDERR)
def test_a_server_whose_log_goes_nowhere_still_serves(stderr: str, tmp_path: Path) -> None:
    port = free_port()
    if "full" in stderr and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    script = f'{STDERR[stderr]}; exec "$@"'
    command = ["bash", "-c", script, "bash", sys.executable, "server.py", "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--data-dir", str(tmp_path / "data"), "--log-level", "debug"], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        wait_for("the server", lambda: answers(port) or server.poll() is not None)
        for name in ("alice", "bob"):
            with Wire("127.0.0.1", port) as client:
                client.send(encode_login(name))
                client.read_list(name)
                client.expect_pong()
        server.terminate()
        output, _ = server.communicate(timeout=DEADLINE)
        assert server.returncode == 0
        assert output == b""
        assert (tmp_path / "data" / "users.csv").read_text() == "1,alice\n2,bob\n"
        assert (tmp_path / "data" / "status.csv").read_text() == "1,0\n2,0\n"
        assert (tmp_path / "data" / "passwords.csv").read_text() == ""
    finally:
        server.kill()
        server.communicate()


def test_a_file_that_reuses_the_descriptor_of_standard_error_is_not_written_to(tmp_path: Path) -> None:
    program = (
        "import logging, os, sys\n"
        "from chatserver.operations.logs import start_log\n"
        "print(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT))\n"
        "start_log('info')\n"
        "logging.info('this would spoil the file')\n"
    )
    command = ["bash", "-c", 'exec "$@" 2>&-', "bash", sys.executable, "-c", program, str(tmp_path / "file")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stdout) == (0, "2\n")
    assert (tmp_path / "file").read_bytes() == b""


def test_a_pipe_that_nobody_reads_delays_nobody_and_the_log_reports_its_losses(
    tmp_path: Path,
) -> None:
    port = free_port()
    command = [sys.executable, "server.py", "--port", str(port), "--data-dir", str(tmp_path / "data")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.stderr
        wait_for("the server", lambda: answers(port))
        for _ in range(1000):  # two lines each: more than the 64 KiB that a pipe takes
            Wire("127.0.0.1", port).close()
        with Wire("127.0.0.1", port) as client:
            client.expect_pong()
        first = os.read(process.stderr.fileno(), 65536)
        process.terminate()
        log = (first + process.stderr.read()).decode()
    assert process.returncode == 0
    assert re.search(r"\d+ lines of this log were lost: nobody reads it", log)
    assert log.splitlines()[-1].endswith("stopped")
    assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in without_lateness(log).splitlines())
