"""`python server.py`: its options, where they come from, and what it says when it cannot start."""

import os
import resource
import socket
import subprocess
import sys
from contextlib import ExitStack
from math import inf
from pathlib import Path

import pytest

from chatserver import __version__
from chatserver.listener import listen
from chatserver.operations.options import parse_options, unknown_variables
from protocol import IS_COMPILED
from testkit.processes import DEADLINE, ROOT
from testkit.server import ServerProcess, StartServer, run_server, run_to_end

pytestmark = pytest.mark.measured


def test_help_explains_every_option_with_its_default() -> None:
    done = run_to_end("--help")
    assert done.returncode == 0
    explained = " ".join(done.stdout.split("\n\noptions:")[1].split())
    for option, default in vars(parse_options([])).items():
        if option in ("max_id", "config", "burst"):  # whose default depends on another
            continue
        paragraph = explained.split(f"--{option.replace('_', '-')} ")[1].split(" --")[0]
        shown = "off" if default in (None, False, inf) else default
        assert f"(default: {shown})" in paragraph


def test_version_names_the_version() -> None:
    done = run_to_end("--version")
    assert done.returncode == 0
    assert __version__ in done.stdout
    assert f"protocol in {'C' if IS_COMPILED else 'Python'}" in done.stdout


def test_the_compiled_protocol_can_be_switched_off() -> None:
    done = run_to_end("--version", CHAT_PURE_PYTHON="1")
    assert "protocol in Python" in done.stdout


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--port", "65536"], "'65536' is not a whole number from 0 to 65535"),
        (["--port", "x"], "'x' is not a whole number"),
        (["--pool-size", "0"], "'0' is not a whole number of 1 or more"),
        (["--id-width", "3"], "invalid choice"),
        (["--max-users", "256"], "--max-users 256 is more than --id-width 1 can number (at most 255)"),
        (["--drain", "0"], "'0' is not a number of seconds over 0"),
        (["--write-timeout", "soon"], "'soon' is not a number of seconds"),
        (["--outbox-bytes", "10"], "'10' is not a whole number of 1024 or more"),
        (["--log-level", "loud"], "invalid choice"),
        (["--host", ""], "the host is empty"),
        (["--host", "a..b"], "'a..b' is not a host name"),
        (["--no-such-option"], "--no-such-option"),
        (["--config", "no-such-file"], "no-such-file"),
    ],
)
def test_a_bad_option_is_a_clear_line_and_status_2(options: list[str], complaint: str) -> None:
    done = run_to_end(*options)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_an_option_comes_from_the_environment_or_a_file_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "chat.conf"
    file.write_text("max-users = 300\nid-width = 2\npool-size = 7\nrequire-password = true\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAT_POOL_SIZE", "8")
        patch.setenv("CHAT_MAX_USERS", "301")
        options = parse_options(["--config", str(file), "--pool-size", "9"])
    assert (options.pool_size, options.max_users, options.id_width) == (9, 301, 2)
    assert options.require_password is True
    assert options.max_id == 65535


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"# mine\nprot = 9034\n", ", line 2: prot is no option; is it port?"),
        (b"pool-size = 9\n\npool-size = 0\n", ", line 3: argument --pool-size: '0' is not a whole number of 1 or more"),
        (b"id-width = 3\n", ", line 1: argument --id-width: invalid choice: 3"),
        (b"require-password = maybe\n", ", line 1: require-password is true or false"),
        (b"port 9034 = 1 = 2\nport=[1\n", ", line 1: argument --port"),
        (b"= 1\n", ', line 1: not a line like "port = 9035"'),
        (b"port = 9034\n\xff\n", " is not UTF-8"),
    ],
)
def test_a_bad_line_in_the_config_file_is_named(tmp_path: Path, text: bytes, complaint: str) -> None:
    file = tmp_path / "chat.conf"
    file.write_bytes(text)
    done = run_to_end("--config", file)
    assert done.returncode == 2
    assert f"{file}{complaint}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "password", ["4711#geheim", "4711/geheim", "4711?geheim", "geheim#4711", "geheim:4711@geheim", "%zzgeheim"]
)
def test_no_part_of_a_redis_password_is_printed(tmp_path: Path, password: str) -> None:
    url = f"redis://:{password}@127.0.0.1:1/0"
    file = tmp_path / "chat.conf"
    for line in (f"redis = {url}", f"reddis = {url}", f"redis = {url} nonsense", f"= {url}", f"port = {url}"):
        file.write_text(f"port = 0\ndata-dir = {tmp_path}\nwait-for-redis = 0\n{line}\n")
        expect_secret("server.py", "--config", file)
    rest = ("--data-dir", tmp_path, "--wait-for-redis", "0")
    for options in (["--redis", url], ["--reddis", url], ["--port", url], [url], [f"--redis={url} --rate 5"]):
        expect_secret("server.py", "--port", 0, *options, *rest)
        expect_secret("admin.py", "users", *options)


def expect_secret(*command: object) -> None:
    """No part of the password is printed by a program that cannot start."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.returncode in (1, 2)
    assert "4711" not in done.stderr
    assert "geheim" not in done.stderr


def test_a_missing_passwords_file_is_one_line_and_an_option_starts_without_it(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("1,alice\n")
    line = one_line(run_to_end("--port", 0, "--data-dir", tmp_path))
    assert f"{tmp_path / 'passwords.csv'} is missing" in line
    assert "--open-accounts" in line
    with run_server(tmp_path, "--open-accounts") as server, server.log_in("alice"):
        assert (tmp_path / "passwords.csv").exists()


def test_idle_timeout_can_be_off_or_seconds() -> None:
    assert parse_options(["--idle-timeout", "off"]).idle_timeout == inf
    assert parse_options(["--idle-timeout", "2.5"]).idle_timeout == 2.5


def one_line(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    return line


def test_a_port_that_is_taken_is_one_line_and_status_1(server: ServerProcess, tmp_path: Path) -> None:
    line = one_line(run_to_end("--port", server.port, "--data-dir", tmp_path / "other"))
    assert f"127.0.0.1:{server.port}: Address already in use" in line


def test_an_address_that_is_not_ours_is_one_line_and_status_1(tmp_path: Path) -> None:
    line = one_line(run_to_end("--host", "192.0.2.1", "--port", 0, "--data-dir", tmp_path))
    assert "192.0.2.1:0: Cannot assign requested address" in line or "Can't assign requested address" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_is_one_line_and_status_1(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert str(tmp_path) in one_line(run_to_end("--port", 0, "--data-dir", tmp_path))


def test_a_data_folder_that_is_a_file_is_one_line_and_status_1(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = one_line(run_to_end("--port", 0, "--data-dir", tmp_path / "file"))
    assert str(tmp_path / "file") in line


def test_a_second_server_on_the_same_folder_refuses_to_start(server: ServerProcess) -> None:
    line = one_line(run_to_end("--port", 0, "--data-dir", server.data_dir))
    assert f"{server.data_dir} is in use by another server" in line
    server.log_in("alice").expect_pong()


def test_a_damaged_database_stops_the_start_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("1,alice\nx,bob\n")
    line = one_line(run_to_end("--port", 0, "--data-dir", tmp_path))
    assert "users.csv, line 2" in line
    assert (tmp_path / "users.csv").read_text() == "1,alice\nx,bob\n"


def test_ids_that_the_id_width_cannot_number_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("300,alice\n")
    assert "255" in one_line(run_to_end("--port", 0, "--data-dir", tmp_path))


def test_an_ipv6_address_works_and_is_logged_in_brackets(start_server: StartServer) -> None:
    server = start_server("--host", "::1")
    assert f"listening on [::1]:{server.port}" in server.log
    server.host = "::1"
    server.log_in("alice").expect_pong()


def limited_to(soft: int, hard: int, *options: object) -> "subprocess.Popen[str]":
    script = (
        "import os, resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
        "os.execv(sys.executable, [sys.executable, 'server.py', *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", script, *map(str, options)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_a_pool_larger_than_the_limit_of_open_files_is_refused_with_the_figure(tmp_path: Path) -> None:
    process = limited_to(100, 200, "--port", 0, "--pool-size", 500, "--data-dir", tmp_path / "data")
    _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "--pool-size 500 needs 1064 open files, and the limit is 200" in log


def test_the_soft_limit_of_open_files_is_raised_for_a_large_pool(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    process = limited_to(100, hard, "--port", 0, "--pool-size", 200, "--data-dir", tmp_path / "data")
    assert process.stderr
    with process, ExitStack() as stack:
        stack.callback(process.kill)
        port = int(process.stderr.readline().rpartition(":")[2])
        clients = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(200)]
        for client in clients:
            client.sendall(b"\x08\x00")
        assert all(client.recv(2) == b"\x09\x00" for client in clients)
        process.terminate()
        for client in clients:
            client.close()
        assert process.wait(30) == 0


def test_accepted_sockets_inherit_the_options_that_detect_a_vanished_peer() -> None:
    with listen("127.0.0.1", 0, 5, 10.0) as listener, socket.create_connection(listener.getsockname(), 30):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


def test_a_variable_that_no_option_knows_is_told_with_the_likely_one() -> None:
    environment = {"CHAT_REQUIRE_PASSWROD": "1", "CHAT_PORT": "1", "CHAT_PASSWORD": "x", "HOME": "/", "CHAT_ZZZ": ""}
    assert unknown_variables(environment) == [
        "the environment variable CHAT_REQUIRE_PASSWROD is no option; is it CHAT_REQUIRE_PASSWORD?",
        "the environment variable CHAT_ZZZ is no option",
    ]


def test_the_log_begins_with_such_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_REQUIRE_PASSWROD", "1")
    with run_server(tmp_path / "data") as server:
        assert "CHAT_REQUIRE_PASSWROD is no option" in server.log.splitlines()[0]
