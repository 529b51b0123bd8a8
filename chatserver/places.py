"""Who gives up a place when all are taken and others wait: the client that has been silent for longest."""

from collections.abc import Mapping

from chatserver.session import Session
from chatserver.transport.connection import Connection

BLOCKED_SECONDS = 60.0  # a session that waits for room in others' outboxes counts as silent after so long


class Silence:
    """How long each client has been silent: it has sent nothing but Pings and Pongs, and was sent no Message."""

    def __init__(self, allowed: float) -> None:
        """`allowed` in seconds."""
        self._allowed = allowed
        # What each has sent and was sent, and since when that has not changed.
        self._since: dict[Connection, tuple[object, float]] = {}

    def look(self, connections: Mapping[Connection, Session], now: float) -> None:
        """Note who has sent or been sent something since the last look. `now` by monotonic()."""
        since = {}
        for connection, session in connections.items():
            mark = (session.acts, connection.messages_mark)
            known = self._since.get(connection)
            since[connection] = known if known and known[0] == mark else (mark, now)
        self._since = since

    def longest(self, connections: Mapping[Connection, Session], now: float) -> Connection | None:
        """The client that has been silent for longest, and for longer than it may."""
        silent = [
            (since, number, connection)
            for number, (connection, (_, since)) in enumerate(self._since.items())
            if connection in connections and connections[connection].member and now - since >= self._limit(connection)
        ]
        return min(silent)[2] if silent else None

    def _limit(self, connection: Connection) -> float:
        return self._allowed if connection.waiting_since is not None else min(self._allowed, BLOCKED_SECONDS)
