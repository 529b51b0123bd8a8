"""Passwords: argon2id hashes, made and checked in threads.

A hash takes tens of milliseconds and 64 MiB on purpose, so a thread pool of its own bounds how many run at once; other
clients notice nothing.
"""

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from chatserver.workers import Workers

HASHES_AT_ONCE = 2


class Passwords:
    """Makes and checks hashes."""

    def __init__(self, hasher: PasswordHasher | None = None, threads: int = HASHES_AT_ONCE) -> None:
        """`hasher` with other costs than the library's, and other `threads` (see Workers), are for tests."""
        self._hasher = hasher or PasswordHasher()
        self._threads = Workers(threads)

    def hash(self, password: str) -> str:
        """The argon2id hash, including salt and costs (PHC string)."""
        return self._threads.run(self._hasher.hash, password)

    def matches(self, stored: str, password: str) -> bool:
        """Whether `password` is the one that was hashed.

        Raises ValueError or VerificationError if `stored` is not a whole hash.
        """
        try:
            return self._threads.run(self._hasher.verify, stored, password)
        except VerifyMismatchError:
            return False
