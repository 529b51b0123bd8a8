"""What a database of users is to the rest of the server: the `Storage` interface, and what it raises."""

import unicodedata
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class User:
    """Who has signed up."""

    id: int
    name: str


class StorageError(Exception):
    """What every error of a storage is, save an OSError while it opens."""


class NameTaken(StorageError):
    """Somebody has this name, or one that looks like it."""


class UserLimitReached(StorageError):
    """There are as many users as there may be, or no id is left."""


class StorageUnavailable(StorageError):
    """The database cannot be written now; nothing has changed. The OSError is the cause."""


class FolderInUse(StorageError):
    """Another server has this folder open."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} is in use by another server")


class DamagedFile(StorageError):
    """A line that makes no sense. Nothing has been written."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}, line {line}: {problem}")
        self.path = path
        self.line = line


class Storage(ABC):
    """A database of users, open within a `with` block; everyone is offline when it opens.

    The look-ups never block. The writing calls (`sign_up`, `remove` and the two `set_`) may block, and come from one
    thread at a time, while look-ups go on in another. They raise StorageUnavailable, and ValueError for a text that
    cannot be stored: empty, not UTF-8, or with a NUL or a line end in it.

    One that `is_shared` with other servers is asked in the loop. Every call may wait there, while other greenlets go
    on, and raise StorageUnavailable; who is online is settled when they come and go, not afterwards.
    """

    is_shared = False

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *error: object) -> None: ...

    @abstractmethod
    def users(self) -> list[User]:
        """Everyone, by ascending id."""

    @abstractmethod
    def count(self) -> int:
        """How many have signed up."""

    @abstractmethod
    def find(self, name: str) -> User | None:
        """The user of exactly this name."""

    @abstractmethod
    def is_user(self, user_id: int) -> bool:
        """Whether somebody has this id now."""

    @abstractmethod
    def look_alike(self, name: str) -> User | None:
        """The user whose name looks like this one (see `skeleton`), or is this one."""

    @abstractmethod
    def password_hash(self, user_id: int) -> str | None:
        """What was stored last for this user, if anything was."""

    @abstractmethod
    def is_online(self, user_id: int) -> bool:
        """The status that was stored last."""

    @abstractmethod
    def check_sign_up(self, name: str) -> None:
        """Raises NameTaken, or else UserLimitReached, where `sign_up` would."""

    @abstractmethod
    def sign_up(self, name: str, password_hash: str | None) -> User:
        """Add a user, whose id is the highest one ever given + 1. Raises NameTaken, or else UserLimitReached."""

    @abstractmethod
    def remove(self, user_id: int) -> None:
        """Forget a user and the password; the id is never given again. Raises KeyError for an unknown user."""

    @abstractmethod
    def set_password(self, user_id: int, password_hash: str | None) -> None:
        """Give a user this hash in place of any other, or none. Raises KeyError for an unknown user."""

    @abstractmethod
    def set_status(self, user_id: int, online: bool) -> None:
        """Store who is online; it need not survive a restart. Raises KeyError for an unknown user."""

    @abstractmethod
    def committed(self) -> dict[str, int]:
        """The files in the folder that make up the database, the one that must be copied last coming last, and how
        many bytes of each are stored for good. A copy of so much of each is a backup of this moment. Asked by the
        thread that writes.
        """


def skeleton(name: str) -> str:
    """What is the same for two names that look alike: compatibility forms and case folded away."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
