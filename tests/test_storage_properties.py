"""Any sequence of calls equals a plain dict, and a file cut at any byte reloads to something that was true."""

import shutil
import tempfile
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol import is_valid_username
from storage import CsvStorage, NameTaken, User, UserLimitReached

FILES = ("users.csv", "passwords.csv", "status.csv")
MAX_USERS = 6

NAMES = st.one_of(
    st.sampled_from(["alice", "Alice", "ａｌｉｃｅ", "bob", '"bob"', '"']),  # noqa: RUF001 - full-width letters
    st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters=",:"), min_size=1, max_size=8)
    .map(lambda name: normalize("NFC", name))
    .filter(is_valid_username),
)
HASHES = st.one_of(
    st.sampled_from(["$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA", '"', ",", "0"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=20),
)


def folded(name: str) -> str:
    return normalize("NFKC", normalize("NFKC", name).casefold())


class StorageIsADict(RuleBasedStateMachine):
    """A storage on real files next to dicts that should say the same; both are asked after every step."""

    def __init__(self) -> None:
        super().__init__()
        self._scratch = tempfile.TemporaryDirectory()
        self._names: dict[int, str] = {}
        self._hashes: dict[int, str] = {}
        self._online: set[int] = set()
        self._highest_id = 0
        self._start()

    def _start(self) -> None:
        self._storage = CsvStorage(Path(self._scratch.name), MAX_USERS, 255)
        self._storage.__enter__()

    def teardown(self) -> None:
        self._storage.__exit__()
        self._scratch.cleanup()

    @rule(name=NAMES, password_hash=st.none() | HASHES)
    def sign_up(self, name: str, password_hash: str | None) -> None:
        taken = folded(name) in map(folded, self._names.values())
        try:
            user = self._storage.sign_up(name, password_hash)
        except NameTaken:
            assert taken
        except UserLimitReached:
            assert not taken
            assert len(self._names) == MAX_USERS
        else:
            assert not taken
            self._highest_id += 1
            assert user == User(self._highest_id, name)
            self._names[user.id] = name
            if password_hash is not None:
                self._hashes[user.id] = password_hash

    @precondition(lambda self: self._names)
    @rule(data=st.data(), password_hash=st.none() | HASHES)
    def set_password(self, data: st.DataObject, password_hash: str | None) -> None:
        user_id = data.draw(st.sampled_from(sorted(self._names)))
        self._storage.set_password(user_id, password_hash)
        self._hashes.pop(user_id, None)
        if password_hash is not None:
            self._hashes[user_id] = password_hash

    @precondition(lambda self: self._names)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        user_id = data.draw(st.sampled_from(sorted(self._names)))
        self._storage.remove(user_id)
        del self._names[user_id]
        self._hashes.pop(user_id, None)
        self._online.discard(user_id)

    @rule(cut=st.sampled_from(FILES), data=st.data(), password_hash=HASHES)
    def crash_in_a_write(self, cut: str, data: st.DataObject, password_hash: str) -> None:
        """A torn line, which never happened."""
        self._storage.__exit__()
        torn = f"{data.draw(st.integers(1, self._highest_id + 1))},{password_hash}".encode()
        with Path(self._scratch.name, cut).open("ab") as file:
            file.write(torn[: data.draw(st.integers(0, len(torn)))])
        self._start()
        self._online.clear()

    @precondition(lambda self: self._names)
    @rule(data=st.data(), online=st.booleans())
    def set_status(self, data: st.DataObject, online: bool) -> None:
        user_id = data.draw(st.sampled_from(sorted(self._names)))
        self._storage.set_status(user_id, online)
        if online:
            self._online.add(user_id)
        else:
            self._online.discard(user_id)

    @rule()
    def reopen(self) -> None:
        self._storage.__exit__()
        self._start()
        self._online.clear()

    @invariant()
    def says_what_the_dicts_say(self) -> None:
        assert self._storage.users() == [User(*item) for item in self._names.items()]
        for user_id in range(self._highest_id + 2):
            assert self._storage.password_hash(user_id) == self._hashes.get(user_id)
            assert self._storage.is_online(user_id) == (user_id in self._online)
        for user_id, name in self._names.items():
            assert self._storage.find(name) == User(user_id, name)

    @invariant()
    def the_status_file_says_who_is_online(self) -> None:
        statuses = dict(line.split(",") for line in Path(self._scratch.name, "status.csv").read_text().splitlines())
        assert {user_id: statuses[str(user_id)] for user_id in self._names} == {
            user_id: str(int(user_id in self._online)) for user_id in self._names
        }


TestStorageIsADict = StorageIsADict.TestCase
TestStorageIsADict.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)


# A cut at any byte

History = list[tuple[str, list[tuple[int, str]]]]  # each name that signs up, and the (user id, hash) stored after it


@st.composite
def histories(draw: st.DrawFn) -> History:
    names = draw(st.lists(NAMES, min_size=1, max_size=MAX_USERS, unique_by=folded))
    return [
        (name, draw(st.lists(st.tuples(st.integers(1, count), HASHES), max_size=3)))
        for count, name in enumerate(names, start=1)
    ]


def live_through(history: History, folder: Path) -> None:
    """Fill the folder. A new user's own hash that comes first is part of the sign-up."""
    with CsvStorage(folder, MAX_USERS, 255) as storage:
        for user_id, (name, hashes) in enumerate(history, start=1):
            with_password = bool(hashes) and hashes[0][0] == user_id
            storage.sign_up(name, hashes[0][1] if with_password else None)
            for stored in hashes[with_password:]:
                storage.set_password(*stored)
            storage.set_status(user_id, online=True)


def check_reload(folder: Path, history: History, file: str, size: int) -> None:
    """Cut `file` to `size` bytes: what its whole lines say, and all that the other files say, is what is left."""
    path = folder / file
    path.write_bytes(path.read_bytes()[:size])
    lines = path.read_bytes().count(b"\n")
    users = [User(user_id, name) for user_id, (name, _) in enumerate(history, start=1)]
    hashes = [stored for _, hashes in history for stored in hashes]
    if file == "users.csv":
        users = users[:lines]
    if file == "passwords.csv":
        hashes = hashes[:lines]
    for _ in range(2):  # the second time after the repair
        with CsvStorage(folder, MAX_USERS + 1, 255) as storage:
            assert storage.users() == users
            assert [storage.password_hash(user.id) for user in users] == [dict(hashes).get(user.id) for user in users]
            assert not any(storage.is_online(user.id) for user in users)
    with CsvStorage(folder, MAX_USERS + 1, 255) as storage:
        newcomer = storage.sign_up("a-name-longer-than-any", None)
        assert newcomer.id == len(users) + 1
        assert storage.password_hash(newcomer.id) is None


@given(history=histories(), file=st.sampled_from(FILES), data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_file_cut_anywhere_reloads_to_a_state_that_was_true(
    history: History, file: str, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        live_through(history, Path(folder))
        size = data.draw(st.integers(0, Path(folder, file).stat().st_size))
        check_reload(Path(folder), history, file, size)


@pytest.mark.parametrize("file", FILES)
def test_every_byte_is_a_safe_place_for_a_cut(tmp_path: Path, file: str) -> None:
    history: History = [
        ("alice", [(1, "$argon2id$v=19$m=8,t=2,p=1$c2E$aGE")]),
        ('żó"ł', [(1, '",'), (2, "plain")]),
        ("carol", []),
        ("\N{OLD ITALIC LETTER A}", [(4, "\N{OLD ITALIC LETTER BE}"), (2, "new")]),
    ]
    live_through(history, tmp_path / "whole")
    for size in range((tmp_path / "whole" / file).stat().st_size + 1):
        shutil.copytree(tmp_path / "whole", tmp_path / str(size))
        check_reload(tmp_path / str(size), history, file, size)
