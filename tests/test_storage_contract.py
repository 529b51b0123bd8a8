"""What every storage backend does. To test another one, add a line to BACKENDS."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import pytest

from cluster.directory import Directory
from cluster.engine import Engine
from cluster.storage import RedisStorage
from storage import CsvStorage, NameTaken, Storage, User, UserLimitReached

HASH = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g"
OTHER_HASH = HASH[::-1]

Backend = Callable[[int, int], Storage]


def csv_backend(request: pytest.FixtureRequest) -> Backend:
    return partial(CsvStorage, request.getfixturevalue("tmp_path") / "data")


def redis_backend(request: pytest.FixtureRequest) -> Backend:
    engine = Engine(request.getfixturevalue("shared_redis").url, request.getfixturevalue("redis_prefix"))
    request.addfinalizer(engine.close)
    return partial(RedisStorage, Directory(engine, lease=60))


BACKENDS: dict[str, Callable[[pytest.FixtureRequest], Backend]] = {
    "csv": csv_backend,
    "redis": redis_backend,
}


class Database(Protocol):
    """Makes a storage, not opened yet, on the one database of a test."""

    def __call__(self, max_users: int = 1000, max_id: int = 65535) -> Storage: ...


@pytest.fixture(params=BACKENDS)
def database(request: pytest.FixtureRequest) -> Database:
    backend = BACKENDS[request.param](request)
    return lambda max_users=1000, max_id=65535: backend(max_users, max_id)


# Signing up and looking up


def test_a_new_database_has_no_users(database: Database) -> None:
    with database() as storage:
        assert storage.users() == []
        assert storage.count() == 0
        assert storage.find("alice") is None
        assert storage.look_alike("alice") is None


def test_ids_count_up_from_1_and_users_are_listed_by_id(database: Database) -> None:
    with database() as storage:
        signed_up = [storage.sign_up(name, None) for name in ("zoe", "alice", "mallory")]
        assert signed_up == [User(1, "zoe"), User(2, "alice"), User(3, "mallory")]
        assert storage.users() == signed_up
        assert storage.count() == 3


def test_the_list_of_users_is_the_callers_own(database: Database) -> None:
    with database() as storage:
        storage.sign_up("alice", None)
        storage.users().clear()
        assert storage.users() == [User(1, "alice")]


def test_a_user_is_found_by_the_exact_name_only(database: Database) -> None:
    with database() as storage:
        alice = storage.sign_up("Alice", None)
        assert storage.find("Alice") == alice
        assert storage.find("alice") is None
        assert storage.find("Alic") is None


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("alice", "alice"),
        ("alice", "ALICE"),
        ("alice", "ａｌｉｃｅ"),  # noqa: RUF001 - full-width letters
        ("STRASSE", "straße"),
        ("Kelvin", "\N{KELVIN SIGN}elvin"),
        ("ﬁona", "fiona"),
        ("\N{BLACK-LETTER CAPITAL H}ans", "hans"),
        ("\N{GREEK CAPITAL LETTER IOTA WITH DIALYTIKA}\N{COMBINING ACUTE ACCENT}", "\u0390"),
        ("J\N{COMBINING CARON}", "ǰ"),
        ("alice", "\N{CYRILLIC SMALL LETTER A}lice"),
        ("BOB", "\N{CYRILLIC CAPITAL LETTER VE}\N{CYRILLIC CAPITAL LETTER O}\N{CYRILLIC CAPITAL LETTER VE}"),
        ("Ivan", "\N{CYRILLIC CAPITAL LETTER BYELORUSSIAN-UKRAINIAN I}van"),
        ("lena", "\N{CYRILLIC SMALL LETTER PALOCHKA}ena"),
        ("zo\N{LATIN SMALL LETTER E WITH DIAERESIS}", "zo\N{CYRILLIC SMALL LETTER IO}"),
        ("\N{CYRILLIC SMALL LETTER ER}\N{CYRILLIC SMALL LETTER A}x", "\N{GREEK SMALL LETTER RHO}ax"),
        ("maria", "\N{MATHEMATICAL BOLD SMALL M}aria"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_look_alikes_are_one_name_to_sign_up_but_not_to_log_in(
    database: Database, name: str, other: str, swapped: bool
) -> None:
    if swapped:
        name, other = other, name
    with database() as storage:
        user = storage.sign_up(name, None)
        assert storage.look_alike(other) == user
        assert storage.find(other) == (user if other == name else None)
        assert storage.credentials(other) == ((user, None) if other == name else None)
        with pytest.raises(NameTaken):
            storage.check_sign_up(other)
        with pytest.raises(NameTaken):
            storage.sign_up(other, HASH)
        assert storage.users() == [user]
        assert storage.password_hash(user.id) is None


ODD_NAMES = ['"', '""', 'a"b', '"quoted"', "'", "#", "\N{SNOWMAN}", "żółć", "\N{OLD ITALIC LETTER A}"]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("modern", "modem"),  # they look alike, but are in one script, which people can read
        ("bob1", "bobl"),
        ("bob0", "bobO"),
        ("anna", "\N{CYRILLIC SMALL LETTER A}\N{CYRILLIC SMALL LETTER EN}\N{CYRILLIC SMALL LETTER EN}a"),
        ("jorg", "jörg"),
        ("\N{CYRILLIC SMALL LETTER I}van", "ivan"),
    ],
)
def test_names_that_people_can_tell_apart_are_two(database: Database, name: str, other: str) -> None:
    with database() as storage:
        one, two = storage.sign_up(name, None), storage.sign_up(other, None)
        assert (storage.find(name), storage.find(other)) == (one, two)


def test_a_name_is_free_again_for_look_alikes_once_its_user_is_removed(database: Database) -> None:
    with database() as storage:
        storage.remove(storage.sign_up("\N{CYRILLIC SMALL LETTER A}lice", None).id)
        storage.remove(storage.sign_up("alice", None).id)
        assert storage.sign_up("\N{CYRILLIC SMALL LETTER A}lice", None).id == 3


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_of_any_printable_characters_survive_a_restart(database: Database, name: str) -> None:
    with database() as storage:
        user = storage.sign_up(name, HASH)
    with database() as storage:
        assert storage.find(name) == user
        assert storage.password_hash(user.id) == HASH
        assert storage.credentials(name) == (user, HASH)


# Limits


def test_no_more_than_max_users_sign_up(database: Database) -> None:
    with database(max_users=2) as storage:
        for name in ("alice", "bob"):
            storage.check_sign_up(name)
            storage.sign_up(name, None)
        with pytest.raises(UserLimitReached):
            storage.check_sign_up("carol")
        with pytest.raises(UserLimitReached):
            storage.sign_up("carol", None)
        assert len(storage.users()) == 2


def test_no_id_above_max_id_is_given(database: Database) -> None:
    with database(max_id=1) as storage:
        storage.sign_up("alice", None)
        with pytest.raises(UserLimitReached):
            storage.check_sign_up("bob")
        with pytest.raises(UserLimitReached):
            storage.sign_up("bob", None)


def test_a_taken_name_is_reported_before_the_limit(database: Database) -> None:
    with database(max_users=1) as storage:
        storage.sign_up("alice", None)
        with pytest.raises(NameTaken):
            storage.check_sign_up("Alice")
        with pytest.raises(NameTaken):
            storage.sign_up("Alice", None)


def test_a_database_with_more_users_than_may_sign_up_now_still_opens(database: Database) -> None:
    with database() as storage:
        users = [storage.sign_up(name, None) for name in ("alice", "bob")]
    with database(max_users=1) as storage:
        assert storage.users() == users
        with pytest.raises(UserLimitReached):
            storage.check_sign_up("carol")


# Passwords


def test_a_user_may_sign_up_without_a_password_and_get_one_later(database: Database) -> None:
    with database() as storage:
        alice = storage.sign_up("alice", None)
        assert storage.password_hash(alice.id) is None
        storage.set_password(alice.id, HASH)
        assert storage.password_hash(alice.id) == HASH
    with database() as storage:
        assert storage.password_hash(alice.id) == HASH


def test_the_last_password_counts(database: Database) -> None:
    with database() as storage:
        alice = storage.sign_up("alice", HASH)
        bob = storage.sign_up("bob", HASH)
        storage.set_password(alice.id, OTHER_HASH)
        assert (storage.password_hash(alice.id), storage.password_hash(bob.id)) == (OTHER_HASH, HASH)
    with database() as storage:
        assert (storage.password_hash(alice.id), storage.password_hash(bob.id)) == (OTHER_HASH, HASH)


def test_a_password_for_an_unknown_user_is_refused_and_never_passes_to_the_next_one(database: Database) -> None:
    with database() as storage:
        with pytest.raises(KeyError):
            storage.set_password(1, HASH)
        assert storage.password_hash(1) is None
    with database() as storage:
        assert storage.password_hash(storage.sign_up("alice", None).id) is None


def test_a_password_can_be_taken_away_and_given_again(database: Database) -> None:
    with database() as storage:
        alice, bob = storage.sign_up("alice", HASH), storage.sign_up("bob", HASH)
        storage.set_password(alice.id, None)
        storage.set_password(alice.id, None)
        assert (storage.password_hash(alice.id), storage.password_hash(bob.id)) == (None, HASH)
    with database() as storage:
        assert (storage.password_hash(alice.id), storage.password_hash(bob.id)) == (None, HASH)
        storage.set_password(alice.id, OTHER_HASH)
    with database() as storage:
        assert storage.password_hash(alice.id) == OTHER_HASH


# Removal


def test_a_removed_user_is_no_longer_found(database: Database) -> None:
    with database() as storage:
        alice, bob = storage.sign_up("alice", HASH), storage.sign_up("bob", OTHER_HASH)
        storage.set_status(alice.id, online=True)
        storage.remove(alice.id)
        for _ in range(2):
            assert storage.users() == [bob]
            assert storage.find("alice") is None
            assert storage.look_alike("ALICE") is None
            assert storage.password_hash(alice.id) is None
            assert not storage.is_online(alice.id)
            assert storage.password_hash(bob.id) == OTHER_HASH
            storage.__exit__()
            storage.__enter__()


def test_a_removed_users_id_is_never_used_again_and_the_name_is_free(database: Database) -> None:
    with database() as storage:
        storage.sign_up("alice", HASH)
        storage.sign_up("bob", HASH)
        storage.remove(2)
        assert storage.sign_up("Bob", None) == User(3, "Bob")
        storage.remove(3)
    for user_id in (4, 5):
        with database() as storage:
            assert storage.sign_up("bob", None) == User(user_id, "bob")
            assert storage.password_hash(user_id) is None
            storage.remove(user_id)


def test_an_unknown_user_cannot_be_removed_nor_a_user_twice(database: Database) -> None:
    with database() as storage:
        alice = storage.sign_up("alice", None)
        storage.remove(alice.id)
        calls: list[Callable[[], None]] = [
            lambda: storage.remove(alice.id),
            lambda: storage.remove(2),
            lambda: storage.set_password(alice.id, HASH),
            lambda: storage.set_password(alice.id, None),
            lambda: storage.set_status(alice.id, online=False),
        ]
        for call in calls:
            with pytest.raises(KeyError):
                call()
    with database() as storage:
        assert storage.users() == []


def test_removed_users_do_not_count_for_max_users_but_their_ids_do_for_max_id(database: Database) -> None:
    with database(max_users=1, max_id=2) as storage:
        for name in ("alice", "bob"):
            storage.remove(storage.sign_up(name, None).id)
    for _ in range(2):
        with database(max_users=1, max_id=2) as storage, pytest.raises(UserLimitReached):
            storage.sign_up("carol", None)
    with database(max_users=1, max_id=3) as storage:
        assert storage.sign_up("carol", None) == User(3, "carol")


# Status


def test_a_user_is_offline_until_set_online(database: Database) -> None:
    with database() as storage:
        alice, bob = storage.sign_up("alice", None), storage.sign_up("bob", None)
        assert not storage.is_online(alice.id)
        storage.set_status(alice.id, online=True)
        assert storage.is_online(alice.id)
        assert not storage.is_online(bob.id)
        storage.set_status(alice.id, online=False)
        assert not storage.is_online(alice.id)


def test_a_status_may_be_set_twice(database: Database) -> None:
    with database() as storage:
        alice = storage.sign_up("alice", None)
        for online in (False, True, True, False, False):
            storage.set_status(alice.id, online)
            assert storage.is_online(alice.id) is online


def test_everyone_is_offline_after_a_restart(database: Database) -> None:
    with database() as storage:
        alice = storage.sign_up("alice", None)
        storage.set_status(alice.id, online=True)
    with database() as storage:
        assert not storage.is_online(alice.id)


def test_an_unknown_user_is_offline_and_cannot_be_set_online(database: Database) -> None:
    with database() as storage:
        assert not storage.is_online(1)
        with pytest.raises(KeyError):
            storage.set_status(1, online=True)
        assert not storage.is_online(1)


# Opening and closing


def test_users_survive_a_restart_and_ids_go_on_from_the_highest(database: Database) -> None:
    with database() as storage:
        users = [storage.sign_up(name, None) for name in ("alice", "bob")]
    with database() as storage:
        assert storage.users() == users
        assert storage.sign_up("carol", None) == User(3, "carol")


def test_one_storage_may_be_opened_again(database: Database) -> None:
    storage = database()
    for _ in range(2):
        with storage:
            user = storage.find("alice") or storage.sign_up("alice", HASH)
            assert not storage.is_online(user.id)
            storage.set_status(user.id, online=True)
    assert storage.users() == [User(1, "alice")]


def test_an_error_in_the_block_surfaces_and_what_was_written_before_it_stays(database: Database) -> None:
    def run() -> None:
        with database() as storage:
            storage.sign_up("alice", None)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run()
    with database() as storage:
        assert storage.users() == [User(1, "alice")]


@pytest.mark.parametrize("text", ["", "a\0b", "a\nb", 'a",\nb', "a\rb", "\ud800"])
def test_a_text_that_cannot_be_stored_is_refused_and_changes_nothing(database: Database, text: str) -> None:
    with database() as storage:
        alice = storage.sign_up("alice", HASH)
        for call in (
            lambda: storage.sign_up(text, None),
            lambda: storage.sign_up("bob", text),
            lambda: storage.set_password(alice.id, text),
        ):
            with pytest.raises(ValueError):  # noqa: PT011 - UnicodeEncodeError is one, with a text of its own
                call()
    with database() as storage:
        assert storage.users() == [alice]
        assert storage.password_hash(alice.id) == HASH
