"""A program as a test uses it: what it writes, on a screen or to pipes, with a deadline on every wait."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pyte

ROOT = Path(__file__).parent.parent
SECONDS = 30.0
COLUMNS, ROWS = 100, 30


class Program:
    """A running `python ...` that reads from pipes and writes to pipes; standard error goes where output goes."""

    def __init__(self, *arguments: object, environment: dict[str, str]) -> None:
        self.raw = b""
        self.process = self._start([sys.executable, *map(str, arguments)], os.environ | environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.close()

    def _start(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        input_end, self._input = os.pipe()
        self._output, output_end = os.pipe()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=input_end, stdout=output_end, stderr=output_end
        )
        os.close(input_end)
        os.close(output_end)
        return process

    def close(self) -> None:
        self.end_input()
        os.close(self._output)

    @property
    def text(self) -> str:
        return self.raw.decode()

    def type(self, text: str) -> None:
        os.write(self._input, text.encode())

    def end_input(self) -> None:
        if self._input >= 0:
            os.close(self._input)
        self._input = -1

    def drop_output(self) -> None:
        """Read nothing any more. At once: gevent's os.close would wait for its loop's next turn."""
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, self._output, inheritable=False)
        os.close(nothing)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def type_until(self, key: str, pattern: str) -> None:
        """Press a key, again and again, until the regular expression is found."""
        deadline = time.monotonic() + SECONDS
        while not re.search(pattern, self.text, re.MULTILINE):
            assert time.monotonic() < deadline, f"not found: {pattern!r} in\n{self.text}"
            self.type(key)
            self._read(time.monotonic() + 0.2)

    def wait_for(self, pattern: str, times: int = 1) -> None:
        """Wait until the regular expression is found so often in what can be read.

        Who types next on a screen waits for the prompt as well: keys that come while something is printed are lost.
        """
        found = self.read_until(lambda: len(re.findall(pattern, self.text, re.MULTILINE)) >= times)
        assert found, f"not found: {pattern!r} in\n{self.text}"

    def read_until(self, condition: Callable[[], bool]) -> bool:
        """Read until it holds; False where the output, or the time, ends before."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            if not self._read(deadline):
                return False
        return True

    def wait(self) -> int:
        """Read to the end; the exit status."""
        deadline = time.monotonic() + SECONDS
        while self._read(deadline):
            continue
        return self.process.wait(SECONDS)

    def _read(self, deadline: float) -> bool:
        """Read more; False at the end of output or at the deadline."""
        readable: list[tuple[int, int]] = []
        while not readable and time.monotonic() < deadline:
            poll = select.poll()  # select() knows no descriptors from 1024 on
            poll.register(self._output, select.POLLIN)
            readable = poll.poll(100)  # milliseconds: in turns, as gevent closes files between them
        try:
            data = os.read(self._output, 65536) if readable else b""
        except OSError:  # a pseudo-terminal whose program has gone
            data = b""
        self.raw += data
        self._show(data)
        return bool(data)

    def _show(self, data: bytes) -> None:
        """For those that have a screen."""


class _Screen(pyte.Screen):
    """A screen that answers when the program asks where the cursor is."""

    def __init__(self, answer: Callable[[str], None]) -> None:
        super().__init__(COLUMNS, ROWS)
        self._answer = answer

    def write_process_input(self, data: str) -> None:
        self._answer(data)


def _take_terminal() -> None:
    """Make standard input the terminal that turns Ctrl-C into a signal."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class ScreenProgram(Program):
    """The same with a terminal; `text` is what is on its screen."""

    def __init__(self, *arguments: object, environment: dict[str, str]) -> None:
        self._screen = _Screen(self.type)
        self._stream = pyte.ByteStream(self._screen)
        super().__init__(*arguments, environment={"TERM": "xterm", **environment})

    def _start(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        self._input, terminal = pty.openpty()
        self._output = os.dup(self._input)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            preexec_fn=_take_terminal,
        )
        os.close(terminal)
        return process

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def interrupt(self) -> None:
        self.type("\x03")

    def _show(self, data: bytes) -> None:
        self._stream.feed(data)
