"""Past chats and mailboxes: the `Chats` interface, and a batch as it is stored."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from protocol import Run, each_message


class ChatRow(NamedTuple):
    """A batch as stored: Messages of one sender to one receiver that arrived together, as the receiver gets them."""

    id: int
    sender: int
    receiver: int
    time: int
    count: int  # type: ignore[assignment]  # nobody counts the values that are equal in a row
    waiting: int
    packets: bytes
    connection: int = 0
    first: int = 0


def messages(row: ChatRow) -> list[bytes]:
    """The messages of a batch, each as its packet or packets (section 3.6)."""
    return each_message(Run(row.packets, row.count))


class Chats(ABC):
    """Past chats and mailboxes. Every call raises StorageUnavailable.

    For each pair of users it keeps the last messages up to a bound, the rest of the oldest batch, up to an eighth more,
    and what waits in a mailbox. A database that `is_shared` with other servers is called in the loop, not in a thread.
    """

    is_shared = False

    @abstractmethod
    def new_id(self) -> int:
        """A batch's id, greater than all before. May be called in another thread than the other methods."""

    @abstractmethod
    def users(self) -> list[int]:
        """All users with a chat."""

    @abstractmethod
    def mailbox_sizes(self) -> dict[int, int]:
        """How many messages wait for each user, by id."""

    @abstractmethod
    def last(self, one: int, other: int, count: int) -> list[ChatRow]:
        """The batches with the last `count` messages between two users, in both directions, oldest first."""

    @abstractmethod
    def mailbox(self, receiver: int, after: int, max_bytes: int) -> list[ChatRow]:
        """The batches with ids above `after` that wait for a receiver, oldest first, up to `max_bytes` of packets; at
        least one, if there is any.
        """

    @abstractmethod
    def write(self, new: Sequence[ChatRow], waiting: Mapping[int, int]) -> None:
        """Store new batches and update others.

        `waiting` says by id how many messages wait now, never more than before. Ids that no longer exist are ignored.
        """

    @abstractmethod
    def remove(self, user: int) -> None:
        """Delete everything that this user has sent and received."""
