"""Threads for work that would block the loop: disk access and hashing."""

from collections.abc import Callable
from typing import TypeVar

from gevent.threadpool import ThreadPool

T = TypeVar("T")


class Workers:
    """Runs at most `threads` operations at a time; further callers wait, and no other client is held up.

    With 0 threads each operation runs in the calling greenlet, for operations that wait cooperatively themselves.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPool(threads) if threads else None

    def run(self, operation: Callable[..., T], *arguments: object) -> T:
        """Run `operation` in a thread, wait cooperatively, and return what it returns or raise what it raises."""
        if self._pool is None:
            return operation(*arguments)
        outcome: Callable[[], T] = self._pool.apply(_attempt, (operation, arguments))
        return outcome()

    def join(self) -> None:
        """Wait until all operations are done."""
        if self._pool:
            self._pool.join()


def _attempt(operation: Callable[..., T], arguments: tuple[object, ...]) -> Callable[[], T]:
    """Return an error as a value, since gevent's pool prints a traceback for each exception that leaves a task."""
    try:
        result = operation(*arguments)
    except Exception as caught:  # noqa: BLE001 - it is raised again, in the calling greenlet
        error = caught

        def fail() -> T:
            raise error

        return fail
    return lambda: result
