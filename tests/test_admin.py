"""`python admin.py`, as an operator uses it: on a server that runs, and on the files of one that does not."""

import fcntl
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chatserver.operations.control import MAX_REQUEST_BYTES, SOCKET
from protocol import Feature, Reason, encode_login
from storage import CsvStorage, User
from testkit.processes import DEADLINE, ROOT, untraced, wait_for
from testkit.programs import ScreenProgram
from testkit.server import ServerProcess, StartServer, run_server

Finished = subprocess.CompletedProcess[str]


def start_admin(folder: Path, *arguments: object, typed: str = "", **options: object) -> Finished:
    """Run it to its end."""
    command = [sys.executable, "admin.py", *map(str, arguments), "--data-dir", str(folder)]
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command, cwd=ROOT, input=typed, capture_output=True, text=True, timeout=60, check=False, **options
    )


def admin(folder: Path, *arguments: object, typed: str = "") -> str:
    """What it prints, when it must succeed."""
    done = start_admin(folder, *arguments, typed=typed)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def refusal(folder: Path, *arguments: object, typed: str = "", **options: object) -> str:
    """The one line that says why it could not be done."""
    done = start_admin(folder, *arguments, typed=typed, **options)
    assert (done.returncode, done.stdout) == (1, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("admin.py: ")
    return line.removeprefix("admin.py: ")


def rows(folder: Path) -> list[list[str]]:
    return [line.split() for line in admin(folder, "users").splitlines()[1:]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(server: ServerProcess, name: str, password: str, reason: Reason) -> None:
    with server.connect() as client:
        client.send(encode_login(name, password))
        client.expect_error(reason)


@pytest.fixture(params=["running", "stopped"])
def database(request: pytest.FixtureRequest, start_server: StartServer) -> Iterator[tuple[Path, StartServer]]:
    """A folder where alice (1) has the password "secret" and żółć (2) has none, and a way to the server on it."""
    server = start_server()
    server.log_in("alice", "secret").close()
    server.log_in("żółć").close()
    wait_for("both are offline", lambda: (server.data_dir / "status.csv").read_text() == "1,0\n2,0\n")
    if request.param == "stopped":
        assert server.stop() == 0
        yield server.data_dir, start_server
    else:
        yield server.data_dir, lambda: server
    assert "Traceback" not in server.log


Database = tuple[Path, Callable[[], ServerProcess]]


# The users


@pytest.mark.measured
def test_users_are_listed_with_id_name_status_and_password(database: Database) -> None:
    folder, _ = database
    assert admin(folder, "users") == ("id  name   status   password\n1   alice  offline  yes\n2   żółć   offline  no\n")


def test_the_list_shows_who_is_online(server: ServerProcess) -> None:
    with server.log_in("alice"):
        assert rows(server.data_dir) == [["1", "alice", "online", "no"]]
    wait_for("alice is offline", lambda: rows(server.data_dir) == [["1", "alice", "offline", "no"]])


def test_a_long_list_is_complete(tmp_path: Path, start_server: StartServer) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "passwords.csv").touch()
    (tmp_path / "data" / "users.csv").write_text("".join(f"{n},user{n}\n" for n in range(1, 4001)))
    server = start_server("--id-width", 2)
    assert rows(server.data_dir) == [[str(n), f"user{n}", "offline", "no"] for n in range(1, 4001)]


@pytest.mark.measured
def test_a_new_password_replaces_the_old_one_at_once(database: Database) -> None:
    folder, start = database
    assert (
        admin(folder, "passwd", "alice", typed="geheim\nwhat follows is not read\n")
        == "alice (id 1) has a new password\n"
    )
    assert admin(folder, "passwd", "żółć", typed="schlüssel") == "żółć (id 2) has a new password\n"
    server = start()
    refused(server, "alice", "secret", Reason.WRONG_PASSWORD)
    refused(server, "żółć", "", Reason.PASSWORD_REQUIRED)
    server.log_in("alice", "geheim").close()
    server.log_in("żółć", "schlüssel").close()
    for password in ("geheim", "schlüssel", "$argon2"):
        assert password not in server.log


def test_after_passwd_forget_the_next_login_sets_a_password(database: Database) -> None:
    folder, start = database
    done = "alice (id 1) has no password any more: the next login may set one\n"
    for _ in range(2):
        assert admin(folder, "passwd", "alice", "--forget") == done
    assert rows(folder)[0] == ["1", "alice", "offline", "no"]
    server = start()
    server.log_in("alice", "other").close()
    refused(server, "alice", "secret", Reason.WRONG_PASSWORD)


@pytest.mark.parametrize("typed", ["", "\n", "x" * 65, "é" * 33])
def test_an_invalid_password_is_refused(database: Database, typed: str) -> None:
    folder, _ = database
    assert "password" in refusal(folder, "passwd", "alice", typed=typed)
    assert rows(folder)[0][3] == "yes"


@pytest.mark.measured
def test_at_a_terminal_the_password_is_asked_for_twice_and_not_shown(server: ServerProcess) -> None:
    server.log_in("alice").close()
    with ScreenProgram("admin.py", "passwd", "alice", "--data-dir", server.data_dir, environment={}) as program:
        program.wait_for("password of alice:$")
        program.type("secret\n")
        program.wait_for("once more:$")
        program.type("secrte\n")
        program.wait_for("the passwords differ")
        program.wait_for("password of alice:$", times=2)
        program.type("secret\n")
        program.wait_for("once more:$", times=2)
        program.type("secret\n")
        assert program.wait() == 0
        assert "secr" not in program.text
    wait_for("alice is offline", lambda: rows(server.data_dir)[0][2] == "offline")
    server.log_in("alice", "secret").close()


@pytest.mark.parametrize(("key", "status"), [("\x03", 130), ("\x04", 1)])
def test_ctrl_c_and_ctrl_d_give_up_without_a_traceback(server: ServerProcess, key: str, status: int) -> None:
    server.log_in("alice").close()
    with ScreenProgram("admin.py", "passwd", "alice", "--data-dir", server.data_dir, environment={}) as program:
        program.wait_for("password of alice:$")
        program.type(key)
        assert program.wait() == status
        assert "Traceback" not in program.text
    assert rows(server.data_dir)[0][3] == "no"


# Removing and kicking


@pytest.mark.measured
def test_a_removed_name_can_sign_up_again_with_a_new_id(database: Database) -> None:
    folder, start = database
    assert admin(folder, "remove", "żółć") == "removed żółć (id 2); the name is free\n"
    assert [row[1] for row in rows(folder)] == ["alice"]
    server = start()
    with server.log_in("żółć", "mine") as client:
        assert client.users == {"żółć": 3}
        assert server.stop() == 0
    with run_server(folder) as again:
        assert rows(folder) == [["1", "alice", "offline", "yes"], ["3", "żółć", "offline", "yes"]]
        assert not again.warnings
        assert (folder / "users.csv").read_text() == "2,\n1,alice\n3,żółć\n"


@pytest.mark.measured
def test_removing_a_user_who_is_online_ends_the_connection_without_an_error(server: ServerProcess) -> None:
    alice, bob = server.log_in("alice", "secret"), server.log_in("bob")
    bob.chat_with(1)
    done = "removed alice (id 1) and ended the connection; the name is free"
    assert admin(server.data_dir, "remove", "alice") == f"{done}\n"
    alice.expect_end()
    bob.say("anybody there?")
    bob.expect_error(Reason.USER_NOT_ONLINE)
    with server.log_in("alice") as anew:
        assert anew.users == {"bob": 2, "alice": 3}
    server.wait_for_log("alice disconnected: ended by an operator")
    server.wait_for_log(f"admin: {done}")
    assert "Traceback" not in server.log


@pytest.mark.measured
def test_a_kicked_user_is_disconnected_without_an_error_and_may_log_in_again(server: ServerProcess) -> None:
    alice, bob = server.log_in("alice"), server.log_in("bob")
    done = "ended the connection of alice (id 1), who may log in again"
    assert admin(server.data_dir, "kick", "alice") == f"{done}\n"
    alice.expect_end()
    bob.expect_pong()
    server.wait_for_log(f"admin: {done}")
    server.wait_for_log("alice disconnected: ended by an operator")
    alice.close()
    server.log_in("alice").expect_pong()


# Banning, and adding


@pytest.mark.measured
def test_a_banned_name_is_closed_until_it_is_unbanned(database: Database) -> None:
    folder, start = database
    assert admin(folder, "ban", "alice") == "banned alice (id 1)\n"
    assert admin(folder, "ban", "żółć") == "banned żółć (id 2)\n"
    assert rows(folder) == [["1", "alice", "offline", "banned"], ["2", "żółć", "offline", "banned"]]
    server = start()
    for name, password in (("alice", "secret"), ("alice", "wrong"), ("alice", ""), ("żółć", ""), ("żółć", "mine")):
        refused(server, name, password, Reason.INVALID_USERNAME)
    refused(server, "ALICE", "", Reason.USERNAME_TAKEN)
    assert refusal(folder, "ban", "alice") == "alice is banned already"
    assert refusal(folder, "passwd", "alice", typed="other") == "alice is banned: unban alice first"
    assert admin(folder, "unban", "alice") == "alice (id 1) may log in again\n"
    assert admin(folder, "unban", "żółć") == "żółć (id 2) may log in again\n"
    assert refusal(folder, "unban", "alice") == "alice is not banned"
    refused(server, "alice", "", Reason.PASSWORD_REQUIRED)
    server.log_in("alice", "secret").close()
    server.log_in("żółć").close()


def test_banning_ends_the_connection_and_mail_still_arrives_later(server: ServerProcess) -> None:
    alice, bob = server.log_in("alice"), server.log_in("bob", features=Feature.MAILBOX)
    assert admin(server.data_dir, "ban", "alice") == "banned alice (id 1) and ended the connection\n"
    alice.expect_end()
    alice.close()
    bob.chat_with(1)
    bob.say("see you")
    bob.expect_pong()
    admin(server.data_dir, "unban", "alice")
    server.log_in("alice", features=Feature.MAILBOX).expect_message("bob:see you")


def test_a_name_that_nobody_has_yet_can_be_banned(database: Database) -> None:
    folder, start = database
    assert admin(folder, "ban", "mallory") == "banned mallory (id 3), who had not signed up\n"
    server = start()
    refused(server, "mallory", "mine", Reason.INVALID_USERNAME)
    refused(server, "Mallory", "", Reason.USERNAME_TAKEN)
    admin(folder, "unban", "mallory")
    server.log_in("mallory", "mine").close()


@pytest.mark.measured
def test_where_sign_ups_are_closed_only_the_operator_adds_users(start_server: StartServer) -> None:
    server = start_server("--sign-up", "closed")
    folder = server.data_dir
    refused(server, "bob", "", Reason.USER_LIMIT_REACHED)
    assert admin(folder, "add", "bob", typed="geheim\n") == "added bob (id 1)\n"
    assert admin(folder, "add", "carol", "--open") == "added carol (id 2)\n"
    server.log_in("bob", "geheim").close()
    server.log_in("carol", "mine").close()
    refused(server, "carol", "", Reason.PASSWORD_REQUIRED)
    assert refusal(folder, "add", "Carol", "--open") == "Carol is the name of a user, or looks like it: carol"
    assert "cannot be a name" in refusal(folder, "add", "a b", "--open")
    assert "cannot be a name" in refusal(folder, "add", "17", "--open")
    assert "password" in refusal(folder, "add", "dave")


def test_no_more_users_are_added_than_the_server_admits(start_server: StartServer) -> None:
    server = start_server("--max-users", 1)
    admin(server.data_dir, "add", "alice", "--open")
    assert "there can be no more users" in refusal(server.data_dir, "add", "bob", "--open")


def test_an_offline_user_cannot_be_kicked(database: Database) -> None:
    folder, _ = database
    assert refusal(folder, "kick", "alice") == "alice is not online"


@pytest.mark.parametrize(
    "arguments",
    [
        ["passwd", "nobody"],
        ["passwd", "nobody", "--forget"],
        ["kick", "nobody"],
        ["remove", "ALICE"],
        ["remove", "a\nb"],
        ["remove", os.fsdecode(b"\xff")],
        ["remove", "x" * 200],
    ],
)
def test_an_unknown_name_is_one_line_and_status_1(database: Database, arguments: list[str]) -> None:
    assert "there is no user " in refusal(database[0], *arguments, typed="secret\n")


@pytest.mark.parametrize("arguments", [["remove", "alice"], ["passwd", "alice", "--forget"], ["passwd", "alice"]])
def test_a_change_that_cannot_be_written_changes_nothing_and_ends_no_connection(
    server: ServerProcess, arguments: list[str]
) -> None:
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux can fill the disk of another process (prlimit)")
    alice = server.log_in("alice", "secret")
    wait_for("her status", lambda: contents(server.data_dir)["status.csv"] == b"1,1\n")
    before = contents(server.data_dir)
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        assert "cannot be written" in refusal(server.data_dir, *arguments, typed="new\n")
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
    assert contents(server.data_dir) == before
    alice.expect_pong()
    assert rows(server.data_dir) == [["1", "alice", "online", "yes"]]
    admin(server.data_dir, *arguments, typed="new\n")
    assert contents(server.data_dir) != before


# Backup


@pytest.mark.measured
def test_a_backup_opens_as_the_same_database_without_a_warning(database: Database, tmp_path: Path) -> None:
    folder, _ = database
    admin(folder, "passwd", "żółć", typed="mine")
    admin(folder, "remove", "alice")
    copy = tmp_path / "copy"
    assert admin(folder, "backup", copy) == f"copied chats.db, passwords.csv, status.csv, users.csv to {copy}\n"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in copy.iterdir()} == dict.fromkeys(
        ("users.csv", "passwords.csv", "status.csv", "chats.db"), 0o600
    )
    with run_server(copy) as server:
        server.log_in("żółć", "mine").close()
        refused(server, "żółć", "other", Reason.WRONG_PASSWORD)
        with server.log_in("alice") as anew:
            assert anew.users["alice"] == 3
        assert not server.warnings
    assert rows(folder) == [["2", "żółć", "offline", "yes"]]


@pytest.mark.slow
def test_backups_under_a_storm_of_sign_ups_hold_whole_users_with_their_passwords(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server()
    signed_up: list[str] = []
    enough = threading.Event()

    def sign_up() -> None:
        while not enough.is_set() and len(signed_up) < 128:
            name = f"user{len(signed_up) + 1}"
            server.log_in(name, "secret").close()
            signed_up.append(name)

    storm = threading.Thread(target=sign_up)
    storm.start()
    sizes: list[int] = []
    while storm.is_alive() and sum(0 < size < len(signed_up) for size in sizes) < 3:
        copy = tmp_path / f"copy{len(sizes)}"
        admin(server.data_dir, "backup", copy)
        with CsvStorage(copy, 128, 255) as storage:
            assert storage.users() == [User(n, f"user{n}") for n in range(1, len(storage.users()) + 1)]
            assert all(storage.password_hash(user.id) for user in storage.users())
            sizes.append(len(storage.users()))
    enough.set()
    storm.join()
    assert sizes == sorted(sizes)
    assert any(0 < size < len(signed_up) for size in sizes), "none was taken in the middle"
    assert caplog.records == []


@pytest.mark.parametrize("whole", [True, False])
def test_a_backup_of_what_a_crash_left_is_of_the_repaired_database(tmp_path: Path, whole: bool) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    if whole:
        (folder / "status.csv").write_text("1,0\n2,1\n")
    (folder / "users.csv").write_text("1,alice\n2,bob\n1,\n3,car")
    (folder / "passwords.csv").write_text("1,x\n2,y\n3,z\n")
    done = start_admin(folder, "backup", tmp_path / "copy")
    assert done.returncode == 0
    assert "removed an unfinished last line" in done.stderr
    assert contents(tmp_path / "copy") == {
        "users.csv": b"1,\n2,bob\n",
        "passwords.csv": b"2,y\n",
        "status.csv": b"2,0\n",
    }


@pytest.mark.measured
def test_a_backup_goes_into_an_empty_folder_even_in_the_data_folder_but_into_no_other(database: Database) -> None:
    folder, start = database
    (folder / "empty").mkdir()
    admin(folder, "backup", folder / "empty")
    admin(folder, "backup", folder / "new")
    assert contents(folder / "new") == contents(folder / "empty") != {}
    before = contents(folder)
    for target in (folder, folder / "new"):
        assert refusal(folder, "backup", target) == f"{target} is not empty"
    assert "users.csv" in refusal(folder, "backup", folder / "users.csv")
    assert "No such file" in refusal(folder, "backup", folder / "not" / "there")
    assert contents(folder) == before
    start().log_in("alice", "secret").close()


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("history", ["on", "off"])
def test_a_backup_that_does_not_fit_is_an_error_and_leaves_nothing(
    start_server: StartServer, tmp_path: Path, made: bool, history: str
) -> None:
    server = start_server("--history", history)
    server.log_in("alice", "secret").expect_pong()
    target = tmp_path / "copy"
    if made:
        target.mkdir()

    def fill_up() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6, 6))

    reason = refusal(server.data_dir, "backup", target, preexec_fn=fill_up, env=untraced())  # coverage writes too
    assert reason == (
        f"{server.data_dir / 'chats.db'} cannot be copied to {target / 'chats.db'}: disk I/O error"
        if history == "on"
        else f"{target} cannot be written: File too large"
    )
    assert target.exists() is made
    assert not made or list(target.iterdir()) == []


# Finding the server


def test_the_socket_is_only_for_its_owner_and_is_removed_with_the_server(server: ServerProcess) -> None:
    wait_for("the socket", (server.data_dir / SOCKET).exists)
    assert stat.S_IMODE((server.data_dir / SOCKET).stat().st_mode) == 0o600
    assert server.stop() == 0
    assert not (server.data_dir / SOCKET).exists()


def test_a_socket_that_a_killed_server_left_stops_neither_admin_nor_the_next_server(
    start_server: StartServer,
) -> None:
    server = start_server()
    server.log_in("alice").expect_pong()
    wait_for("the socket", (server.data_dir / SOCKET).exists)
    server.stop(signal.SIGKILL)
    assert (server.data_dir / SOCKET).exists()
    assert rows(server.data_dir) == [["1", "alice", "offline", "no"]]
    again = start_server()
    with again.log_in("alice"):
        assert rows(server.data_dir) == [["1", "alice", "online", "no"]]


def test_a_data_folder_deeper_than_a_sockets_path_may_be_long_works(start_server: StartServer, tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("without /proc the server warns that there is no socket in so deep a folder")
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    with start_server(data_dir=deep).log_in("alice"):
        assert rows(deep) == [["1", "alice", "online", "no"]]


@pytest.mark.measured
def test_without_a_socket_the_server_runs_and_warns(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "data" / SOCKET).mkdir(parents=True)
    server = start_server()
    server.wait_for_log("admin.py will not reach this server")
    server.log_in("alice").expect_pong()


@pytest.mark.measured
@pytest.mark.parametrize("running", [True, False])
def test_several_at_once_all_succeed(server: ServerProcess, running: bool) -> None:
    names = [f"user{n}" for n in range(6)]
    for name in names:
        server.log_in(name).close()
    if not running:
        assert server.stop() == 0
    command = [sys.executable, "admin.py", "--data-dir", str(server.data_dir), "remove"]
    removals = [subprocess.Popen([*command, name], cwd=ROOT, stderr=subprocess.PIPE) for name in names]
    assert [removal.communicate(timeout=60)[1] for removal in removals] == [b""] * 6
    assert [removal.returncode for removal in removals] == [0] * 6
    assert rows(server.data_dir) == []


def test_only_one_of_several_removals_of_a_user_succeeds(server: ServerProcess) -> None:
    server.log_in("alice").expect_pong()
    command = [sys.executable, "admin.py", "--data-dir", str(server.data_dir), "remove", "alice"]
    removals = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) for _ in range(4)]
    assert sorted(removal.wait(60) for removal in removals) == [0, 1, 1, 1]


@pytest.mark.measured
@pytest.mark.slow
def test_a_folder_in_use_by_a_process_that_does_not_listen_is_one_line_and_status_1(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("1,alice\n")
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert (
            refusal(tmp_path, "remove", "alice") == f"{tmp_path} is in use by a server that does not listen to admin.py"
        )
    assert (tmp_path / "users.csv").read_text() == "1,alice\n"


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_one_line_and_status_1(server: ServerProcess) -> None:
    server.log_in("alice").close()
    wait_for("the socket", (server.data_dir / SOCKET).exists)
    server.process.send_signal(signal.SIGSTOP)
    try:
        assert "does not answer" in refusal(server.data_dir, "users")
    finally:
        server.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("command", ["users", "remove alice", "kick alice", "passwd alice", "backup copy"])
def test_without_a_database_none_is_created(tmp_path: Path, command: str) -> None:
    for folder in (tmp_path / "empty", tmp_path / "missing"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert f"there is no database in {folder}" in refusal(folder, *command.split(), typed="secret\n")
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user, as this test must")
def test_the_files_of_another_user_are_left_to_that_user(database: Database) -> None:
    folder, _ = database
    running = (folder / SOCKET).exists()
    os.chown(folder / "users.csv", 12345, -1)
    if running:
        assert len(rows(folder)) == 2
    else:
        assert "sudo -u '#12345'" in refusal(folder, "remove", "alice")
    os.chown(folder / "users.csv", 0, -1)


@pytest.mark.measured
def test_a_damaged_database_is_one_line_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("1,alice\nx\n")
    assert f"{tmp_path / 'users.csv'}, line 2" in refusal(tmp_path, "users")


# On the command line


@pytest.mark.measured
@pytest.mark.parametrize(
    "arguments",
    [[], ["list"], ["remove"], ["users", "alice"], ["backup"], ["passwd", "a", "b"], ["kick", "--forget", "a"]],
)
def test_bad_usage_is_status_2(tmp_path: Path, arguments: list[str]) -> None:
    done = start_admin(tmp_path, *arguments)
    assert done.returncode == 2
    assert "usage: admin.py" in done.stderr


def test_the_reader_of_the_list_may_stop_in_the_middle(tmp_path: Path) -> None:
    (tmp_path / "passwords.csv").touch()
    (tmp_path / "users.csv").write_text("".join(f"{n},user{n}\n" for n in range(1, 20001)))
    command = f"'{sys.executable}' admin.py users --data-dir '{tmp_path}' | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "id     name       status   password\n"
    assert "Traceback" not in done.stderr


def test_help_names_every_command_and_gives_examples() -> None:
    shown = subprocess.run([sys.executable, "admin.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.findall(r"^    (\w+) ", shown.stdout, re.MULTILINE) == [
        "users",
        "add",
        "passwd",
        "kick",
        "ban",
        "unban",
        "remove",
        "backup",
        "export",
        "migrate",
    ]
    assert "python admin.py passwd alice --forget" in shown.stdout
    assert "exit status: 0" in shown.stdout


def test_the_folder_may_come_before_the_command_or_from_the_environment(server: ServerProcess) -> None:
    server.log_in("alice").expect_pong()
    before = [sys.executable, "admin.py", "--data-dir", str(server.data_dir), "users"]
    from_environment = [sys.executable, "admin.py", "users"]
    for command in (before, from_environment):
        environment = os.environ | {"CHAT_DATA_DIR": str(server.data_dir if command is from_environment else ROOT)}
        shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert "alice" in shown.stdout


# The server's side of the socket


def connect(server: ServerProcess) -> socket.socket:
    wait_for("the socket", (server.data_dir / SOCKET).exists)
    folder = os.open(server.data_dir, os.O_RDONLY)
    try:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(DEADLINE)
        sock.connect(f"/proc/self/fd/{folder}/{SOCKET}")
    finally:
        os.close(folder)
    return sock


@pytest.mark.measured
@pytest.mark.parametrize(
    ("request_line", "answer"),
    [
        (b"\n", "cannot read this"),
        (b"{\n", "cannot read this"),
        (b"\xff\n", "cannot read this"),
        (b"[" * 4000 + b"\n", "cannot read this"),
        (b"x" * (MAX_REQUEST_BYTES + 1), "cannot read this"),
        (b"[]\n", "does not understand this"),
        (b'{"do": "dance"}\n', "does not understand this"),
        (b'{"do": "remove"}\n', "does not understand this"),
        (b'{"do": "remove", "name": 1}\n', "does not understand this"),
        (b'{"do": "passwd", "name": "alice", "password": 1}\n', "does not understand this"),
        (b'{"do": "passwd", "name": "alice", "password": "\\ud800"}\n', "cannot read this"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_invalid_request_is_answered_with_an_error(server: ServerProcess, request_line: bytes, answer: str) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("the folder of this test is too deep for a socket's path without /proc")
    with server.log_in("alice") as alice, connect(server) as sock:
        sock.sendall(request_line)
        assert answer in sock.recv(4096).decode()
        alice.expect_pong()


@pytest.mark.slow
def test_an_operator_who_sends_nothing_delays_neither_others_nor_the_shutdown(server: ServerProcess) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("the folder of this test is too deep for a socket's path without /proc")
    with connect(server) as silent, connect(server) as gone, server.log_in("alice"):
        gone.sendall(b'{"do": "users"}\n')
        gone.close()
        silent.sendall(b'{"do": ')
        assert rows(server.data_dir) == [["1", "alice", "online", "no"]]
        assert server.stop() == 0
        assert silent.recv(10) == b""
    assert "no request came" not in server.log, "the end has waited for it"


@pytest.mark.measured
@pytest.mark.slow
def test_an_operator_who_sends_nothing_is_disconnected_in_time(server: ServerProcess) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("the folder of this test is too deep for a socket's path without /proc")
    with connect(server) as silent:
        silent.sendall(b"{")
        assert silent.recv(10) == b""
    server.wait_for_log("admin: left before the answer")
