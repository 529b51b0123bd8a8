"""Passwords are kept as argon2id hashes and checked off the loop.

A hash takes tens of milliseconds and 64 MiB on purpose, so a threadpool of its own bounds how many are under way; the
other clients notice nothing.
"""

import logging

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from gevent.threadpool import ThreadPool

HASHES_AT_ONCE = 2

log = logging.getLogger("chat")


class Passwords:
    """Makes and checks hashes; each call waits cooperatively for a free thread."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._threads = ThreadPool(HASHES_AT_ONCE)

    def hash(self, password: str) -> str:
        """The argon2id hash, with salt and cost in it (PHC string)."""
        return str(self._threads.apply(self._hasher.hash, (password,)))

    def matches(self, stored: str, password: str) -> bool:
        """Whether `password` is the one that was hashed. A stored hash that is none matches nothing and is logged."""
        try:
            self._threads.apply(self._hasher.verify, (stored, password))
        except VerifyMismatchError:
            return False
        except InvalidHashError:
            log.error("a stored password is no argon2 hash: nobody can log in with it")
            return False
        return True
