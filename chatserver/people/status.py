"""Keeps status.csv in step with the presence registry of a lone server."""

import logging
from contextlib import suppress

import gevent
from gevent import Greenlet

from chatserver.counters import Counters
from chatserver.people.presence import Presence
from chatserver.workers import Workers
from storage import Storage, StorageUnavailable, User

STATUS_SECONDS = 0.05  # that a change waits to be written together with others

log = logging.getLogger("chat")


class StatusFile:
    """Follows arrivals and departures, many in one write: a thread for each would double the cost of a login."""

    def __init__(self, storage: Storage, presence: Presence, counters: Counters, disk: Workers) -> None:
        self._storage = storage
        self._presence = presence
        self._counters = counters
        self._disk = disk
        self._changed: dict[int, User] = {}  # who has come or gone since the last write
        self._writer: Greenlet[[], None] | None = None
        self._is_failing = False  # the last write failed, as the log says

    def has_changed(self, user: User) -> None:
        """This user has come or gone. Never waits."""
        self._changed[user.id] = user
        if not self._writer:
            self._writer = gevent.spawn_later(STATUS_SECONDS, self._write_changes)

    def close(self) -> None:
        """Write that all users are offline, after the last of them has gone; no other thread writes by now."""
        if self._writer:
            self._writer.kill()
        self._disk.join()
        for user in self._storage.users():
            if self._storage.is_online(user.id):
                with suppress(StorageUnavailable):  # the next start writes it again
                    self._storage.set_status(user.id, False)

    def _write_changes(self) -> None:
        while self._changed:
            users, self._changed = self._changed, {}
            try:
                with self._counters.storage.measured():
                    self._disk.run(self._set_status, list(users.values()))
            except StorageUnavailable as error:  # later changes are written all the same
                if not self._is_failing:
                    log.error("the database cannot be written: %s", error)
                self._is_failing = True
            else:
                self._is_failing = False
            gevent.sleep(STATUS_SECONDS)
        self._writer = None

    def _set_status(self, users: list[User]) -> None:
        # Asks for the status when the write runs, not when it is queued: so the file is right, whatever happened since.
        failed = {}
        for user in users:
            try:
                if self._storage.find(user.name) == user:  # not removed meanwhile
                    self._storage.set_status(user.id, self._presence.is_online(user.id))
            except StorageUnavailable as error:
                failed[user.name] = error
        if failed:
            raise StorageUnavailable(f"status.csv is wrong about {', '.join(failed)}: {failed.popitem()[1]}")
