"""Chooses the client that gives up its place when all are taken and others wait: the one silent for longest."""

from collections.abc import Mapping

from chatserver.session import Session
from chatserver.transport.connection import Connection

BLOCKED_SECONDS = 60.0  # a session that waits for room in others' outboxes counts as silent after so long


class Silence:
    """How long each client has been silent: it has sent nothing but Pings and Pongs, and was sent no Message."""

    def __init__(self, allowed: float) -> None:
        """`allowed` in seconds."""
        self._allowed = allowed
        # For each client: what it has sent and was sent, and since when that has not changed.
        self._since: dict[Connection, tuple[object, float]] = {}

    def longest(self, connections: Mapping[Connection, Session], now: float) -> Connection | None:
        """Look at all clients again; return the one that has been silent for longest, and for longer than it may.

        `now` by monotonic().
        """
        since = {}
        for connection, session in connections.items():
            mark = (session.acts, connection.messages_mark)
            known = self._since.get(connection)
            since[connection] = known if known and known[0] == mark else (mark, now)
        self._since = since
        silent = [one for one in since if connections[one].member and now - since[one][1] >= self._limit(one)]
        return min(silent, key=lambda one: since[one][1], default=None)

    def _limit(self, connection: Connection) -> float:
        return self._allowed if connection.waiting_since is not None else min(self._allowed, BLOCKED_SECONDS)
