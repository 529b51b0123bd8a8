"""A program of this project as a user runs it, at a terminal or with pipes; every wait has a deadline."""

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
from typing import Self

import pyte

from testkit import HarnessError
from testkit.processes import DEADLINE, ROOT

COLUMNS, ROWS = 100, 30


class Program:
    """A running `python ...` whose input and output are pipes; standard error goes to the output."""

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
        """Close the reading end of the output. At once: gevent's os.close would wait for the next turn of its loop."""
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, self._output, inheritable=False)
        os.close(nothing)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def type_until(self, key: str, pattern: str) -> None:
        """Press a key again and again until the output matches this regular expression."""
        deadline = time.monotonic() + DEADLINE
        while not re.search(pattern, self.text, re.MULTILINE):
            if time.monotonic() >= deadline:
                raise HarnessError(f"not found: {pattern!r} in\n{self.text}")
            self.type(key)
            self._read(time.monotonic() + 0.2)

    def wait_for(self, pattern: str, times: int = 1) -> None:
        """Wait until the output matches this regular expression `times` times. Raises HarnessError after DEADLINE.

        At a terminal, wait for the prompt before typing: keys pressed while something is printed are lost.
        """
        if not self.read_until(lambda: len(re.findall(pattern, self.text, re.MULTILINE)) >= times):
            raise HarnessError(f"not found: {pattern!r} in\n{self.text}")

    def read_until(self, condition: Callable[[], bool]) -> bool:
        """Read until the condition holds; False if the output ends or the deadline passes first."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            if not self._read(deadline):
                return False
        return True

    def wait(self) -> int:
        """Read to the end; returns the exit status."""
        deadline = time.monotonic() + DEADLINE
        while self._read(deadline):
            continue
        return self.process.wait(DEADLINE)

    def _read(self, deadline: float) -> bool:
        """Read more; False at the end of output or at the deadline."""
        readable: list[tuple[int, int]] = []
        while not readable and time.monotonic() < deadline:
            poll = select.poll()  # select() cannot watch descriptors from 1024 on
            poll.register(self._output, select.POLLIN)
            readable = poll.poll(100)  # milliseconds, so that gevent gets turns in which to close files
        try:
            data = os.read(self._output, 65536) if readable else b""
        except OSError:  # a pseudo-terminal whose program has ended
            data = b""
        self.raw += data
        self._show(data)
        return bool(data)

    def _show(self, data: bytes) -> None:
        """A subclass with a screen draws this there."""


class _Screen(pyte.Screen):
    """A screen that answers when the program asks for the cursor's position."""

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
    """The same at a terminal; `text` is what its screen shows."""

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


StartTerminal = Callable[..., ScreenProgram]  # the fixture `terminal`
StartLines = Callable[..., Program]  # the fixture `lines`
