"""The backend: what a lone server and a node of a group do differently, made once and handed to server.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from chatserver.counters import Counters
from chatserver.messages.archive import Archive
from chatserver.messages.delivery import Delivery
from chatserver.people.presence import Presence
from chatserver.workers import Workers
from chatstorage.interface import Storage, User

Kick: TypeAlias = Callable[..., object]  # ends the connection of a user, given the id and, unless by an operator, why


@dataclass(frozen=True, slots=True)
class Backend:
    """Where users, past chats and online users are kept.

    `disk` runs the writes of `storage`. `on_change` is called when a user has come or gone. `start` begins background
    work, once the server can end a user's connection.
    """

    storage: Storage
    archive: Archive | None
    presence: Presence
    delivery: Delivery
    counters: Counters
    disk: Workers
    on_change: Callable[[User], None] = lambda _: None
    start: Callable[[Kick], None] = lambda _: None
