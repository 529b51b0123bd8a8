"""Senders that wait for room in one outbox are served in turn, a piece of their Messages each.

Otherwise whoever has the most to send would be served first.
"""

from collections import deque
from collections.abc import Callable
from time import monotonic

from gevent.event import Event

PIECE_BYTES = 1024  # that a sender may queue before the next one
LOOK_SECONDS = 1.0  # between two looks whether a sender that waits has left
PATIENCE_SECONDS = 10.0  # that a sender still waits once its client has left


class Turn:
    """A sender that waits, for one outbox at a time. `has_left` tells whether its client has."""

    def __init__(self, has_left: Callable[[], bool] = lambda: False) -> None:
        self._has_left = has_left
        self._called = Event()
        self._left_at: float | None = None
        self._is_over = False

    def call(self) -> None:
        """Make it look whether it can go on. Never waits."""
        self._called.set()

    def end(self) -> None:
        """Make it give up. Never waits."""
        self._is_over = True
        self.call()

    def wait(self) -> None:
        """Wait until it is called, or may have to give up."""
        self._called.wait(LOOK_SECONDS)
        self._called.clear()

    def gives_up(self) -> bool:
        """Whether nobody is to wait for this sender any more: its client has left long enough ago, or it was ended."""
        if self._left_at is None and self._has_left():
            self._left_at = monotonic()
        return self._is_over or (self._left_at is not None and monotonic() - self._left_at >= PATIENCE_SECONDS)


class Line:
    """The senders that wait for one outbox."""

    def __init__(self) -> None:
        self._turns: deque[Turn] = deque()

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits any more."""
        return not self._turns

    def join(self, turn: Turn) -> None:
        """Stand at the end."""
        self._turns.append(turn)

    def leave(self, turn: Turn) -> None:
        """Stand in it no more."""
        self._turns.remove(turn)
        self.call()

    def is_first(self, turn: Turn) -> bool:
        """Whether it is this sender's turn."""
        return self._turns[0] is turn

    def pass_on(self) -> None:
        """The first one has had its piece: it goes to the end."""
        self._turns.rotate(-1)
        self.call()

    def call(self) -> None:
        """Make the first one look whether it can go on. Never waits."""
        if self._turns:
            self._turns[0].call()
