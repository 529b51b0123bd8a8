"""The log: whole lines on standard error, even if that is a file on a disk that fills up."""

import errno
import logging
import os
import select
import sys

from gevent.monkey import get_original

PIPE_BYTES = 4096  # what a pipe with room takes without waiting (PIPE_BUF)
poll = get_original("select", "poll")  # gevent's would let other greenlets run in the middle of a line


class LineHandler(logging.Handler):
    """Writes lines straight to a descriptor. It never raises and never waits, not even for a pipe that nobody reads.

    Lines that cannot be written are lost and counted; a line with their number precedes the next one that is written. A
    write may be short when a disk is nearly full: the rest of that line then goes first, so that no line is torn or
    joined to another.
    """

    def __init__(self, descriptor: int | None) -> None:
        """A handler for this descriptor; None discards all lines."""
        super().__init__()
        self._descriptor = descriptor
        self._room = poll()
        if descriptor is not None:
            self._room.register(descriptor, select.POLLOUT)
        self._rest = b""  # of a line that is partly written
        self._lost = 0  # lines since the last report
        self._problem = ""  # why the last write failed

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = self._lines(record)
        except Exception:  # noqa: BLE001 - a bad log call must not end a client's session
            self.handleError(record)
        else:
            self._write(lines)

    def flush(self) -> None:
        """Try again to write what is missing; logging calls this at the end of the process."""
        self._write(b"")

    def _write(self, lines: bytes) -> None:
        if self._descriptor is None:
            return
        begun = len(self._rest)
        data = self._rest + self._report() + lines
        written = 0
        try:
            while written < len(data):
                if not self._room.poll(0):
                    raise BlockingIOError(errno.EAGAIN, "nobody reads it")
                written += os.write(self._descriptor, data[written : written + PIPE_BYTES])
        except OSError as error:
            self._problem = error.strerror or str(error)
        missing = data[written:]
        torn = data[written - 1] != ord("\n") if written else begun > 0
        self._rest = missing[: missing.index(b"\n") + 1] if torn else b""
        if written > begun:
            self._lost = 0  # a report, if there was one, is at least partly written
        self._lost += min(lines.count(b"\n"), missing[len(self._rest) :].count(b"\n"))

    def _report(self) -> bytes:
        if not self._lost:
            return b""
        text = f"{self._lost} lines of this log were lost: {self._problem}"
        return self._lines(logging.LogRecord("chat", logging.WARNING, __file__, 0, text, None, None))

    def _lines(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode(errors="backslashreplace")


def start_log(level: str) -> None:
    """Make this process log to standard error, from this level up.

    A process that was started with standard error closed has no log: descriptor 2 may now be any other file.
    """
    handler = LineHandler(sys.stderr.fileno() if sys.stderr else None)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=level.upper(), handlers=[handler])
