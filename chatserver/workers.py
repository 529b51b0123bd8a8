"""Threads for work that would block the loop: the disk, and hashing."""

from collections.abc import Callable
from typing import TypeVar

from gevent.threadpool import ThreadPool

T = TypeVar("T")


class Workers:
    """At most `threads` operations at one time; whoever wants another waits, while every other client goes on.

    With 0 threads they run where they are asked for: those that wait cooperatively themselves.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPool(threads) if threads else None

    def run(self, operation: Callable[..., T], *arguments: object) -> T:
        """Run it in a thread, wait cooperatively, return what it returns or raise what it raises."""
        if self._pool is None:
            return operation(*arguments)
        outcome: Callable[[], T] = self._pool.apply(_attempt, (operation, arguments))
        return outcome()

    def join(self) -> None:
        """Wait until everything under way is done."""
        if self._pool:
            self._pool.join()


def _attempt(operation: Callable[..., T], arguments: tuple[object, ...]) -> Callable[[], T]:
    """An error is handed over as a value: gevent's pool prints a traceback for each that leaves a task."""
    try:
        result = operation(*arguments)
    except Exception as caught:  # noqa: BLE001 - it is raised again, in the greenlet that asked
        error = caught

        def fail() -> T:
            raise error

        return fail
    return lambda: result
