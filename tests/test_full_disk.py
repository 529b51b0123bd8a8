"""A disk that fills up under a running server, its log included: what is refused, what goes on, and what is told after.

What the files of the database go through is in test_storage_failures.py; the Error itself in test_errors.py.
"""

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from protocol import Feature, Level, PacketType, Reason, encode, encode_error, encode_login, encode_receipt
from testkit.processes import DEADLINE, ROOT, wait_for
from testkit.server import UNWATCHED, ServerProcess, StartServer, run_server, without_lateness
from testkit.wire import Wire

pytestmark = pytest.mark.measured

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) [^\n]+")
LOST = re.compile(r"WARNING (\d+) lines of this log were lost: (.+)")


def limit_files(server: ServerProcess, size: int) -> None:
    """Let no file of the server grow past `size` bytes: a write there is short and then fails, as on a full disk."""
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def refused(client: Wire, name: str, password: str = "") -> bool:
    """Whether this login fails for want of room; a refusal for any other reason is not right."""
    client.send(encode_login(name, password))
    packet = client.read()
    assert packet is not None
    if packet[0] == 4:
        assert packet[1][2:].decode() == Reason.STORAGE_UNAVAILABLE
        return True
    return False


def check_log(log: str) -> tuple[int, str]:
    """Every line is whole; (how many the log says it has lost, why)."""
    assert log.endswith("\n")
    for line in without_lateness(log).splitlines():
        assert LOG_LINE.fullmatch(line), f"a torn line, or two in one: {line!r}"
        assert len(re.findall(r"\d{4}-\d\d-\d\d \d\d:", line)) == 1, f"two lines in one: {line!r}"
    found = LOST.findall(log)
    return sum(int(count) for count, _ in found), found[-1][1] if found else ""


@pytest.fixture
def four_users(start_server: StartServer, tmp_path: Path) -> ServerProcess:
    """A server with four users, none of whom has a password."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux can fill the disk of another process (prlimit)")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "passwords.csv").touch()
    (folder / "users.csv").write_text("1,alice\n2,bob\n3,secured\n4,open\n")
    return start_server(program=UNWATCHED)  # its lines are counted


def chat(sender: Wire, receiver: Wire, name: str, texts: int) -> None:
    for number in range(texts):
        sender.say(f"text {number}")
    for number in range(texts):
        receiver.expect_message(f"{name}:text {number}")


def test_online_users_chat_on_and_logins_that_need_no_room_succeed(four_users: ServerProcess) -> None:
    server = four_users
    server.log_in("secured", "secret").close()
    alice, bob = server.log_in("alice"), server.log_in("bob")
    alice.chat_with(2)
    limit_files(server, 30)  # users.csv and passwords.csv are larger: nothing can be appended
    with server.connect() as client:
        assert refused(client, "newcomer")
        assert refused(client, "newcomer", "secret")
        assert refused(client, "open", "its first")
        chat(alice, bob, "alice", 500)
        client.send(encode_login("secured", "wrong"))
        client.expect_error(Reason.WRONG_PASSWORD)
        client.send(encode_login("secured", "secret"))
        client.read_list("secured")
    chat(alice, bob, "alice", 500)
    with server.connect() as client:  # the password that was refused is not there
        client.send(encode_login("open"))
        client.read_list("open")
    limit_files(server, resource.RLIM_INFINITY)
    with server.connect() as client:
        client.send(encode_login("newcomer", "secret"))
        client.read_list("newcomer")
        assert client.users["newcomer"] == 5
    assert [line[:2] for line in (server.data_dir / "passwords.csv").read_text().splitlines()] == ["3,", "5,"]


@pytest.mark.parametrize("room", [0, 1, 40])
def test_the_log_continues_in_whole_lines_and_counts_the_lost_ones(four_users: ServerProcess, room: int) -> None:
    server = four_users
    with server.connect() as client:
        client.send(encode_login("not valid"))
        client.expect_error(Reason.INVALID_USERNAME)
        kept = server.log.count("\n")
        limit_files(server, len(server.log) + room)
        for _ in range(8):  # a line each
            client.send(encode_login("not valid"))
            client.expect_error(Reason.INVALID_USERNAME)
        if room:
            assert not server.log.endswith("\n")
        assert len(server.log.splitlines()) == kept + bool(room)
        limit_files(server, resource.RLIM_INFINITY)
    server.wait_for_log("disconnected")
    lost, why = check_log(server.log)
    assert (lost, why) == (8 - bool(room), "File too large")
    written = server.log.count("refused as 'not valid'")
    assert written + lost == 9
    assert server.stop() == 0
    assert check_log(server.log) == (lost, why), "it is told once"


# A real file system


class SmallDisk(NamedTuple):
    """A file system of its own, that only processes started `under` a command see, at `inside`; `path` leads there."""

    path: Path
    inside: Path
    under: tuple[str, ...]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of 1 MiB, mounted where nobody else sees it."""
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed: no file system can be mounted apart from everyone's")
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    script = 'mount -t tmpfs -o size=1m none "$1" && echo mounted && exec sleep 600'
    holder = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script, "sh", str(mount_point)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout
        if holder.stdout.readline() != "mounted\n":
            _, problem = holder.communicate(timeout=DEADLINE)
            pytest.skip(f"no file system can be mounted here: {problem.strip()}")
        enter = ("nsenter", "--target", str(holder.pid), "--mount", f"--wd={ROOT}", "--")
        yield SmallDisk(Path(f"/proc/{holder.pid}/root{mount_point}"), mount_point, enter)
    finally:
        holder.kill()
        holder.communicate()


def fill(disk: Path) -> Path:
    """A file that takes all the room there is."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        while os.statvfs(disk).f_bavail:
            file.write(bytes(4096))
    return ballast


def test_a_full_file_system_is_survived_log_included(small_disk: SmallDisk) -> None:
    signed_up = 120  # nearly a page of users.csv
    data, inside = small_disk.path / "data", small_disk.inside / "data"
    data.mkdir()
    (data / "passwords.csv").touch()
    (data / "users.csv").write_text("".join(f"{n},{'n' * 25}{n}\n" for n in range(1, signed_up + 1)))
    with run_server(data, "--max-users", 255, "--data-dir", inside, under=small_disk.under) as server:
        alice, bob = server.log_in("alice"), server.log_in("bob")
        signed_up += 2
        alice.chat_with(signed_up)
        ballast = fill(small_disk.path)

        def is_full() -> bool:  # the last page of each file has room left
            nonlocal signed_up
            with server.connect() as client:
                if refused(client, f"somebody-with-a-long-name-{signed_up}"):
                    return True
                signed_up += 1
                return False

        wait_for("Storage Unavailable", is_full)
        fill(small_disk.path)  # the page that a cut gave back
        for _ in range(60):  # until the log's last page is full, too
            with server.connect() as client:
                client.expect_pong()
        chat(alice, bob, "alice", 500)
        ballast.unlink()
        with server.connect() as client:
            client.send(encode_login("newcomer", "secret"))
            client.read_list("newcomer")
            assert client.users["newcomer"] == signed_up + 1
        lost, why = check_log(server.log)
        assert lost > 0
        assert why == "No space left on device"
        users = (server.data_dir / "users.csv").read_text().splitlines()
        assert len(users) == signed_up + 1
        assert users[-1] == f"{signed_up + 1},newcomer"


def test_mail_is_refused_or_kept_in_memory_until_there_is_room(start_server: StartServer) -> None:
    server = start_server("--sync", "always")
    server.visit("bob")
    alice = server.log_in("alice", features=Feature.MAILBOX | Feature.RECEIPTS)
    alice.chat_with(1)
    alice.say("1")
    alice.expect(encode_receipt(Level.STORED, 1, 1))
    limit_files(server, max(path.stat().st_size for path in server.data_dir.iterdir()))
    accepted = 1
    while True:
        alice.say(f"{accepted + 1}")
        alice.send(encode(PacketType.PING, b"?"))
        packet = alice.read()
        if packet != (PacketType.PONG, b"?"):
            break
        accepted += 1
    assert packet == (PacketType.ERROR, encode_error(Reason.STORAGE_UNAVAILABLE)[2:])
    alice.expect(encode(PacketType.PONG, b"?"))
    alice.chat_with(2)
    alice.say("to whom is here")
    alice.expect_message("alice:to whom is here")
    alice.expect(encode_receipt(Level.DELIVERED, accepted + 2, accepted + 2))
    limit_files(server, resource.RLIM_INFINITY)
    alice.expect(encode_receipt(Level.STORED, 2, accepted))
    server.wait_for_log("the database can be written again")
    bob = server.log_in("bob")
    for number in range(accepted):
        bob.expect_message(f"alice:{number + 1}")
    bob.expect_pong()
