"""Past chats and mailboxes: the `Chats` interface, and a batch as it is stored."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from protocol import Run, each_message


class ChatRow(NamedTuple):
    """A batch, as it is stored."""

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
    """The messages of a batch, each as its packet, or packets (section 3.6)."""
    return each_message(Run(row.packets, row.count))


class Chats(ABC):
    """Past chats and mailboxes. Every call raises StorageUnavailable.

    Of each pair of users the last messages are kept, up to a bound, and with them the rest of the oldest batch, up to
    an eighth more, and what waits in a mailbox. One that `is_shared` with other servers is asked in the loop, and not
    in a thread.
    """

    is_shared = False

    @abstractmethod
    def new_id(self) -> int:
        """For a batch: greater than all before. It may be asked for in another thread than the others."""

    @abstractmethod
    def users(self) -> list[int]:
        """All who have sent something, or were sent it."""

    @abstractmethod
    def mailbox_sizes(self) -> dict[int, int]:
        """How many messages wait for whom."""

    @abstractmethod
    def last(self, one: int, other: int, count: int) -> list[ChatRow]:
        """The batches that hold the last `count` messages between two users, both ways, oldest first."""

    @abstractmethod
    def mailbox(self, receiver: int, after: int, max_bytes: int) -> list[ChatRow]:
        """The batches of ids above `after` that wait for a receiver, oldest first, until they come to `max_bytes` of
        packets: one at least, if there is any.
        """

    @abstractmethod
    def write(self, new: Sequence[ChatRow], waiting: Mapping[int, int]) -> None:
        """Store new batches, and change others.

        `waiting` says by id how many messages wait now, never more than before. An id that is not there any more does
        not matter.
        """

    @abstractmethod
    def remove(self, user: int) -> None:
        """Forget all that is kept of what this user has sent and was sent."""
