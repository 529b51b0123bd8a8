"""The log: whole lines on standard error, also where that is a file on a disk that fills up."""

import errno
import logging
import os
import select
import sys

from gevent.monkey import get_original

PIPE_BYTES = 4096  # that a pipe with room takes without waiting (PIPE_BUF)
poll = get_original("select", "poll")  # gevent's own would let others run in the middle of a line


class LineHandler(logging.Handler):
    """Writes lines straight to a descriptor; never raises, and never waits, not even for a pipe that nobody reads.

    Lines that cannot be written are counted, and the next one that can be comes behind one that tells the figure. A
    write may be short where a disk is nearly full: the rest of that line then comes before anything else, so that none
    is torn, or glued to another.
    """

    def __init__(self, descriptor: int | None) -> None:
        """None writes nowhere."""
        super().__init__()
        self._descriptor = descriptor
        self._room = poll()
        if descriptor is not None:
            self._room.register(descriptor, select.POLLOUT)
        self._rest = b""  # of a line that is begun
        self._lost = 0  # lines, since that was last told
        self._problem = ""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = self._lines(record)
        except Exception:  # noqa: BLE001 - a fault in a call of the log shall not end a client's session
            self.handleError(record)
        else:
            self._write(lines)

    def flush(self) -> None:
        """Try once more to write what is missing; logging calls this at the end of the process."""
        self._write(b"")

    def _write(self, lines: bytes) -> None:
        if self._descriptor is None:
            return
        begun = len(self._rest)
        data = self._rest + self._told() + lines
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
            self._lost = 0  # the line that tells is begun, if there is one
        self._lost += min(lines.count(b"\n"), missing[len(self._rest) :].count(b"\n"))

    def _told(self) -> bytes:
        if not self._lost:
            return b""
        text = f"{self._lost} lines of this log were lost: {self._problem}"
        return self._lines(logging.LogRecord("chat", logging.WARNING, __file__, 0, text, None, None))

    def _lines(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode(errors="backslashreplace")


def start_log(level: str) -> None:
    """Let this process log to standard error, from this level on.

    A process whose standard error was closed when it started has no log: that descriptor may now be any other file.
    """
    handler = LineHandler(sys.stderr.fileno() if sys.stderr else None)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=level.upper(), handlers=[handler])
