"""Passwords are kept as argon2id hashes and checked off the loop.

A hash takes tens of milliseconds and 64 MiB on purpose, so a threadpool of its own bounds how many are under way; the
other clients notice nothing.
"""

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from chatserver.workers import Workers

HASHES_AT_ONCE = 2


class Passwords:
    """Makes and checks hashes."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._threads = Workers(HASHES_AT_ONCE)

    def hash(self, password: str) -> str:
        """The argon2id hash, with salt and cost in it (PHC string)."""
        return self._threads.run(self._hasher.hash, password)

    def matches(self, stored: str, password: str) -> bool:
        """Whether `password` is the one that was hashed.

        Raises ValueError or VerificationError for a `stored` that is no hash, or half of one.
        """
        try:
            return self._threads.run(self._hasher.verify, stored, password)
        except VerifyMismatchError:
            return False
