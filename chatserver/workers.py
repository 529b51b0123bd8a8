"""Threads for work that would block the loop: the disk, and hashing."""

from collections.abc import Callable
from typing import TypeVar

from gevent.threadpool import ThreadPool

T = TypeVar("T")


class Workers:
    """At most `threads` operations at one time; whoever wants another waits, while every other client goes on."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPool(threads)

    def run(self, operation: Callable[..., T], *arguments: object) -> T:
        """Run it in a thread, wait cooperatively, return what it returns or raise what it raises."""
        outcome: Callable[[], T] = self._pool.apply(_attempt, (operation, arguments))
        return outcome()

    def join(self) -> None:
        """Wait until everything under way is done."""
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
