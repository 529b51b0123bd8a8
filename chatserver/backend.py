"""What differs between a server that is alone and one of a group."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from chatserver.counters import Counters
from chatserver.messages.archive import Archive
from chatserver.messages.delivery import Delivery
from chatserver.people.presence import Presence
from chatstorage.interface import Storage

Kick: TypeAlias = Callable[..., object]  # of a user's id and, if it is not an operator who wants it, the reason


def _nothing(_: Kick) -> None:
    """A server that is alone has nothing to begin."""


@dataclass(frozen=True, slots=True)
class Backend:
    """Where users, past chats and those who are online are. `start` begins what goes on by itself; it is given what
    ends the connection of a user.
    """

    storage: Storage
    archive: Archive | None
    presence: Presence
    delivery: Delivery
    counters: Counters
    start: Callable[[Kick], None] = _nothing
