"""The standard streams of a program, whatever cron, a daemon or the shell has done to them."""

import io
import os
import select
import sys

# Their numbers, names and modes, and how what stands in for them is opened.
STREAMS = ((0, "stdin", "r", os.O_RDONLY), (1, "stdout", "w", os.O_RDONLY), (2, "stderr", "w", os.O_WRONLY))


class OutputLost(OSError):
    """Standard output or standard error cannot be written."""


def open_missing_streams() -> None:
    """Put something in place of each closed stream: input that ends at once, output on which writing is an OSError, and
    complaints that nobody hears.

    Call this first: a file that is opened before may get the number of a closed stream, and then be written to.
    """
    for number, name, mode, flags in STREAMS:
        if getattr(sys, name) is not None:
            continue
        nothing = os.open(os.devnull, flags)
        if nothing != number:
            os.dup2(nothing, number)
            os.close(nothing)
        setattr(sys, name, os.fdopen(number, mode, closefd=False))


def wait_for_readers() -> None:
    """Make output to a pipe wait for a slow reader, also if the pipe does not block: Python would lose what it printed.
    Output that cannot be written at all raises OutputLost from now on.

    Any process that shares the pipe may have made it so, and may do it at any time.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not stream.isatty():
            stream.flush()
            raw = _WaitingOutput(stream.fileno(), "w", closefd=False)
            waiting = io.TextIOWrapper(
                io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=stream.line_buffering
            )
            setattr(sys, name, waiting)


class _WaitingOutput(io.FileIO):
    """A file that waits until it can be written."""

    def write(self, data: object) -> int:
        try:
            while (count := super().write(data)) is None:  # type: ignore[arg-type]
                poll = select.poll()
                poll.register(self, select.POLLOUT)
                poll.poll()
        except OSError as error:
            raise OutputLost(error.errno, error.strerror) from error
        return count
