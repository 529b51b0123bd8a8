"""A reply comes only after fsync: the system calls of a real server, in their order.

A killed process leaves the page cache whole, so that no kill can show this; losing power can.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from protocol import encode_login
from testkit.processes import DEADLINE, wait_for
from testkit.server import ServerProcess, run_server

TRACED = "pwrite64,pwritev,pwritev2,write,writev,fsync,fdatasync,ftruncate,rename,renameat,renameat2,sendto,sendmsg"
STRACE = ["strace", "-D", "-f", "-tt", "-y", "-s", "200", "-e", f"trace={TRACED}", "-o"]  # -D: the server is our child
CALL = re.compile(r"(?P<name>\w+)\((?:\d+<(?P<file>[^>]*)>)?(?P<arguments>.*)")
RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")
UNFINISHED = " <unfinished ...>"


@dataclass(frozen=True)
class Call:
    """A system call that succeeded. It ran from line `begin` of the trace to line `end`."""

    name: str
    file: str
    arguments: str
    begin: int
    end: int

    @property
    def is_write(self) -> bool:
        return "write" in self.name

    @property
    def is_sync(self) -> bool:
        return self.name in ("fsync", "fdatasync")

    @property
    def is_send(self) -> bool:
        return self.file.startswith("socket:") and (self.is_write or self.name.startswith("send"))


def parse(trace: str) -> list[Call]:
    """The calls in the order in which they ended; of several threads, which interrupt each other's lines."""
    begun: dict[str, tuple[str, int]] = {}
    calls = []
    for number, line in enumerate(trace.splitlines()):
        thread, _, text = line.split(maxsplit=2)
        begin = number
        if text.endswith(UNFINISHED):
            begun[thread] = text.removesuffix(UNFINISHED), number
            continue
        if resumed := RESUMED.fullmatch(text):
            head, begin = begun.pop(thread)
            text = head + resumed[1]
        if (found := CALL.fullmatch(text)) and re.search(r"= \d+$", text):
            calls.append(Call(found["name"], found["file"] or "", found["arguments"], begin, number))
    return calls


def appends(calls: Sequence[Call], folder: Path) -> list[Call]:
    """The writes of whole lines. A status overwritten in place is rewritten at each start and needs no fsync."""
    return [call for call in calls if call.is_write and Path(call.file).parent == folder and '\\n"' in call.arguments]


def is_synced(write: Call, before: Call, calls: Sequence[Call]) -> bool:
    """Whether what was written to a file went to the disk before another call began."""
    return any(
        call.is_sync and call.file == write.file and write.end < call.begin and call.end < before.begin
        for call in calls
    )


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    tried = subprocess.run(
        [*STRACE, "/dev/null", "true"], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    if tried.returncode or tried.stderr:
        pytest.skip(f"strace may not trace here: {tried.stderr.strip()}")
    return tmp_path / "trace"


def traced_login(trace_file: Path, users: str, name: str, password: str) -> tuple[list[Call], ServerProcess]:
    """What a server that has these users calls, from its start on, while somebody logs in."""
    data_dir = trace_file.parent / "data"
    data_dir.mkdir()
    (data_dir / "passwords.csv").touch()
    (data_dir / "users.csv").write_text(users)
    with run_server(data_dir, under=[*STRACE, str(trace_file)]) as server, server.connect() as client:
        client.send(encode_login(name, password))
        client.read_list(name)
    wait_for("the end of the trace", lambda: "+++ exited with 0 +++" in trace_file.read_text())
    return parse(trace_file.read_text()), server


@pytest.mark.parametrize(
    ("users", "name", "password", "files"),
    [
        ("", "alice", "", ["status.csv", "users.csv"]),
        ("", "alice", "secret", ["passwords.csv", "status.csv", "users.csv"]),
        ("1,alice\n", "alice", "secret", ["passwords.csv"]),
    ],
    ids=["sign-up", "sign-up with a password", "first password"],
)
def test_each_line_is_on_disk_before_the_next_and_before_the_reply(
    trace_file: Path, users: str, name: str, password: str, files: list[str]
) -> None:
    calls, server = traced_login(trace_file, users, name, password)
    (reply,) = [call for call in calls if call.is_send]
    ready = next(call for call in calls if "chat server" in call.arguments)
    written = [call for call in appends(calls, server.data_dir) if call.begin > ready.end]
    assert [Path(call.file).name for call in written] == files
    for write, following in zip(written, [*written[1:], reply], strict=True):
        assert is_synced(write, following, calls), f"{write} may not be on disk when {following} begins"


def test_repairs_of_a_start_are_on_disk_before_the_first_client_is_served(trace_file: Path) -> None:
    calls, server = traced_login(trace_file, "1,alice\n2,to", "alice", "")
    ready = next(call for call in calls if "chat server" in call.arguments)
    (made,) = [call for call in appends(calls, server.data_dir) if call.file.endswith("status.tmp")]
    (rename,) = [call for call in calls if call.name.startswith("rename") and str(server.data_dir) in call.arguments]
    (cut,) = [call for call in calls if call.name == "ftruncate" and "users.csv" in call.file]
    assert is_synced(made, rename, calls)
    assert any(call.is_sync and call.file == str(server.data_dir) and rename.end < call.begin for call in calls)
    assert is_synced(cut, ready, calls)


# The reading of a trace

INTERRUPTED = """\
7 03:45:20.0 pwrite64(9</d/users.csv>, "1,a\\n", 4, 0) = 4
7 03:45:20.1 fsync(9</d/users.csv> <unfinished ...>
6 03:45:20.2 write(2</d/log>, "..."..., 47) = 47
7 03:45:20.3 <... fsync resumed>) = 0
6 03:45:20.4 sendto(10<socket:[1]>, "\\1\\4", 2, 0, NULL, 0) = 2
6 03:45:20.5 --- SIGTERM {si_signo=SIGTERM} ---
6 03:45:20.6 +++ exited with 0 +++
"""


def verdict(trace: str) -> bool:
    calls = parse(trace)
    (write,), (reply,) = appends(calls, Path("/d")), [call for call in calls if call.is_send]
    return is_synced(write, reply, calls)


def test_a_call_that_others_interrupt_counts_from_its_end() -> None:
    assert verdict(INTERRUPTED)


@pytest.mark.parametrize(
    ("sound", "unsound"),
    [
        ("fsync resumed>) = 0", "fsync resumed>) = -1 EIO (Input/output error)"),
        ("fsync(9</d/users.csv>", "fsync(8</d/status.csv>"),
        ("7 03:45:20.3 <... fsync resumed>) = 0\n", ""),
    ],
    ids=["it failed", "of another file", "it never ended"],
)
def test_a_sync_that_fails_does_not_count(sound: str, unsound: str) -> None:
    assert sound in INTERRUPTED
    assert not verdict(INTERRUPTED.replace(sound, unsound))


def test_a_reply_that_begins_before_the_sync_has_ended_is_too_early() -> None:
    write, begun, log, ended, reply, *rest = INTERRUPTED.splitlines(keepends=True)
    assert not verdict("".join([write, begun, reply, log, ended, *rest]))
    assert not verdict("".join([begun, ended, write, log, reply, *rest]))
