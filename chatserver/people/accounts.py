"""Who may come in: the judgement of a login, in the order of section 5, and the database work that it needs.

Everything here that waits (a hash, a write) lets other clients go on, so a name is claimed before such work begins: two
connections can never become one user.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import gevent
from argon2.exceptions import VerificationError
from gevent import Greenlet

from chatserver.counters import Counters
from chatserver.people.attempts import Attempts, TooManyAttempts
from chatserver.people.passwords import Passwords
from chatserver.people.presence import Member, Presence
from chatserver.transport.outbox import Outbox
from chatserver.workers import Workers
from protocol import MAX_PASSWORD_BYTES, Reason, encode_user, is_valid_username
from storage import NameTaken, Storage, StorageUnavailable, User, UserLimitReached

STATUS_SECONDS = 0.05  # that a change waits for others to be written with it
HOLD_SECONDS = 0.01  # between two looks whether a login is through

T = TypeVar("T")

log = logging.getLogger("chat")


class Refused(Exception):
    """A login that is not granted; `reason` is the Error that says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class CannotDo(Exception):
    """What an operator asked for cannot be done; the text says why."""


class Accounts:
    """Signs users up, logs them in and out; and does what an operator asks for."""

    def __init__(
        self,
        storage: Storage,
        presence: Presence,
        counters: Counters,
        id_width: int,
        password_required: bool,
        login_attempts: float,
    ) -> None:
        """`login_attempts` as in Attempts."""
        self._storage = storage
        self._presence = presence
        self._counters = counters
        self._attempts = Attempts(login_attempts)
        self._id_width = id_width
        self._password_required = password_required
        self._passwords = Passwords()
        self._disk = Workers(0 if storage.is_shared else 1)  # one thread: a Storage writes one thing at a time
        self._arriving: set[str] = set()  # names claimed by logins under way
        self._held: set[str] = set()  # names that an operator changes something about
        self._changed: dict[int, User] = {}  # who has come or gone since status.csv was written
        self._follow: Greenlet[[], None] | None = None

    def log_in(self, name: str, password: str, outbox: Outbox, origin: str) -> Member:
        """Find or create the user and put it online; the list may follow at once, nothing came in between.

        `origin` is what counts as one address. Raises Refused.
        """
        with _as_refusal():
            while True:
                try:
                    if member := self._try(name, password, outbox, origin):
                        return member
                except NameTaken:
                    if not self._storage.find(name):  # else somebody has just signed up at another server
                        raise

    def _try(self, name: str, password: str, outbox: Outbox, origin: str) -> Member | None:
        """None where an operator was faster, so that what was judged holds no more. Raises StorageError."""
        user = self._judge_name(name, password)
        stored = self._storage.password_hash(user.id) if user else None
        if not password and (stored or self._password_required):
            raise Refused(Reason.PASSWORD_REQUIRED)
        if user and stored:
            self._check_password(user, stored, password, origin)
        with self._claim(name):
            if stored and not self._is_still(name, user, stored):
                return None
            return self._let_in(name, password, user, stored, outbox)

    def log_out(self, name: str, member: Member) -> None:
        """Offline at once; the database follows."""
        self._presence.leave(member)
        self._has_changed(User(member.user_id, name))

    # For the operator. All raise CannotDo for a name that nobody has, and StorageUnavailable, and then change nothing.

    def find(self, name: str) -> User:
        """The user of exactly this name."""
        if user := self._storage.find(name):
            return user
        raise CannotDo(f"there is no user {name!r}")

    def rows(self) -> Iterator[tuple[int, str, bool, bool]]:
        """(id, name, online, has a password) of everyone, by ascending id."""
        for user in self._storage.users():
            yield (
                user.id,
                user.name,
                self._presence.is_online(user.id),
                self._storage.password_hash(user.id) is not None,
            )

    def change_password(self, name: str, password: str | None) -> None:
        """Give a user another password, or none."""
        self.find(name)
        if password is not None and not 0 < len(password.encode()) <= MAX_PASSWORD_BYTES:
            raise CannotDo(f"a password has 1 to {MAX_PASSWORD_BYTES} bytes")
        new_hash = None if password is None else self._passwords.hash(password)
        with self._hold(name) as user:
            self._disk.run(self._storage.set_password, user.id, new_hash)
        log.info("admin: %s, id %d, has %s password now", name, user.id, "no" if password is None else "a new")

    def remove(self, name: str, kick: Callable[[int], bool]) -> None:
        """Remove a user, and end the connection if there is one."""
        with self._hold(name) as user:
            self._disk.run(self._storage.remove, user.id)
            kick(user.id)  # now, as a removal that fails ends nothing; the name is still held
        log.info("admin: removed %s, id %d", name, user.id)

    def committed(self) -> dict[str, int]:
        """What to copy for a backup, as Storage has it."""
        return self._disk.run(self._storage.committed)

    @contextmanager
    def _hold(self, name: str) -> Iterator[User]:
        """The user of this name, once logins under way are through; new ones are kept out meanwhile."""
        while name in self._arriving or name in self._held:
            gevent.sleep(HOLD_SECONDS)
        user = self.find(name)
        self._held.add(name)
        try:
            yield user
        finally:
            self._held.remove(name)

    def close(self) -> None:
        """Wait until the database work under way is done, and leave everyone offline in it: a login may have come
        through just after its session was told that the server shuts down.
        """
        if self._follow:
            self._follow.kill()
        self._disk.join()
        if self._storage.is_shared:
            return
        for user in self._storage.users():
            if self._storage.is_online(user.id):
                with suppress(StorageUnavailable):  # the next start does it again
                    self._storage.set_status(user.id, False)

    def _is_still(self, name: str, user: User | None, stored: str | None) -> bool:
        return self._storage.find(name) == user and (user is None or self._storage.password_hash(user.id) == stored)

    def _let_in(self, name: str, password: str, user: User | None, stored: str | None, outbox: Outbox) -> Member:
        new_hash = self._passwords.hash(password) if password and not stored else None
        if user is None:
            user = self._write(self._storage.sign_up, name, new_hash)
            self._counters.sign_ups += 1
            log.info("%s signed up, id %d", name, user.id)
            new_hash = None
        elif new_hash and not self._storage.is_shared:
            self._secure(user, new_hash)
        member = Member(user.id, encode_user(name, user.id, self._id_width), outbox)
        if not self._presence.join(member):
            raise Refused(Reason.USER_ALREADY_ONLINE)
        if new_hash and self._storage.is_shared:  # whoever tries at another server has lost by now
            try:
                self._secure(user, new_hash)
            except BaseException:
                self._presence.leave(member)
                outbox.free()
                raise
        self._has_changed(user)
        return member

    def _secure(self, user: User, new_hash: str) -> None:
        self._write(self._storage.set_password, user.id, new_hash)
        log.info("%s has a password now", user.name)

    def _judge_name(self, name: str, password: str) -> User | None:
        """The user of that name, None for a new one. All that can be told without the password is judged here."""
        if not is_valid_username(name):
            raise Refused(Reason.INVALID_USERNAME)
        if len(password.encode()) > MAX_PASSWORD_BYTES:
            raise Refused(Reason.INVALID_PASSWORD)
        user = self._storage.find(name)
        if self._is_present(name, user):
            raise Refused(Reason.USER_ALREADY_ONLINE)
        if user is None:
            self._storage.check_sign_up(name)
        return user

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
        except (ValueError, VerificationError):  # not ASCII, no hash (InvalidHashError), half of one
            log.error("what passwords.csv has for user %d is no usable argon2 hash: nobody can log in with it", user.id)
            return False

    def _is_present(self, name: str, user: User | None) -> bool:
        return (user is not None and self._presence.is_online(user.id)) or name in self._arriving

    @contextmanager
    def _claim(self, name: str) -> Iterator[None]:
        # Since the name was judged, a password was checked.
        if self._is_present(name, self._storage.find(name)) or name in self._held:
            raise Refused(Reason.USER_ALREADY_ONLINE)
        self._arriving.add(name)
        try:
            yield
        finally:
            self._arriving.remove(name)

    def _has_changed(self, user: User) -> None:
        """status.csv follows, with all who come or go meanwhile: a thread for each would double what a login costs."""
        if self._storage.is_shared:
            return
        self._changed[user.id] = user
        if not self._follow:
            self._follow = gevent.spawn_later(STATUS_SECONDS, self._write_status)

    def _write_status(self) -> None:
        while self._changed:
            users, self._changed = self._changed, {}
            with suppress(Refused), _as_refusal():  # it is in the log; who comes or goes next is written all the same
                self._write(self._set_status, list(users.values()))
        self._follow = None

    def _set_status(self, users: list[User]) -> None:
        # Asked when the write runs, not when it is queued: the file is right, whatever happens meanwhile.
        failed = {}
        for user in users:
            try:
                if self._storage.find(user.name) == user:  # not removed meanwhile
                    self._storage.set_status(user.id, self._presence.is_online(user.id))
            except StorageUnavailable as error:
                failed[user.name] = error
        if failed:
            raise StorageUnavailable(f"status.csv is wrong about {', '.join(failed)}: {failed.popitem()[1]}")

    def _write(self, operation: Callable[..., T], *arguments: object) -> T:
        with self._counters.storage.measured():
            return self._disk.run(operation, *arguments)


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
