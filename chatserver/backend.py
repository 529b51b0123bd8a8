"""The backend: what a lone server and a node of a group do differently, made once and handed to server.py.

open_folder() makes that of a lone server; cluster/group.py makes that of a node.
"""

import logging
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from chatserver.counters import Counters
from chatserver.messages.archive import Archive, LocalArchive
from chatserver.messages.commits import CommitQueue
from chatserver.messages.delivery import Delivery, LocalDelivery
from chatserver.people.presence import LocalPresence, Presence
from chatserver.people.status import StatusFile
from chatserver.workers import Workers
from chatstorage.chat_file import ChatFile
from storage import CHATS, CsvStorage, Storage, StorageError, User

Kick: TypeAlias = Callable[..., object]  # ends the connection of a user, given the id and, unless by an operator, why

log = logging.getLogger("chat")


class CannotOpen(StorageError):
    """The folder, or a file in it, cannot be opened."""


@dataclass(frozen=True, slots=True)
class Backend:
    """Where users, past chats and online users are kept.

    `disk` runs the writes of `storage`. `on_change` is called when a user has come or gone. `start` begins background
    work, once the server can end a user's connection. `problem` says why clients had better go to another server, or
    nothing.
    """

    storage: Storage
    archive: Archive | None
    presence: Presence
    delivery: Delivery
    counters: Counters
    disk: Workers
    on_change: Callable[[User], None] = lambda _: None
    start: Callable[[Kick], None] = lambda _: None
    problem: Callable[[], str] = str


def open_folder(options: Namespace, commit_seconds: float, stack: ExitStack) -> Backend:
    """The backend of a lone server, closed at the end of `stack`. `commit_seconds` is the interval of CommitQueue.

    Raises StorageError.
    """
    counters, presence = Counters(), LocalPresence()
    with _opening(options.data_dir):
        storage = stack.enter_context(
            CsvStorage(options.data_dir, options.max_users, options.max_id, options.open_accounts)
        )
    archive = _open_archive(options, commit_seconds, stack, storage, counters) if options.history == "on" else None
    delivery = LocalDelivery(presence, archive, counters, storage.is_user, options.id_width)
    disk = Workers(1)  # a Storage makes one write at a time
    status = StatusFile(storage, presence, counters, disk)
    stack.callback(status.close)
    return Backend(storage, archive, presence, delivery, counters, disk, status.has_changed)


def _open_archive(
    options: Namespace, commit_seconds: float, stack: ExitStack, storage: Storage, counters: Counters
) -> Archive:
    """The past chats, without those of removed users. Raises StorageError."""
    path = options.data_dir / CHATS
    with _opening(path):
        file = stack.enter_context(ChatFile(path, options.history_messages))
    for user_id in file.users():
        if not storage.is_user(user_id):
            log.info("%s: removed the chats of user %d, who was removed", path, user_id)
            file.remove(user_id)
    queue = CommitQueue(file, counters, commit_seconds, Workers(1))
    archive = LocalArchive(file, queue, counters, options.mailbox_messages)
    stack.callback(archive.close)
    return archive


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotOpen(f"{path}: {error.strerror or error}") from error
