"""The `Storage` interface, a database of users, and the errors it raises."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class User:
    """A user who has signed up."""

    id: int
    name: str


class StorageError(Exception):
    """Base class of all errors of a storage, except an OSError while it opens."""


class NameTaken(StorageError):
    """Another user has this name, or one that looks like it."""


class UserLimitReached(StorageError):
    """The maximum number of users is reached, or no id is left."""


class StorageUnavailable(StorageError):
    """The database cannot be used now; nothing has changed. The cause is the OSError."""


class FolderInUse(StorageError):
    """Another server has this folder open."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} is in use by another server")


class DamagedFile(StorageError):
    """A line that is damaged. Nothing has been written."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}, line {line}: {problem}")
        self.path = path
        self.line = line


class MissingFile(StorageError):
    """A file is missing, and with it something about users who have signed up. Nothing has been written."""


class Storage(ABC):
    """A database of users, open within a `with` block; all users are offline when it opens.

    Look-ups never block. The writing calls (`sign_up`, `remove`, `set_password`, `set_status`) may block. One thread at
    a time makes them, while look-ups go on in another. They raise StorageUnavailable, and ValueError for a text that
    cannot be stored: empty, not UTF-8, or containing a NUL or a line end.

    The database of a group of servers is called in the loop: every call may wait there, while other greenlets run, and
    may raise StorageUnavailable. A login or departure sets the status by itself there.
    """

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *error: object) -> None: ...

    @abstractmethod
    def users(self) -> list[User]:
        """All users, by ascending id."""

    @abstractmethod
    def count(self) -> int:
        """How many users have signed up."""

    @abstractmethod
    def find(self, name: str) -> User | None:
        """The user with exactly this name."""

    @abstractmethod
    def is_user(self, user_id: int) -> bool:
        """Whether a user has this id now."""

    @abstractmethod
    def look_alike(self, name: str) -> User | None:
        """The user whose name is, or looks like, this one (chatstorage/names.py)."""

    @abstractmethod
    def password_hash(self, user_id: int) -> str | None:
        """The hash stored last for this user, if any."""

    def credentials(self, name: str) -> tuple[User, str | None] | None:
        """The user with exactly this name, and its password_hash()."""
        user = self.find(name)
        return (user, self.password_hash(user.id)) if user else None

    @abstractmethod
    def is_online(self, user_id: int) -> bool:
        """The status stored last."""

    @abstractmethod
    def check_sign_up(self, name: str) -> None:
        """Raises NameTaken or UserLimitReached if `sign_up` would."""

    @abstractmethod
    def sign_up(self, name: str, password_hash: str | None) -> User:
        """Add a user; its id is the highest ever given plus 1. Raises NameTaken, or else UserLimitReached."""

    @abstractmethod
    def remove(self, user_id: int) -> None:
        """Remove a user and the password; the id is never given again. Raises KeyError for an unknown user."""

    @abstractmethod
    def set_password(self, user_id: int, password_hash: str | None) -> None:
        """Replace a user's password hash; None removes it. Raises KeyError for an unknown user."""

    @abstractmethod
    def set_status(self, user_id: int, online: bool) -> None:
        """Store whether a user is online; this need not survive a restart. Raises KeyError for an unknown user."""

    @abstractmethod
    def committed(self) -> dict[str, int]:
        """The database's files, in the order in which to copy them, and how many bytes of each are committed.

        A copy of so many bytes of each file is a backup of this moment. Called by the writing thread.
        """
