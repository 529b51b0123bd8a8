"""Databases in memory, in place of disk and threads, so that many sessions can be tried in a second."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Self

from chatstorage.chat_file import ChatFile
from chatstorage.chats import ChatRow
from chatstorage.names import looks, skeleton
from storage import NameTaken, Storage, StorageUnavailable, User, UserLimitReached


class MemoryStorage(Storage):
    """A database of users in memory, whose disk can fail."""

    def __init__(self, max_users: int) -> None:
        self.fails = False
        self._max_users = max_users
        self._users: dict[str, User] = {}
        self._by_look: dict[str, User] = {}
        self._hashes: dict[int, str] = {}
        self._online: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Keep nothing."""

    def users(self) -> list[User]:
        return list(self._users.values())

    def count(self) -> int:
        return len(self._users)

    def find(self, name: str) -> User | None:
        user = self._users.get(skeleton(name))
        return user if user and user.name == name else None

    def is_user(self, user_id: int) -> bool:
        return 0 < user_id <= len(self._users)

    def look_alike(self, name: str) -> User | None:
        return next((user for look in looks(name) if (user := self._by_look.get(look))), None)

    def password_hash(self, user_id: int) -> str | None:
        return self._hashes.get(user_id)

    def is_online(self, user_id: int) -> bool:
        return user_id in self._online

    def check_sign_up(self, name: str) -> None:
        if self.look_alike(name):
            raise NameTaken(name)
        if len(self._users) >= self._max_users:
            raise UserLimitReached(name)

    def sign_up(self, name: str, password_hash: str | None) -> User:
        self.check_sign_up(name)
        self._write()
        user = self._users[skeleton(name)] = User(len(self._users) + 1, name)
        self._by_look |= dict.fromkeys(looks(name), user)
        if password_hash:
            self._hashes[user.id] = password_hash
        return user

    def remove(self, user_id: int) -> None:
        raise NotImplementedError("no client can ask for it")

    def committed(self) -> dict[str, int]:
        raise NotImplementedError("there are no files")

    def set_password(self, user_id: int, password_hash: str | None) -> None:
        self._write()
        if password_hash:
            self._hashes[user_id] = password_hash

    def set_status(self, user_id: int, online: bool) -> None:
        self._write()
        (self._online.add if online else self._online.discard)(user_id)

    def _write(self) -> None:
        if self.fails:
            raise StorageUnavailable("the disk fails")


class MemoryChats(ChatFile):
    """Past chats in memory, without a bound. Its disk can fail, for writing or for reading."""

    ROWS_AT_ONCE = 2  # read from a mailbox, however many more bytes may be: a short mailbox is read in parts, too

    def __init__(self) -> None:
        """Open no file."""
        self.rows: dict[int, ChatRow] = {}  # in the order in which they were stored
        self._ids = count(1)
        self.cannot_write = False
        self.cannot_read = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Keep nothing."""

    def users(self) -> list[int]:
        return sorted({user for row in self.rows.values() for user in (row.sender, row.receiver)})

    def mailbox_sizes(self) -> dict[int, int]:
        receivers = {row.receiver for row in self.rows.values() if row.waiting}
        return {user: sum(row.waiting for row in self.rows.values() if row.receiver == user) for user in receivers}

    def last(self, one: int, other: int, count: int) -> list[ChatRow]:
        between = [row for row in self._read() if {row.sender, row.receiver} == {one, other}]
        found = []
        while between and count > 0:
            found.append(between.pop())
            count -= found[-1].count
        return found[::-1]

    def mailbox(self, receiver: int, after: int, _: int) -> list[ChatRow]:
        waiting = (row for row in self._read() if row.receiver == receiver and row.id > after and row.waiting)
        return [row for _, row in zip(range(self.ROWS_AT_ONCE), waiting, strict=False)]

    def write(self, new: Sequence[ChatRow], waiting: Mapping[int, int]) -> None:
        if self.cannot_write:
            raise StorageUnavailable("the disk fails")
        for row in new:
            if row.id in self.rows:
                raise ValueError(f"stored twice: {row}")
            self.rows[row.id] = row
        for number, left in waiting.items():
            self.rows[number] = self.rows[number]._replace(waiting=left)

    def remove(self, user: int) -> None:
        raise NotImplementedError("no client can ask for it")

    def _read(self) -> Iterable[ChatRow]:
        if self.cannot_read:
            raise StorageUnavailable("the disk fails")
        return self.rows.values()
