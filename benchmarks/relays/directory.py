"""The list of online users that the two relays in Python keep: ids in order of the first login, two bytes wide."""

from typing import Generic, TypeVar

from protocol import encode_user

ID_WIDTH = 2

Client = TypeVar("Client")


class Directory(Generic[Client]):
    """The clients by id, and the ids by name."""

    def __init__(self) -> None:
        self.clients: dict[int, Client] = {}
        self._ids: dict[str, int] = {}

    def log_in(self, name: str, client: Client) -> bytes:
        """The Config packet that answers a login."""
        user_id = self._ids.setdefault(name, len(self._ids) + 1)
        self.clients[user_id] = client
        return encode_user(name, user_id, ID_WIDTH)
