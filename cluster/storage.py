"""Users and passwords in Redis: the `Storage` interface for a group of servers.

Look-ups ask Redis, while other greenlets go on: they raise StorageUnavailable too.
"""

from contextlib import suppress
from typing import Any, Self

from chatstorage.interface import NameTaken, Storage, StorageUnavailable, User, UserLimitReached
from chatstorage.lines import line
from chatstorage.names import MOST_LOOKS, UNICODE, looks, skeleton
from cluster.directory import Directory
from cluster.engine import Script

CHECK_SIGN_UP, SIGN_UP, REMOVE = Script("check_sign_up"), Script("sign_up"), Script("remove")
LOOK_ALIKE = Script("look_alike")


class RedisStorage(Storage):
    """Keys behind the prefix of the engine:

    users      hash    id -> name
    names      hash    each look of a name -> id
    looks      string  the version of Unicode that these are of
    passwords  hash    id -> argon2id hash
    last-id    string  the highest id ever given

    Opening it joins the group: whether a user is online is in the directory.
    """

    def __init__(self, directory: Directory, max_users: int, max_id: int) -> None:
        self._directory = directory
        self._engine = directory.engine
        self._limits = (max_users, max_id)

    def __enter__(self) -> Self:
        self._directory.join()
        if self._engine.call("GET", self._engine.key("looks")) != UNICODE.encode():
            for user in self.users():  # who may have signed up before this rule, or were migrated
                for look in looks(user.name)[1:]:
                    self._engine.call("HSETNX", self._engine.key("names"), look, user.id)
            self._engine.call("SET", self._engine.key("looks"), UNICODE)
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(StorageUnavailable):  # otherwise the lease runs out by itself
            self._directory.quit()

    # Look-ups

    def users(self) -> list[User]:
        found = {int(user_id): name.decode() for page in self._engine.scan("users") for user_id, name in page.items()}
        return [User(user_id, found[user_id]) for user_id in sorted(found)]

    def count(self) -> int:
        return int(self._engine.call("HLEN", self._engine.key("users")))

    def find(self, name: str) -> User | None:
        found = self.credentials(name)
        return found[0] if found else None

    def is_user(self, user_id: int) -> bool:
        return self._get("users", user_id) is not None

    def look_alike(self, name: str) -> User | None:
        found = self._engine.run(LOOK_ALIKE, *_looks(name))
        return User(int(found[0]), found[1].decode()) if found else None

    def password_hash(self, user_id: int) -> str | None:
        return self._get("passwords", user_id)

    def credentials(self, name: str) -> tuple[User, str | None] | None:
        user_id, found, *stored = self._engine.run(LOOK_ALIKE, _text(skeleton(name))) or (0, b"")
        if found.decode() != name:
            return None
        return User(int(user_id), name), stored[0].decode() if stored else None

    def is_online(self, user_id: int) -> bool:
        return self._directory.is_online(user_id)

    def check_sign_up(self, name: str) -> None:
        self._judge(name, self._engine.run(CHECK_SIGN_UP, *_looks(name), *self._limits))

    def committed(self) -> dict[str, int]:
        return {}  # Redis makes its own backups

    # Writing

    def sign_up(self, name: str, password_hash: str | None) -> User:
        check(name, password_hash)
        password = password_hash or ""
        return User(self._judge(name, self._engine.run(SIGN_UP, *_looks(name), *self._limits, name, password)), name)

    def remove(self, user_id: int) -> None:
        name = self._get("users", user_id)
        if name is None or not self._engine.run(REMOVE, user_id, *_looks(name)):
            raise KeyError(user_id)

    def set_password(self, user_id: int, password_hash: str | None) -> None:
        check("anybody", password_hash)
        if not self.is_user(user_id):
            raise KeyError(user_id)
        if password_hash is None:
            self._engine.call("HDEL", self._engine.key("passwords"), user_id)
        else:
            self._engine.call("HSET", self._engine.key("passwords"), user_id, password_hash)

    def set_status(self, user_id: int, online: bool) -> None:
        name = self._get("users", user_id)
        if name is None:
            raise KeyError(user_id)
        if online:
            self._directory.claim(User(user_id, name))
        else:
            self._directory.release(user_id, settling=False)

    def _get(self, key: str, field: str | bytes | int) -> str | None:
        found = self._engine.call("HGET", self._engine.key(key), field)
        return None if found is None else found.decode()

    def _judge(self, name: str, answer: Any) -> int:
        match answer:
            case b"taken":
                raise NameTaken(name)
            case b"full":
                raise UserLimitReached(name)
            case b"free":
                return 0
        return int(answer)


def check(name: str, password_hash: str | None) -> None:
    """Raises ValueError for a text that CSV files could not hold: the database can be migrated back to them."""
    for text in (name, "-" if password_hash is None else password_hash):
        line(1, text)


def _looks(name: str) -> list[bytes]:
    """All looks of a name, the skeleton again in place of those that it has not."""
    found = looks(name)
    return [_text(look) for look in found + found[:1] * (MOST_LOOKS - len(found))]


def _text(text: str) -> bytes:
    """A name to look up need not be valid UTF-8."""
    return text.encode(errors="surrogatepass")
