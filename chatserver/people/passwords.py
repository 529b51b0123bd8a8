"""Passwords: argon2id hashes, made and checked in threads.

A hash takes tens of milliseconds and 64 MiB on purpose, so a thread pool of its own bounds how many run at once; other
clients notice nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from argon2 import PasswordHasher
from argon2.exceptions import HashingError, VerificationError, VerifyMismatchError
from argon2.low_level import error_to_str

from chatserver.workers import Workers

HASHES_AT_ONCE = 2
NO_MEMORY, NO_THREAD = -22, -33  # of argon2.h; every other error is about the hash that is to be checked
BANNED = "!"  # before what is stored for a user who may not log in; never the beginning of a hash
OUR_FAULTS = frozenset(map(error_to_str, (NO_MEMORY, NO_THREAD)))


class CannotHash(Exception):
    """No hash can be computed now: there is no memory, or no thread, for it. This says nothing about the password."""


class Passwords:
    """Makes and checks hashes."""

    def __init__(self, hasher: PasswordHasher | None = None, threads: int = HASHES_AT_ONCE) -> None:
        """`hasher` with other costs than the library's, and other `threads` (see Workers), are for tests."""
        self._hasher = hasher or PasswordHasher()
        self._threads = Workers(threads)

    def hash(self, password: str) -> str:
        """The argon2id hash, including salt and costs (PHC string). Raises CannotHash."""
        with _telling_faults():
            return self._threads.run(self._hasher.hash, password)

    def matches(self, stored: str, password: str) -> bool:
        """Whether `password` is the one that was hashed.

        Raises ValueError or VerificationError if `stored` is not a whole hash, and CannotHash.
        """
        try:
            with _telling_faults():
                return self._threads.run(self._hasher.verify, stored, password)
        except VerifyMismatchError:
            return False


def is_banned(stored: str | None) -> bool:
    """Whether the user for whom this is stored may not log in."""
    return stored is not None and stored.startswith(BANNED)


def password_state(stored: str | None) -> str:
    """Whether a user has a password, for the operator: "yes", "no" or "banned"."""
    return "no" if stored is None else "banned" if is_banned(stored) else "yes"


@contextmanager
def _telling_faults() -> Iterator[None]:
    """Raise CannotHash for what argon2 and Python report when the machine is at its limits."""
    try:
        yield
    except (HashingError, MemoryError, RuntimeError) as error:  # RuntimeError: no thread can be started
        raise CannotHash(str(error) or "no memory") from error
    except VerificationError as error:
        if str(error) in OUR_FAULTS:
            raise CannotHash(str(error)) from error
        raise
