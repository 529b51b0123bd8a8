"""What a message costs in calls, which do not depend on the machine's speed. docs/BENCHMARKS.md has the times.

If one of these fails after a change to the hot path, the change made each message more expensive. If it is worth that,
raise the bound and say why.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest

from protocol import IS_COMPILED, PacketType, encode, encode_message
from testkit.processes import DEADLINE
from testkit.server import UNWATCHED, ServerProcess, run_server
from testkit.wire import Wire

UNCOVERED = ["env", *chain.from_iterable(("-u", name) for name in os.environ if name.startswith("COV"))]
STRACE = ["strace", "-D", "-f", "-qq", "-s", "64", "-o"]
OPTIONS = ("--history", "off")
MESSAGES = 200  # back and forth, one at a time
CHUNKS, IN_CHUNK = 20, 100  # one way, many at once
TEXT = encode_message(b"sixteen bytes...")
RELAYED = {name: encode_message(f"{name}:sixteen bytes...".encode()) for name in ("alice", "bob")}


@contextmanager
def chatting(server: ServerProcess) -> Iterator[dict[str, Wire]]:
    """alice (1) and bob (2) chat with each other."""
    with server.log_in("alice") as alice, server.log_in("bob") as bob:
        alice.chat_with(2)
        bob.chat_with(1)
        yield {"alice": alice, "bob": bob}


def ping_pong(wires: dict[str, Wire]) -> int:
    """Send Messages back and forth, one at a time; returns their number."""
    for number in range(MESSAGES):
        sender, receiver = ("alice", "bob") if number % 2 else ("bob", "alice")
        wires[sender].send(TEXT)
        wires[receiver].expect(RELAYED[sender])
    return MESSAGES


def pipelined(wires: dict[str, Wire]) -> int:
    """Send Messages one way, each chunk once the previous one has arrived; returns their number."""
    for _ in range(CHUNKS):
        wires["alice"].send(TEXT * IN_CHUNK)
        for _ in range(IN_CHUNK):
            wires["bob"].expect(RELAYED["alice"])
    return CHUNKS * IN_CHUNK


CONVERSATIONS = pytest.mark.parametrize(
    ("conversation", "python_calls", "builtin_calls", "system_calls"),
    [(ping_pong, 7.6, 12.5, 4.2), (pipelined, 0.28, 0.28 if IS_COMPILED else 2.3, 0.05)],
    ids=["ping-pong", "pipelined"],
)
Conversation = Callable[[dict[str, Wire]], int]


@CONVERSATIONS
def test_a_message_takes_at_most_this_many_calls(
    tmp_path: Path, conversation: Conversation, python_calls: float, builtin_calls: float, system_calls: float
) -> None:
    del system_calls
    program = ("-m", "testkit.counted_server")
    with (
        run_server(tmp_path / "data", *OPTIONS, under=UNCOVERED, program=program) as server,
        chatting(server) as wires,
    ):
        server.process.send_signal(signal.SIGUSR1)
        server.wait_for_log("counting")
        messages = conversation(wires)
        server.process.send_signal(signal.SIGUSR1)
        server.wait_for_log("python ")
        found = re.search(r"python (\d+) builtin (\d+)", server.log)
    assert found
    assert 0 < int(found[1]) <= python_calls * messages + 50, "calls of functions written in Python"
    assert int(found[2]) <= builtin_calls * messages + 50, "calls of built-in functions"


@CONVERSATIONS
def test_a_message_takes_at_most_this_many_system_calls(
    tmp_path: Path, conversation: Conversation, python_calls: float, builtin_calls: float, system_calls: float
) -> None:
    del python_calls, builtin_calls
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    tried = subprocess.run([*STRACE, trace, "true"], capture_output=True, text=True, timeout=DEADLINE, check=False)
    if tried.returncode or tried.stderr:
        pytest.skip(f"strace may not trace here: {tried.stderr.strip()}")
    with (
        run_server(tmp_path / "data", *OPTIONS, under=[*UNCOVERED, *STRACE, str(trace)], program=UNWATCHED) as server,
        chatting(server) as wires,
    ):
        mark(wires["alice"], b"begin")
        messages = conversation(wires)
        mark(wires["alice"], b"end")
    # each line begins with the thread; the first one is the main one
    lines = trace.read_text().splitlines()
    main = [line for line in lines if line.split()[0] == lines[0].split()[0]]
    begin = next(number for number, line in enumerate(main) if "recv" in line and "begin" in line)
    end = next(number for number, line in enumerate(main) if "recv" in line and "end" in line)
    assert messages * 0.01 < end - begin <= system_calls * messages + 10, "\n".join(main[begin : begin + 30])


def mark(wire: Wire, text: bytes) -> None:
    wire.send(encode(PacketType.PING, text))
    wire.expect(encode(PacketType.PONG, text))
