"""`python admin.py --redis`: on the database of a group of servers, while its nodes run and while they do not."""

import csv
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from chatstorage.chats import ChatRow
from cluster.chats import RedisChats
from cluster.directory import Directory
from cluster.engine import Engine
from cluster.storage import RedisStorage
from protocol import Envelope, Reason
from storage import User
from testkit.group import ServerGroup, run_group
from testkit.processes import ROOT, wait_for
from testkit.redis_server import RedisServer
from tests.test_admin import admin, refusal, refused, rows, start_admin

StartGroup = Callable[[], ServerGroup]


@pytest.fixture
def engine(shared_redis: RedisServer, redis_prefix: str) -> Iterator[Engine]:
    with closing(Engine(shared_redis.url, redis_prefix)) as engine:
        yield engine


@pytest.fixture(autouse=True)
def environment(shared_redis: RedisServer, redis_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which group, in place of options."""
    monkeypatch.setenv("CHAT_REDIS", shared_redis.url)
    monkeypatch.setenv("CHAT_REDIS_PREFIX", redis_prefix)


@pytest.fixture
def start(shared_redis: RedisServer, redis_prefix: str, tmp_path: Path) -> Iterator[StartGroup]:
    """A way to its two nodes."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(run_group(tmp_path / "data", shared_redis.url, prefix=redis_prefix))


@pytest.fixture(params=["running", "stopped"])
def group(request: pytest.FixtureRequest, start: StartGroup) -> StartGroup:
    """alice (1) has the password "secret", and żółć (2) has none; a way to the nodes."""
    nodes = start()
    nodes.visit("alice", "secret")
    nodes.visit("żółć")
    if request.param == "running":
        return lambda: nodes
    assert nodes.stop() == 0
    return start


@pytest.mark.usefixtures("group")
def test_users_are_listed_with_id_name_status_and_password() -> None:
    listed = admin(Path(), "users")
    assert listed == "id  name   status   password\n1   alice  offline  yes\n2   żółć   offline  no\n"


@pytest.mark.measured
def test_the_list_shows_who_is_online_at_any_node(start: StartGroup) -> None:
    one, other = start().nodes
    with one.log_in("alice"), other.log_in("bob"):
        assert [row[2] for row in rows(Path())] == ["online", "online"]
    wait_for("both are offline", lambda: [row[2] for row in rows(Path())] == ["offline", "offline"])


def test_nobody_is_online_at_a_node_that_failed_long_ago(engine: Engine) -> None:
    directory = Directory(engine, lease=60)
    RedisStorage(directory, 10, 255).sign_up("alice", None)
    directory.join()
    directory.claim(User(1, "alice"))
    assert rows(Path()) == [["1", "alice", "online", "no"]]
    engine.call("ZADD", engine.key("nodes"), int(time.time() - 120) * 1000, directory.node)
    assert rows(Path()) == [["1", "alice", "offline", "no"]]
    assert refusal(Path(), "kick", "alice") == "alice is not online"


@pytest.mark.measured
@pytest.mark.slow
def test_a_new_password_counts_at_once_on_every_node(group: StartGroup) -> None:
    assert admin(Path(), "passwd", "alice", typed="geheim\n") == "alice (id 1) has a new password\n"
    assert admin(Path(), "passwd", "żółć", typed="schlüssel") == "żółć (id 2) has a new password\n"
    for node in group().nodes:
        refused(node, "alice", "secret", Reason.WRONG_PASSWORD)
        refused(node, "żółć", "", Reason.PASSWORD_REQUIRED)
        node.visit("alice", "geheim")
        node.visit("żółć", "schlüssel")


def test_after_passwd_forget_the_next_login_sets_a_password(group: StartGroup) -> None:
    done = "alice (id 1) has no password any more: the next login may set one\n"
    for _ in range(2):
        assert admin(Path(), "passwd", "alice", "--forget") == done
    one, other = group().nodes
    one.visit("alice", "other")
    refused(other, "alice", "secret", Reason.WRONG_PASSWORD)


@pytest.mark.parametrize("typed", ["", "x" * 65])
def test_an_invalid_password_is_refused(group: StartGroup, typed: str) -> None:
    assert "password" in refusal(Path(), "passwd", "alice", typed=typed)
    group().nodes[0].visit("alice", "secret")


def test_a_removed_name_can_sign_up_again_with_a_new_id(group: StartGroup) -> None:
    assert admin(Path(), "remove", "żółć") == "removed żółć (id 2); the name is free\n"
    assert [row[1] for row in rows(Path())] == ["alice"]
    for node, password in zip(group().nodes, ("", "mine"), strict=True):
        node.visit("żółć", password)
    assert rows(Path()) == [["1", "alice", "offline", "yes"], ["3", "żółć", "offline", "yes"]]


@pytest.mark.measured
def test_removing_a_user_who_is_online_ends_the_connection(start: StartGroup) -> None:
    one, other = start().nodes
    alice, bob = one.log_in("alice"), other.log_in("bob")
    admin(Path(), "remove", "alice")
    alice.expect_end()
    bob.expect_pong()
    wait_for("it is not listed", lambda: [row[1] for row in rows(Path())] == ["bob"])
    with other.log_in("alice") as anew:
        assert anew.users == {"bob": 2, "alice": 3}


@pytest.mark.measured
def test_a_kicked_user_is_disconnected_and_may_log_in_again(start: StartGroup) -> None:
    one, other = start().nodes
    alice, bob = one.log_in("alice"), other.log_in("bob")
    admin(Path(), "kick", "alice")
    alice.expect_end()
    alice.close()
    bob.expect_pong()
    one.wait_for_log("alice disconnected")
    other.log_in("alice").expect_pong()


@pytest.mark.measured
def test_a_banned_name_is_closed_on_every_node(group: StartGroup) -> None:
    assert admin(Path(), "ban", "alice") == "banned alice (id 1)\n"
    assert rows(Path())[0] == ["1", "alice", "offline", "banned"]
    nodes = group().nodes
    for node in nodes:
        refused(node, "alice", "secret", Reason.INVALID_USERNAME)
    assert admin(Path(), "unban", "alice") == "alice (id 1) may log in again\n"
    assert admin(Path(), "add", "bob", "--open") == "added bob (id 3)\n"
    for node in nodes:
        node.visit("alice", "secret")
        node.visit("bob")


@pytest.mark.usefixtures("group")
def test_an_offline_user_cannot_be_kicked() -> None:
    assert refusal(Path(), "kick", "alice") == "alice is not online"


@pytest.mark.measured
@pytest.mark.parametrize(
    "arguments", [["passwd", "nobody"], ["kick", "nobody"], ["remove", "ALICE"], ["remove", os.fsdecode(b"\xff")]]
)
def test_an_unknown_name_is_one_line_and_status_1(engine: Engine, arguments: list[str]) -> None:
    RedisStorage(Directory(engine, lease=60), 10, 255).sign_up("alice", None)
    assert "there is no user " in refusal(Path(), *arguments, typed="secret\n")


@pytest.mark.measured
def test_every_message_is_exported(engine: Engine) -> None:
    storage = RedisStorage(Directory(engine, lease=60), 10, 255)
    for name in ("alice", "bob"):
        storage.sign_up(name, None)
    packets = Envelope("alice").wrap(b'with "quotes"') + Envelope("alice").wrap(b"two\nlines")
    chats = RedisChats(engine, 100)
    chats.write([ChatRow(2**60, 1, 2, 1_700_000_000, 2, 0, packets)], {})
    chats.write([ChatRow(2**60 + 1, 2, 1, 1_700_000_001, 1, 1, Envelope("bob").wrap("ümläut".encode()))], {})
    assert list(csv.reader(io.StringIO(admin(Path(), "export"), newline=""))) == [
        ["time", "sender", "receiver", "text"],
        ["2023-11-14T22:13:20+00:00", "alice", "bob", 'with "quotes"'],
        ["2023-11-14T22:13:20+00:00", "alice", "bob", "two\nlines"],
        ["2023-11-14T22:13:21+00:00", "bob", "alice", "ümläut"],
    ]


@pytest.mark.measured
def test_a_backup_is_left_to_redis(engine: Engine, tmp_path: Path) -> None:
    RedisStorage(Directory(engine, lease=60), 10, 255).sign_up("alice", None)
    assert "Redis makes its own backups" in refusal(Path(), "backup", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.measured
@pytest.mark.parametrize("command", ["users", "remove alice", "kick alice", "passwd alice", "export"])
def test_without_a_database_none_is_created(engine: Engine, command: str) -> None:
    reason = refusal(Path(), *command.split(), typed="secret\n")
    assert reason == f"there is no database of a group {engine.prefix}; --redis-prefix says which"
    assert engine.call("KEYS", f"{engine.prefix}:*") == []


def test_a_group_whose_nodes_run_and_where_nobody_has_signed_up_has_no_users(start: StartGroup) -> None:
    start()
    assert rows(Path()) == []


@pytest.mark.measured
def test_a_redis_that_is_not_there_is_one_line() -> None:
    assert "Redis: Error 111" in refusal(Path(), "users", "--redis", "redis://127.0.0.1:1/0")


@pytest.mark.measured
def test_what_is_no_url_of_redis_is_a_usage_error() -> None:
    done = start_admin(Path(), "users", "--redis", "localhost")
    assert done.returncode == 2
    assert "this is not a URL of Redis such as redis://localhost:6379/0" in done.stderr


@pytest.mark.measured
def test_options_count_for_more_than_the_environment_before_the_command_or_after_it(
    shared_redis: RedisServer, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    RedisStorage(Directory(engine, lease=60), 10, 255).sign_up("alice", None)
    options = ["--redis", shared_redis.url, "--redis-prefix", engine.prefix]
    monkeypatch.setenv("CHAT_REDIS", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("CHAT_REDIS_PREFIX", "nobodys")
    for command in (["users", *options], [*options, "users"]):
        assert "alice" in admin(Path(), *command)
    assert "there is no database in" in refusal(Path("missing"), "users", "--redis", "")


def test_redis_is_imported_only_with_the_option() -> None:
    text = "import admin, sys; sys.exit(any(name.split('.')[0] in ('redis', 'cluster') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", text], cwd=ROOT, check=False).returncode == 0
