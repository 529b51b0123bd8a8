"""How these programs end: with an exit status and a line, never with a traceback for what is not their own fault."""

import signal
import sys
from collections.abc import Callable

import gevent
from gevent.monkey import is_module_patched

INTERRUPTED = 130  # as a shell has it for Ctrl-C


def run(main: Callable[[], int]) -> int:
    """The exit status of main(); Ctrl-C reaches it as KeyboardInterrupt, wherever it waits, so that it clears up.

    Left to itself gevent raises that in any greenlet, and prints a traceback. What the programs take from the tests
    says by AssertionError that it waited in vain.
    """
    if is_module_patched("time"):
        gevent.signal_handler(signal.SIGINT, gevent.kill, gevent.getcurrent(), KeyboardInterrupt)
    try:
        return main()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except AssertionError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
