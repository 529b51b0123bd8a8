"""An operator's access to the database of a group, in Redis itself, with or without running nodes."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from chatserver.people.passwords import password_state
from chatstorage.chats import ChatRow
from chatstorage.interface import StorageError
from cluster.chats import RedisChats
from cluster.directory import Directory
from cluster.engine import Engine, Script
from cluster.storage import RedisStorage

KICK = Script("kick")

HIGHEST_ID = 2**32 - 1
GONE_MS = 60_000  # so long after its lease, a node has failed even if no other node is left to say so


class NoDatabase(StorageError):
    """There is no database of this group."""


@contextmanager
def open_group(url: str, prefix: str) -> Iterator["GroupDatabase"]:
    """Raises BadUrl, NoDatabase, StorageUnavailable."""
    with closing(Engine(url, prefix)) as engine:
        if not engine.call("EXISTS", *map(engine.key, ("last-id", "nodes"))):
            raise NoDatabase(f"there is no database of a group {prefix}; --redis-prefix says which")
        yield GroupDatabase(engine)


class GroupDatabase:
    """The database of a group. Every call raises StorageUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._directory = Directory(engine, lease=0)  # never joined
        self.storage = RedisStorage(self._directory, max_users=HIGHEST_ID, max_id=HIGHEST_ID)

    def rows(self) -> Iterator[tuple[int, str, bool, str]]:
        """(id, name, online, password_state()) of all users, by ascending id."""
        online = self._online()
        states = {
            int(user_id): password_state(stored.decode())
            for page in self._engine.scan("passwords")
            for user_id, stored in page.items()
        }
        for user in self.storage.users():
            yield user.id, user.name, user.id in online, states.get(user.id, password_state(None))

    def export(self) -> Iterator[ChatRow]:
        """All batches, pair by pair."""
        return RedisChats(self._engine, 0).export()

    def kick(self, user_id: int) -> bool:
        """End a user's connection; False if there is none."""
        return user_id in self._online() and bool(self._engine.run(KICK, user_id))

    def _online(self) -> set[int]:
        """The users online at nodes that have not failed."""
        _, _, everyone = self._directory.snapshot()
        seconds, _ = self._engine.call("TIME")
        nodes = self._engine.call("ZRANGEBYSCORE", self._engine.key("nodes"), int(seconds) * 1000 - GONE_MS, "+inf")
        running = {node.decode() for node in nodes}
        return {user_id for user_id, holder in everyone.items() if holder.node in running}
