"""`python admin.py migrate`: a database from the files of one server into Redis, and back."""

import fcntl
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatstorage.chat_file import ChatFile, export
from chatstorage.chats import ChatRow
from chatstorage.files import fsync_folder, replace
from chatstorage.interface import StorageUnavailable
from chatstorage.names import skeleton
from cluster import migrate
from cluster.chats import RedisChats
from cluster.directory import Directory
from cluster.engine import Engine
from cluster.migrate import CannotMigrate, carry, carry_back
from cluster.storage import RedisStorage
from protocol import Envelope
from storage import CsvStorage, NameTaken, StorageError, User
from testkit.processes import ROOT
from testkit.programs import ScreenProgram
from testkit.redis_server import RedisServer
from testkit.server import run_server
from tests.test_admin import admin, contents, refusal

pytestmark = pytest.mark.measured

HASH = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g"
WRAP = Envelope("somebody").wrap
PLENTY = 1000


class Found(NamedTuple):
    """A database, as its users know it."""

    users: list[User]
    passwords: dict[int, str | None]
    next_id: int
    rows: list[ChatRow]


def in_folder(folder: Path) -> Found:
    """The database in a copy of this folder."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for path in folder.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        with CsvStorage(copy, PLENTY * PLENTY, 2**32 - 1) as storage:
            users = storage.users()
            passwords = {user.id: storage.password_hash(user.id) for user in users}
            next_id = storage.sign_up("one more", None).id
        return Found(users, passwords, next_id, list(export(copy / "chats.db")))


def in_redis(url: str, prefix: str) -> Found:
    with closing(Engine(url, prefix)) as engine:
        storage = RedisStorage(Directory(engine, lease=60), PLENTY, 255)
        users = storage.users()
        passwords = {user.id: storage.password_hash(user.id) for user in users}
        assert [storage.look_alike(user.name) for user in users] == users
        next_id = int(engine.call("GET", engine.key("last-id"))) + 1
        return Found(users, passwords, next_id, sorted(RedisChats(engine, 100).export()))


def message(number: int, sender: int, receiver: int, waiting: int = 0) -> ChatRow:
    return ChatRow(
        number, sender, receiver, 1_700_000_000 + number, 1, waiting, WRAP(b"%d" % number), 2**61 + 1, number
    )


def make_database(folder: Path, names: dict[str, str | None], rows: list[ChatRow], removed: list[int]) -> None:
    with CsvStorage(folder, PLENTY * PLENTY, 2**32 - 1) as storage:
        for name, password_hash in names.items():
            storage.sign_up(name, password_hash)
        for user_id in removed:
            storage.remove(user_id)
    with CsvStorage(folder, PLENTY * PLENTY, 2**32 - 1), ChatFile(folder / "chats.db", 10_000) as chats:
        chats.write(rows, {})
        for user_id in removed:
            chats.remove(user_id)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """alice (1), żółć (3) and "x" (4) have signed up and talked; 2 and 5 have been removed."""
    names = {"alice": HASH, "bob": HASH, "żółć": None, '"x"': HASH[::-1], "carol": None}
    rows = [message(n, *[(1, 3), (3, 1), (4, 1), (3, 3), (1, 2)][n % 5], waiting=n % 3 == 0) for n in range(7, 40)]
    make_database(tmp_path / "data", names, rows, removed=[2, 5])
    return tmp_path / "data"


class Group(NamedTuple):
    """Where in Redis it shall be."""

    url: str
    prefix: str

    @property
    def options(self) -> list[str]:
        return ["--redis", self.url, "--redis-prefix", self.prefix]

    @property
    def found(self) -> Found:
        return in_redis(self.url, self.prefix)


@pytest.fixture
def group(shared_redis: RedisServer, redis_prefix: str) -> Group:
    return Group(shared_redis.url, redis_prefix)


@pytest.fixture
def engine(group: Group) -> Iterator[Engine]:
    with closing(Engine(*group)) as engine:
        yield engine


def silent(_: str) -> None:
    pass


# There and back


def test_a_migration_there_and_back_changes_nothing(folder: Path, group: Group, tmp_path: Path) -> None:
    before = contents(folder)
    there = admin(folder, "migrate", *group.options)
    assert there == "copied 3 users, 2 passwords and 26 messages\n"
    assert contents(folder) == before, "the files are as they were"
    assert group.found == in_folder(folder)
    assert group.found.next_id == 6, "no id is used again"
    back = tmp_path / "deep" / "back"
    assert admin(back, "migrate", "--back", *group.options) == there
    assert in_folder(back) == in_folder(folder) == group.found
    assert sorted(contents(back)) == ["chats.db", "lock", "passwords.csv", "status.csv", "users.csv"]
    assert {path.stat().st_mode & 0o777 for path in back.iterdir()} == {0o600}
    assert back.stat().st_mode & 0o777 == 0o700


def test_a_server_starts_on_a_migrated_folder_and_delivers_the_mail(group: Group, tmp_path: Path) -> None:
    make_database(tmp_path / "data", {"bob": None, "alice": None}, [], removed=[])
    wrap = Envelope("alice").wrap
    with ChatFile(tmp_path / "data" / "chats.db", 100) as chats:
        chats.write([ChatRow(1, 2, 1, 1_700_000_000, 2, 1, wrap(b"seen") + wrap(b"for later"))], {})
    admin(tmp_path / "data", "migrate", *group.options)
    admin(tmp_path / "back", "migrate", "--back", *group.options)
    with run_server(tmp_path / "back") as server:
        with server.log_in("bob") as bob:
            bob.expect_message("alice:for later")
            bob.expect_pong()
        assert not server.warnings
        assert "removed" not in server.log


def test_a_finished_migration_can_be_run_again_and_says_so(folder: Path, group: Group, tmp_path: Path) -> None:
    admin(folder, "migrate", *group.options)
    found = group.found
    again = admin(folder, "migrate", *group.options)
    assert again == f"nothing to copy: the group {group.prefix} already has all of it\n"
    admin(tmp_path / "back", "migrate", "--back", *group.options)
    before = contents(tmp_path / "back")
    again = admin(tmp_path / "back", "migrate", "--back", *group.options)
    assert again == f"nothing to copy: {tmp_path / 'back'} already has all of it\n"
    assert contents(tmp_path / "back") == before
    assert group.found == found


def test_an_empty_database_and_one_without_chats_are_carried_too(group: Group, tmp_path: Path) -> None:
    with CsvStorage(tmp_path / "data", PLENTY, 255):
        pass
    assert admin(tmp_path / "data", "migrate", *group.options) == "copied 0 users, 0 passwords and 0 messages\n"
    admin(tmp_path / "back", "migrate", "--back", *group.options)
    assert in_folder(tmp_path / "back") == Found([], {}, 1, [])


def test_chats_of_removed_users_are_not_migrated(engine: Engine, group: Group, tmp_path: Path) -> None:
    make_database(tmp_path / "data", {"alice": None, "bob": None}, [], removed=[2])
    with ChatFile(tmp_path / "data" / "chats.db", 100) as chats:
        chats.write([message(1, 1, 2, waiting=1), message(2, 1, 1), message(3, 2, 1, waiting=1)], {})
    carry(tmp_path / "data", engine, silent)
    assert group.found.rows == [message(2, 1, 1)]
    assert engine.call("HLEN", engine.key("mail-sizes")) == 0


names = st.lists(st.text("abcżó\"'#ﬁ", min_size=1, max_size=8), unique_by=skeleton, max_size=8)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), names=names)
def test_any_database_is_the_same_there_and_back(
    shared_redis: RedisServer, data: st.DataObject, names: list[str]
) -> None:
    ids = range(1, len(names) + 1)
    user = st.sampled_from(ids) if names else st.nothing()
    texts = st.lists(st.binary(max_size=200), min_size=1, max_size=3)
    new_id = count(data.draw(st.sampled_from([1, 2**32, 2**62])), data.draw(st.integers(1, 1000)))

    def row(sender: int, receiver: int, texts: list[bytes], waiting: int) -> ChatRow:
        packets = b"".join(WRAP(text[:100]) for text in texts)
        return ChatRow(next(new_id), sender, receiver, 10**9, len(texts), min(waiting, len(texts)), packets)

    rows = data.draw(
        st.lists(st.builds(row, user, user, texts, st.integers(0, 3)), max_size=12) if names else st.just([])
    )
    hashes = data.draw(st.lists(st.none() | st.just(HASH), min_size=len(names), max_size=len(names)))
    removed = data.draw(st.lists(user, unique=True, max_size=3) if names else st.just([]))
    prefix = f"test-{uuid4().hex}"
    with tempfile.TemporaryDirectory() as scratch, closing(Engine(shared_redis.url, prefix)) as engine:
        folder, back = Path(scratch, "data"), Path(scratch, "back")
        make_database(folder, dict(zip(names, hashes, strict=True)), rows, removed)
        carry(folder, engine, silent)
        assert in_redis(shared_redis.url, prefix) == in_folder(folder)
        with RedisStorage(Directory(engine, lease=60), PLENTY, 255):
            sizes = RedisChats(engine, 1).mailbox_sizes()
        carry_back(engine, back, silent)
        assert in_folder(back) == in_folder(folder)
        with ChatFile(back / "chats.db", 1) as chats:
            assert chats.mailbox_sizes() == sizes


# Broken off


class BrokenOff(Exception):
    """As if the program had been killed."""


def broken_off_at(moment: int, patch: pytest.MonkeyPatch, run: Callable[[], object]) -> bool:
    """Run it, but break it off at this moment of those at which it asks Redis or writes a file; whether it was."""
    left = moment

    def breaking(operation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: object) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise BrokenOff
            return operation(*arguments)

        return wrapped

    with patch.context() as patches:
        patches.setattr(Engine, "call", breaking(Engine.call))
        patches.setattr(ChatFile, "write", breaking(ChatFile.write))
        patches.setattr(migrate, "replace", breaking(replace))
        patches.setattr(migrate, "fsync_folder", breaking(fsync_folder))
        try:
            run()
        except BrokenOff:
            return True
    return False


@pytest.mark.parametrize("migrated", [True, False])
def test_the_first_node_protects_names_of_users_from_before_against_look_alikes(
    tmp_path: Path, engine: Engine, migrated: bool
) -> None:
    """Users who were migrated, or of a group that an older version has made."""
    cyrillic, latin = "\N{CYRILLIC SMALL LETTER A}lice", "bob"
    if migrated:
        make_database(tmp_path / "data", {cyrillic: None, latin: None}, [], removed=[])
        carry(tmp_path / "data", engine, silent)
    else:
        engine.call("HSET", engine.key("users"), 1, cyrillic, 2, latin)
        engine.call("HSET", engine.key("names"), skeleton(cyrillic), 1, skeleton(latin), 2)
        engine.call("SET", engine.key("last-id"), 2)
    for _ in range(2):
        with RedisStorage(Directory(engine, lease=60), 10, 255) as storage:
            assert storage.look_alike("alice") == User(1, cyrillic)
            with pytest.raises(NameTaken):
                storage.sign_up("alice", None)
            with pytest.raises(NameTaken):
                storage.sign_up("b\N{CYRILLIC SMALL LETTER O}b", None)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "AT_ONCE", 2)


@pytest.mark.usefixtures("at_once")
def test_a_migration_interrupted_anywhere_completes_when_run_again(
    folder: Path, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = in_folder(folder)
    for moment in count():
        there = group._replace(prefix=f"{group.prefix}-{moment}")
        with closing(Engine(*there)) as engine:
            was_broken_off = broken_off_at(moment, monkeypatch, lambda: carry(folder, engine, silent))
            if engine.call("EXISTS", engine.key("migrating")):
                with pytest.raises(StorageUnavailable, match=r"run admin\.py migrate again"):
                    Directory(engine, lease=60).join()
                if moment % 2:
                    broken_off_at(moment, monkeypatch, lambda: carry(folder, engine, silent))
            else:
                assert engine.call("HLEN", engine.key("users")) in (0, 3), "what a server would take for whole is whole"
            carry(folder, engine, silent)
            assert there.found == expected
            Directory(engine, lease=60).join()
        if not was_broken_off:
            break
    assert moment > 30


@pytest.mark.usefixtures("at_once")
def test_a_migration_back_interrupted_anywhere_completes_when_run_again(
    folder: Path, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry(folder, engine, silent)
    expected = in_folder(folder)
    for moment in count():
        back = tmp_path / f"back-{moment}"
        was_broken_off = broken_off_at(moment, monkeypatch, partial(carry_back, engine, back, silent))
        if was_broken_off and (back / "users.csv").exists():
            assert in_folder(back) == expected, "what a server would take for whole is whole"
        carry_back(engine, back, silent)
        assert in_folder(back) == expected
        assert not (back / "unfinished").exists()
        if not was_broken_off:
            break
    assert moment > 30


def killed(folder: Path, *arguments: str, after: int) -> bool:
    """Whether it was killed before it had ended, some moments after it has told so often how far it is."""
    with ScreenProgram("admin.py", *arguments, "--data-dir", folder, environment={}) as program:
        program.read_until(lambda: program.raw.count(b"\r\x1b[K") >= after)
        time.sleep(random.uniform(0, 0.05))
        program.process.kill()
        return program.process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_migration_killed_at_random_and_run_again_is_complete(group: Group, tmp_path: Path) -> None:
    folder, back = tmp_path / "data", tmp_path / "back"
    folder.mkdir()
    (folder / "users.csv").write_text("".join(f"{n},user{n}\n" for n in range(1, 5_001)))
    (folder / "passwords.csv").write_text("".join(f'{n},"{HASH}"\n' for n in range(1, 5_001, 2)))
    with CsvStorage(folder, PLENTY * PLENTY, 2**32 - 1), ChatFile(folder / "chats.db", 10**6) as chats:
        chats.write([message(n, n % 900 + 1, n % 7 + 1, waiting=n % 2) for n in range(1, 10_001)], {})
    expected = in_folder(folder)
    assert len(expected.rows) == 10_000
    for place, command, steps in (folder, ["migrate"], 15), (back, ["migrate", "--back"], 10):
        kills = [killed(place, *command, *group.options, after=step) for step in random.sample(range(1, steps + 1), 3)]
        assert sum(kills) > 0
        admin(place, *command, *group.options)
        if place == folder:
            assert in_redis(*group) == expected
        assert in_folder(place) == expected


def test_a_repeated_migration_includes_later_changes_in_the_folder(
    folder: Path, group: Group, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "AT_ONCE", 20)
    for moment in count():
        assert broken_off_at(moment, monkeypatch, lambda: carry(folder, engine, silent))
        if engine.call("HLEN", engine.key("pairs")):
            break
    assert engine.call("HLEN", engine.key("users")) == 3
    with CsvStorage(folder, PLENTY, 255) as storage, ChatFile(folder / "chats.db", 10_000) as chats:
        storage.remove(1)
        chats.remove(1)
        storage.sign_up("dora", HASH)
        storage.set_password(3, HASH)
        chats.write([message(100, 6, 4, waiting=1)], {})
    carry(folder, engine, silent)
    assert group.found == in_folder(folder)
    assert engine.call("HGET", engine.key("mail-sizes"), 4) == b"1"


# Refused


def test_another_database_in_redis_is_left_unchanged(folder: Path, group: Group, engine: Engine) -> None:
    with RedisStorage(Directory(engine, lease=60), PLENTY, 255) as storage:
        storage.sign_up("alice", None)
    before = group.found
    expected = f"the group {group.prefix} already has another database"
    assert refusal(folder, "migrate", *group.options) == expected
    assert group.found == before
    Directory(engine, lease=60).join()


def test_a_group_in_use_since_is_not_overwritten(folder: Path, group: Group, engine: Engine) -> None:
    carry(folder, engine, silent)
    RedisChats(engine, 100).write([message(100, 1, 3)], {})
    assert "already has another database" in refusal(folder, "migrate", *group.options)
    assert group.found.rows[-1].id == 100


def test_half_of_another_database_is_left_unchanged(
    folder: Path, group: Group, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_database(tmp_path / "other", {"zoe": None, "alice": None, "eve": None}, [], removed=[])
    monkeypatch.setattr(migrate, "AT_ONCE", 1)
    for moment in count():
        assert broken_off_at(moment, monkeypatch, lambda: carry(tmp_path / "other", engine, silent))
        if engine.call("HLEN", engine.key("users")) == 2:
            break
    assert "half of another database" in refusal(folder, "migrate", *group.options)
    assert "interrupted" in refusal(tmp_path / "back", "migrate", "--back", *group.options)
    carry(tmp_path / "other", engine, silent)
    assert group.found == in_folder(tmp_path / "other")


@pytest.mark.parametrize("back", [False, True])
def test_nothing_is_migrated_while_servers_of_the_group_run(
    folder: Path, group: Group, engine: Engine, tmp_path: Path, back: bool
) -> None:
    directory = Directory(engine, lease=60)
    directory.join()
    command = [tmp_path / "back", "migrate", "--back"] if back else [folder, "migrate"]
    expected = f"servers of the group {group.prefix} are running; stop them first"
    assert refusal(Path(str(command[0])), *command[1:], *group.options) == expected
    assert not (tmp_path / "back").exists()
    directory.quit()
    admin(folder, "migrate", *group.options)


def test_a_node_killed_long_ago_does_not_prevent_a_migration(folder: Path, group: Group, engine: Engine) -> None:
    directory = Directory(engine, lease=60)
    directory.join()
    engine.call("ZADD", engine.key("nodes"), int(time.time() - 120) * 1000, directory.node)
    admin(folder, "migrate", *group.options)
    assert engine.call("ZCARD", engine.key("nodes")) == 0


def test_nothing_is_migrated_while_a_server_runs_on_the_folder(group: Group, engine: Engine, tmp_path: Path) -> None:
    with run_server(tmp_path / "data") as server:
        server.log_in("alice").expect_pong()
        assert "is in use by another server" in refusal(server.data_dir, "migrate", *group.options)
    assert engine.call("KEYS", f"{group.prefix}:*") == []


def test_two_migrations_at_once_do_not_mix(folder: Path, engine: Engine, group: Group, tmp_path: Path) -> None:
    make_database(tmp_path / "other", {"zoe": None}, [], removed=[])

    def interfere(_: str) -> None:
        if not engine.call("EXISTS", engine.key("users")):
            return
        engine.call("UNLINK", engine.key("users"))
        carry(tmp_path / "other", engine, silent)

    with pytest.raises(CannotMigrate, match="another migration has begun"):
        carry(folder, engine, interfere)
    assert group.found == in_folder(tmp_path / "other")


def test_a_folder_with_other_files_is_left_unchanged(
    folder: Path, group: Group, engine: Engine, tmp_path: Path
) -> None:
    carry(folder, engine, silent)
    make_database(tmp_path / "other", {"zoe": None}, [], removed=[])
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("dear bob")
    (tmp_path / "chats only").mkdir()
    (tmp_path / "chats only" / "chats.db").write_bytes(b"precious")
    for name, reason in {
        "other": "{} already has another database",
        "letters": "{} is not empty",
        "chats only": "{} is not empty",
    }.items():
        before = contents(tmp_path / name)
        assert refusal(tmp_path / name, "migrate", "--back", *group.options) == reason.format(tmp_path / name)
        assert contents(tmp_path / name) == before
    Directory(engine, lease=60).join()


def test_a_folder_in_use_by_another_process_is_left_unchanged(folder: Path, engine: Engine, tmp_path: Path) -> None:
    carry(folder, engine, silent)
    (tmp_path / "back").mkdir()
    with (tmp_path / "back" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="is in use"):
            carry_back(engine, tmp_path / "back", silent)
    assert sorted(contents(tmp_path / "back")) == ["lock"]


def test_a_server_that_was_started_on_an_unfinished_folder_keeps_what_it_has_made_of_it(
    folder: Path, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry(folder, engine, silent)
    back, moment = tmp_path / "back", 0
    while not (back / "passwords.csv").exists():
        assert broken_off_at(moment, monkeypatch, lambda: carry_back(engine, back, silent))
        moment += 1
    with run_server(back) as server, server.log_in("zoe") as zoe:
        assert zoe.users == {"zoe": 1}
    with pytest.raises(CannotMigrate, match="already has another database"):
        carry_back(engine, back, silent)
    assert in_folder(back).users == [User(1, "zoe")]


def test_without_a_source_nothing_is_created(group: Group, engine: Engine, tmp_path: Path) -> None:
    assert "there is no database in" in refusal(tmp_path / "missing", "migrate", *group.options)
    reason = refusal(tmp_path / "back", "migrate", "--back", *group.options)
    assert reason == f"there is no database of a group {group.prefix}; --redis-prefix says which"
    assert list(tmp_path.iterdir()) == []
    assert engine.call("KEYS", f"{group.prefix}:*") == []


@pytest.mark.parametrize("back", [[], ["--back"]])
def test_a_redis_that_is_not_there_is_one_line(folder: Path, tmp_path: Path, back: list[str]) -> None:
    before = contents(folder)
    target = tmp_path / "back" if back else folder
    assert refusal(target, "migrate", *back, "--redis", "redis://127.0.0.1:1/0")
    assert contents(folder) == before
    assert not (tmp_path / "back").exists()


def test_without_redis_it_is_bad_usage(folder: Path) -> None:
    command = [sys.executable, "admin.py", "migrate", "--data-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "migrate needs --redis" in done.stderr


def test_progress_is_shown_at_a_terminal(folder: Path, group: Group) -> None:
    arguments = ["migrate", "--data-dir", folder, *group.options]
    with ScreenProgram("admin.py", *arguments, environment={}) as program:
        assert program.wait() == 0
        assert program.text == "copied 3 users, 2 passwords and 26 messages"
        assert b"3 of 3 users" in program.raw
        assert b"\r\x1b[K26 messages" in program.raw
