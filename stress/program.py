"""How these programs end: with an exit status and one line. Only their own bugs show a traceback."""

import signal
import sys
from collections.abc import Callable

import gevent
from gevent.monkey import is_module_patched

from testkit import HarnessError

INTERRUPTED = 130  # a shell's status for Ctrl-C


def run(main: Callable[[], int]) -> int:
    """Returns the exit status of main(). Ctrl-C raises KeyboardInterrupt in it wherever it waits, so that it cleans up.

    By itself gevent would raise that in any greenlet and print a traceback.
    """
    if is_module_patched("time"):
        gevent.signal_handler(signal.SIGINT, gevent.kill, gevent.getcurrent(), KeyboardInterrupt)
    try:
        return main()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except HarnessError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
