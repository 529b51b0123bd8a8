"""Checks each login in the order of section 5, does the database work for it, and makes an operator's changes.

Other clients are served while a hash or a write is in progress. So a login claims its name before such work begins: two
connections can never become one user.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import TypeVar

import gevent
from argon2.exceptions import VerificationError

from chatserver.counters import Counters
from chatserver.people.attempts import Attempts, Recent, TooManyAttempts
from chatserver.people.passwords import BANNED, CannotHash, Passwords, is_banned, password_state
from chatserver.people.presence import Member, Presence
from chatserver.transport.outbox import Outbox
from chatserver.workers import Workers
from protocol import MAX_PASSWORD_BYTES, USERNAME_RULE, Reason, encode_user, is_valid_username, may_sign_up
from storage import NameTaken, Storage, StorageUnavailable, User, UserLimitReached

HOUR_SECONDS = 3600.0
HOLD_SECONDS = 0.01  # between two checks whether a login is done

T = TypeVar("T")

log = logging.getLogger("chat")


class Refused(Exception):
    """The login is refused; `reason` is the Error that says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class CannotDo(Exception):
    """An operator's request cannot be done; the text says why."""


class Accounts:
    """Signs users up, logs them in and out, and executes an operator's requests."""

    def __init__(
        self,
        storage: Storage,
        presence: Presence,
        counters: Counters,
        disk: Workers,
        id_width: int,
        password_required: bool,
        login_attempts: float,
        sign_up_open: bool = True,
        sign_ups_per_address: float = inf,
        on_change: Callable[[User], None] = lambda _: None,
        passwords: Passwords | None = None,
    ) -> None:
        """`disk` runs the storage's writes, one at a time. `login_attempts` as in Attempts. Without `sign_up_open`, an
        operator adds all users. `sign_ups_per_address`: at most so many in an hour. `on_change` gets each user who has
        come or gone; it never waits.
        """
        self._storage = storage
        self._presence = presence
        self._counters = counters
        self._attempts = Attempts(login_attempts)
        self._id_width = id_width
        self._password_required = password_required
        self._sign_up_open = sign_up_open
        self._sign_ups_per_address = sign_ups_per_address
        self._sign_ups = Recent(HOUR_SECONDS)  # by address
        self._passwords = passwords or Passwords()
        self._disk = disk
        self._on_change = on_change
        self._arriving: set[str] = set()  # names claimed by logins in progress
        self._held: set[str] = set()  # names that an operator is changing

    def log_in(self, name: str, password: str, outbox: Outbox, origin: str) -> Member:
        """Find or create the user and put it online. Its outbox is reserved: the caller puts the list first.

        `origin` is what counts as one address for the limit of attempts. Raises Refused.
        """
        with _as_refusal():
            while True:
                try:
                    if member := self._try(name, password, outbox, origin):
                        return member
                except NameTaken:
                    if not self._storage.find(name):  # else this user has just signed up at another server
                        raise

    def _try(self, name: str, password: str, outbox: Outbox, origin: str) -> Member | None:
        """None if an operator changed the user meanwhile, so that the checks must be repeated. Raises StorageError."""
        user, stored = self._judge_name(name, password)
        if not password and (stored or self._password_required):
            raise Refused(Reason.PASSWORD_REQUIRED)
        if user and stored:
            self._check_password(user, stored, password, origin)
        with self._claim(name, user):
            if stored and not self._is_still(name, user, stored):
                return None
            return self._let_in(name, password, user, stored, outbox, origin)

    def log_out(self, name: str, member: Member) -> None:
        """Put the user offline at once; the database follows."""
        self._presence.leave(member)
        self._on_change(User(member.user_id, name))

    # For the operator. Each says what it has done. It raises CannotDo, for an unknown name too, and StorageUnavailable;
    # then nothing has changed.

    def find(self, name: str) -> User:
        """The user with exactly this name."""
        if user := self._storage.find(name):
            return user
        raise CannotDo(f"there is no user {name!r}")

    def rows(self) -> Iterator[tuple[int, str, bool, str]]:
        """(id, name, online, password_state()) of all users, by ascending id."""
        for user in self._storage.users():
            state = password_state(self._storage.password_hash(user.id))
            yield user.id, user.name, self._presence.is_online(user.id), state

    def add(self, name: str, password: str | None) -> str:
        """Sign up a user, whether sign-ups are open or not. Without a password, the first login may set one."""
        return f"added {_described(self._add(name, self._hashed(password)))}"

    def change_password(self, name: str, password: str | None) -> str:
        """Replace a user's password; None removes it."""
        self.find(name)
        new_hash = self._hashed(password)
        with self._hold(name) as user:
            if is_banned(self._storage.password_hash(user.id)):
                raise CannotDo(f"{name} is banned: unban {name} first")
            self._disk.run(self._storage.set_password, user.id, new_hash)
        done = "has no password any more: the next login may set one" if password is None else "has a new password"
        return f"{_described(user)} {done}"

    def remove(self, name: str, kick: Callable[[int], bool]) -> str:
        """Remove a user and end the connection, if there is one."""
        with self._hold(name) as user:
            self._disk.run(self._storage.remove, user.id)
            was_online = kick(user.id)  # only now: a removal that fails ends nothing; the name is still held
        return f"removed {_described(user)}{_ended(was_online)}; the name is free"

    def kick(self, name: str, kick: Callable[[int], bool]) -> str:
        """End the connection of a user, who may log in again."""
        user = self.find(name)
        if not kick(user.id):
            raise CannotDo(f"{name} is not online")
        return f"ended the connection of {_described(user)}, who may log in again"

    def ban(self, name: str, kick: Callable[[int], bool]) -> str:
        """Close a name: nobody logs in with it, or signs up with one like it. An unknown name becomes a user first."""
        if not self._storage.find(name):
            return f"banned {_described(self._add(name, BANNED))}, who had not signed up"
        with self._hold(name) as user:
            stored = self._storage.password_hash(user.id) or ""
            if is_banned(stored):
                raise CannotDo(f"{name} is banned already")
            self._disk.run(self._storage.set_password, user.id, BANNED + stored)
            was_online = kick(user.id)
        return f"banned {_described(user)}{_ended(was_online)}"

    def unban(self, name: str) -> str:
        """Let a user log in again, with the password from before."""
        with self._hold(name) as user:
            stored = self._storage.password_hash(user.id)
            if stored is None or not is_banned(stored):
                raise CannotDo(f"{name} is not banned")
            self._disk.run(self._storage.set_password, user.id, stored.removeprefix(BANNED) or None)
        return f"{_described(user)} may log in again"

    def committed(self) -> dict[str, int]:
        """What to copy for a backup, as Storage.committed."""
        return self._disk.run(self._storage.committed)

    def _hashed(self, password: str | None) -> str | None:
        """Raises CannotDo."""
        if password is None:
            return None
        if not 0 < len(password.encode()) <= MAX_PASSWORD_BYTES:
            raise CannotDo(f"a password has 1 to {MAX_PASSWORD_BYTES} bytes")
        try:
            return self._passwords.hash(password)
        except CannotHash as error:
            raise CannotDo(f"the password cannot be hashed now: {error}") from error

    def _add(self, name: str, password_hash: str | None) -> User:
        """Raises CannotDo."""
        if not (is_valid_username(name) and may_sign_up(name)):
            raise CannotDo(f"{name!r} cannot be a name: {USERNAME_RULE}")
        try:
            with self._claim(name, None):
                return self._disk.run(self._storage.sign_up, name, password_hash)
        except NameTaken:
            taken = self._storage.look_alike(name)
            raise CannotDo(f"{name} is the name of a user, or looks like it: {taken.name if taken else name}") from None
        except Refused:
            raise CannotDo(f"{name} is logging in: try again") from None
        except UserLimitReached:
            raise CannotDo("there can be no more users: see the server's --max-users and --id-width") from None

    @contextmanager
    def _hold(self, name: str) -> Iterator[User]:
        """The user with this name, once its logins in progress are done; keeps new ones out meanwhile."""
        while name in self._arriving or name in self._held:
            gevent.sleep(HOLD_SECONDS)
        user = self.find(name)
        self._held.add(name)
        try:
            yield user
        finally:
            self._held.remove(name)

    def _is_still(self, name: str, user: User | None, stored: str | None) -> bool:
        return self._storage.credentials(name) == (user, stored)

    def _let_in(
        self, name: str, password: str, user: User | None, stored: str | None, outbox: Outbox, origin: str
    ) -> Member:
        if user is None and self._sign_ups_per_address < inf:
            if self._sign_ups.counts[origin] >= self._sign_ups_per_address:
                raise Refused(Reason.TOO_MANY_ATTEMPTS)
            self._sign_ups.add(origin)  # at once: many may come at the same time
        new_hash = self._passwords.hash(password) if password and not stored else None
        if user is None:
            user = self._write(self._storage.sign_up, name, new_hash)
            self._counters.sign_ups += 1
            log.info("%s signed up, id %d", name, user.id)
            new_hash = None
        member = Member(user.id, encode_user(name, user.id, self._id_width), outbox)
        if not self._presence.join(member, partial(self._secure, user, new_hash)):
            raise Refused(Reason.USER_ALREADY_ONLINE)
        self._on_change(user)
        return member

    def _secure(self, user: User, new_hash: str | None) -> None:
        if new_hash:
            self._write(self._storage.set_password, user.id, new_hash)
            log.info("%s now has a password", user.name)

    def _judge_name(self, name: str, password: str) -> tuple[User | None, str | None]:
        """The user with that name and its password's hash, None for what there is not. Makes all checks that need no
        password. Raises Refused.
        """
        if not is_valid_username(name):
            raise Refused(Reason.INVALID_USERNAME)
        user, stored = self._storage.credentials(name) or (None, None)
        if is_banned(stored) or (user is None and not may_sign_up(name)):
            raise Refused(Reason.INVALID_USERNAME)
        if len(password.encode()) > MAX_PASSWORD_BYTES:
            raise Refused(Reason.INVALID_PASSWORD)
        if self._is_present(name, user):
            raise Refused(Reason.USER_ALREADY_ONLINE)
        if user is None:
            self._storage.check_sign_up(name)
            if not self._sign_up_open:
                raise Refused(Reason.USER_LIMIT_REACHED)
        return user, stored

    def _check_password(self, user: User, stored: str, password: str, origin: str) -> None:
        try:
            with self._attempts.attempt(user.id, origin) as count_wrong:
                if not self._matches(user, stored, password):
                    count_wrong()
                    raise Refused(Reason.WRONG_PASSWORD)
        except TooManyAttempts:
            raise Refused(Reason.TOO_MANY_ATTEMPTS) from None

    def _matches(self, user: User, stored: str, password: str) -> bool:
        try:
            return self._passwords.matches(stored, password)
        except (ValueError, VerificationError):  # not ASCII, not a hash (InvalidHashError), half a hash
            log.error("the stored password of user %d is not a valid argon2 hash: nobody can log in with it", user.id)
            return False

    def _is_present(self, name: str, user: User | None) -> bool:
        return (user is not None and self._presence.is_online(user.id)) or name in self._arriving

    @contextmanager
    def _claim(self, name: str, user: User | None) -> Iterator[None]:
        # Checked again: a password may have been checked since the name was.
        if self._is_present(name, user) or name in self._held:
            raise Refused(Reason.USER_ALREADY_ONLINE)
        self._arriving.add(name)
        try:
            yield
        finally:
            self._arriving.remove(name)

    def _write(self, operation: Callable[..., T], *arguments: object) -> T:
        with self._counters.storage.measured():
            return self._disk.run(operation, *arguments)


def _described(user: User) -> str:
    return f"{user.name} (id {user.id})"


def _ended(was_online: bool) -> str:
    return " and ended the connection" if was_online else ""


@contextmanager
def _as_refusal() -> Iterator[None]:
    try:
        yield
    except NameTaken:
        raise Refused(Reason.USERNAME_TAKEN) from None
    except UserLimitReached:
        raise Refused(Reason.USER_LIMIT_REACHED) from None
    except StorageUnavailable as error:
        log.error("the database cannot be written: %s", error)
        raise Refused(Reason.STORAGE_UNAVAILABLE) from error
    except CannotHash as error:
        log.error("passwords cannot be hashed: %s", error)
        raise Refused(Reason.STORAGE_UNAVAILABLE) from error
