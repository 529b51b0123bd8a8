"""`python -m testkit.counted_server OPTIONS`: the server, counting the calls of its main thread between two SIGUSR1.

The second SIGUSR1 logs the counts: `python 12 builtin 34`. This server does not watch its loop for lateness, because
that costs calls per second and not per message.
"""

from gevent import monkey

monkey.patch_all()

import logging
import signal
import sys
from collections import Counter
from types import FrameType

import gevent

import chatserver.operations.lag
import server


def main() -> int:
    """server.main, with the counter installed."""
    calls: Counter[str] = Counter()
    counts = False

    def count(_: FrameType, event: str, __: object) -> None:
        if counts:
            calls[event] += 1

    def toggle() -> None:
        nonlocal counts
        counts = not counts
        if not counts:
            logging.getLogger("chat").info("python %d builtin %d", calls["call"], calls["c_call"])
        else:
            logging.getLogger("chat").info("counting")

    chatserver.operations.lag.BEAT_SECONDS = 3600
    gevent.signal_handler(signal.SIGUSR1, toggle)
    sys.setprofile(count)
    return server.main()


if __name__ == "__main__":
    sys.exit(main())
