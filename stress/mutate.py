"""Mutated conversations with a live server while honest users use it: `python -m stress.mutate --help`.

Two of them chat with each other, and one writes letters to another who is offline half of the time. The seed and its
number determine a conversation, so each can be repeated alone.
"""

from gevent import monkey

monkey.patch_all()

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import gevent

from chatserver.transport.connection import LINGER_SECONDS
from protocol import (
    EXTRA_FROM_SERVER,
    FROM_SERVER,
    Decoder,
    PacketType,
    Reason,
    RemoteProtocolError,
    is_valid_username,
    parse_dated,
    parse_presence,
    parse_receipt,
    parse_text,
    parse_user,
)
from stress.conversations import Conversation, Ending, conversation
from stress.honest import HonestPair
from stress.letters import Letters
from stress.program import run
from testkit import HarnessError
from testkit.server import ServerProcess, run_server
from testkit.wire import reset_on_close

AT_ONCE = 14  # conversations, of the server's 20 places
SECONDS = 30.0  # within which a conversation must end
WRITE_TIMEOUT = 1.2  # twice that for a client that has been seen to read
CUT_SECONDS = WRITE_TIMEOUT + LINGER_SECONDS  # a client that reads later than this may miss the end of the stream
DEAF_SECONDS = 3.0  # between twice WRITE_TIMEOUT and CUT_SECONDS, unless this process is delayed
SMALL_BUFFER = 4096
PROGRESS_SECONDS = 5.0
MEMORY_SAMPLES = 5
GROWTH = 1.3
GROWTH_BYTES = 32 * 1024 * 1024
FAULTS_SHOWN = 20
SERVER_OPTIONS = ("--max-users", 64, "--write-timeout", WRITE_TIMEOUT, "--login-timeout", 5)

IN_REPLAY = (PacketType.HISTORY, PacketType.MESSAGE, PacketType.ERROR)

Address = tuple[str, int]


class HeldUp(Exception):
    """The server throttles this client, which reads nothing."""


@dataclass(slots=True)
class MutationReport:
    """The result; `faults` is empty if every promise was kept."""

    conversations: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    received: int = 0
    letters: int = 0
    slowest: float = 0.0  # seconds
    seconds: float = 0.0
    memory: list[int] = field(
        default_factory=list
    )  # the server's bytes in memory after a third of the conversations and at the end
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        answers = ", ".join(f"{name} {count}" for name, count in self.answers.most_common())
        faults = [f"FAULT: {fault}" for fault in self.faults[:FAULTS_SHOWN]]
        return "\n".join(
            [
                f"{self.conversations} conversations in {self.seconds:.0f} s",
                f"answers: {answers}",
                f"honest messages: sent {self.sent}, received {self.received}; the slowest took {self.slowest:.2f} s",
                f"letters: {self.letters}",
                "server's memory: " + ", then ".join(f"{size / 2**20:.0f} MiB" for size in self.memory),
                *faults,
                f"{len(self.faults)} faults",
            ]
        )


def mutate(
    server: ServerProcess,
    conversations: int,
    seed: int = 1,
    first: int = 0,
    address: Address | None = None,
    progress: Callable[[MutationReport], object] = lambda _: None,
) -> MutationReport:
    """Hold these conversations, AT_ONCE at a time; `address` may be that of a proxy in front of the server."""
    report = MutationReport()
    begin = time.monotonic()
    address = address or (server.host, server.port)
    numbers = iter(range(first, first + conversations))

    def work() -> None:
        for number in numbers:
            fault = _hold(address, conversation(seed, number), report.answers)
            if fault:
                report.faults.append(f"conversation {number} of seed {seed}: {fault}")
            report.conversations += 1
            if report.conversations == conversations // 3:
                report.memory.append(_memory(server))

    with HonestPair(address, report.faults) as pair, Letters(address, report.faults) as letters:
        workers = [gevent.spawn(work) for _ in range(AT_ONCE)]
        while len(gevent.joinall(workers, timeout=PROGRESS_SECONDS)) < AT_ONCE:
            progress(report)
        report.faults += [
            f"an internal error of this program: {worker.exception!r}" for worker in workers if worker.exception
        ]
        letters.finish()
        pair.finish()
    report.letters = letters.received
    report.sent, report.received, report.slowest = pair.sent, pair.received, pair.slowest
    report.seconds = time.monotonic() - begin
    report.memory.append(_memory(server))
    report.faults += _server_faults(server, report.memory)
    return report


def _hold(address: Address, talk: Conversation, answers: Counter[str]) -> str:
    """Hold one conversation; returns what was wrong with the server's side of it, or ""."""
    try:
        with gevent.Timeout(SECONDS), socket.socket() as sock:
            if talk.ending is Ending.DEAF:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            sock.connect(address)
            return ENDINGS[talk.ending](sock, talk, answers)
    except gevent.Timeout:
        return f"no end after {SECONDS:.0f} s: {talk.ending}"
    except RemoteProtocolError as broken:
        return f"an answer is no packet of the protocol: {broken}"
    except OSError as error:
        return f"the connection failed: {error}"


def _send(sock: socket.socket, talk: Conversation) -> None:
    with suppress(ConnectionError):  # the server has closed already; its Error says why
        for piece in talk.pieces:
            sock.sendall(piece)
            gevent.sleep(talk.pause)


def _read_to_end(sock: socket.socket, talk: Conversation, answers: Counter[str]) -> str:
    began = time.monotonic()
    sender = gevent.spawn(_send_and_half_close, sock, talk)
    try:
        if talk.ending is Ending.DEAF:
            gevent.sleep(DEAF_SECONDS)
        return _check_answers(sock, talk, answers, began)
    finally:
        sender.kill()


def _send_and_half_close(sock: socket.socket, talk: Conversation) -> None:
    _send(sock, talk)
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


def _leave(sock: socket.socket, talk: Conversation, _: Counter[str]) -> str:
    with suppress(HeldUp), gevent.Timeout(DEAF_SECONDS, HeldUp):
        _send(sock, talk)
    return ""


def _reset(sock: socket.socket, talk: Conversation, answers: Counter[str]) -> str:
    _leave(sock, talk, answers)
    reset_on_close(sock)
    return ""


ENDINGS: dict[Ending, Callable[[socket.socket, Conversation, Counter[str]], str]] = {
    Ending.HALF_CLOSE: _read_to_end,
    Ending.DEAF: _read_to_end,
    Ending.LEAVE: _leave,
    Ending.RESET: _reset,
}


def _check_answers(sock: socket.socket, talk: Conversation, answers: Counter[str], began: float) -> str:
    """Read to the end and count the answers. Raises RemoteProtocolError, also for features not requested."""
    decoder, replays = Decoder(FROM_SERVER), False
    decoder.accept_extra(EXTRA_FROM_SERVER, talk.features)
    try:
        while data := sock.recv(65536):
            for packet_type, body in decoder.packets(data):
                answers[_name(packet_type, body)] += 1
                if replays and packet_type not in IN_REPLAY:
                    return f"a packet of type {packet_type} within a replay"
                replays = bool(body) if packet_type == PacketType.HISTORY else replays
    except ConnectionError:
        answers["(reset)"] += 1  # the server resets a client that still sends 2 seconds after its Error
        return ""
    if decoder.rest and talk.ending is Ending.DEAF and time.monotonic() - began >= CUT_SECONDS:
        answers["(cut)"] += 1
        return ""
    return f"the stream ended inside a packet: {decoder.rest!r}" if decoder.rest else ""


def _name(packet_type: int, body: bytes) -> str:
    """Under which name to count this packet. Raises RemoteProtocolError if it is malformed."""
    match packet_type:
        case PacketType.ERROR:
            text = parse_text(body).decode()
            if text not in set(Reason):
                raise RemoteProtocolError(Reason.MALFORMED_PACKET)
            return text
        case PacketType.MESSAGE:
            name, colon, _ = parse_text(body).decode().partition(":")
            _check_name(name if colon else "")
        case PacketType.CONFIG:
            _check_name(parse_user(body)[0])
        case PacketType.PRESENCE:
            _check_name(parse_presence(body).username)
        case PacketType.RECEIPT:
            parse_receipt(body)
        case PacketType.HISTORY:
            parse_dated(body)
    return PacketType(packet_type).name.capitalize()


def _check_name(name: str) -> None:
    if not is_valid_username(name):
        raise RemoteProtocolError(Reason.MALFORMED_PACKET)


def _memory(server: ServerProcess) -> int:
    """The server's bytes in memory, 0 if it has ended. The least of several samples, since a password takes 64 MiB."""
    samples = []
    for _ in range(MEMORY_SAMPLES):
        ps = subprocess.run(["ps", "-o", "rss=", "-p", str(server.process.pid)], capture_output=True, check=False)  # noqa: S607
        samples.append(int(ps.stdout or 0) * 1024)
        gevent.sleep(0.1)
    return min(samples)


def _server_faults(server: ServerProcess, memory: list[int]) -> list[str]:
    """The faults that the log, the process and its memory show."""
    log = server.log
    faults = [f"the server's log has {sign!r}" for sign in ("internal error", "Traceback") if sign in log]
    if server.process.poll() is not None:
        faults.append(f"the server has ended, with status {server.process.returncode}")
    if memory[-1] > memory[0] * GROWTH + GROWTH_BYTES:
        faults.append(f"the server's memory grew from {memory[0]} to {memory[-1]} bytes")
    return faults


def main() -> int:
    """Returns the exit status: 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m stress.mutate", description=__doc__)
    parser.add_argument("--conversations", type=int, metavar="N", default=2000, help="how many (default: 2000)")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument(
        "--first", type=int, metavar="N", default=0, help="number of the first conversation (default: 0)"
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chat-mutate-"))
    try:
        with run_server(folder / "data", *SERVER_OPTIONS) as server:
            report = mutate(server, options.conversations, options.seed, options.first, progress=_show)
    except HarnessError as fault:
        print(f"FAULT: the server did not start or end cleanly; its log is in {folder}\n{str(fault)[-2000:]}")
        return 1
    print(report)
    if report.faults:
        print(f"The server's log is in {folder}. To repeat one of them alone:")
        print(f"  python -m stress.mutate --seed {options.seed} --first NUMBER --conversations 1")
        return 1
    shutil.rmtree(folder)
    return 0


def _show(report: MutationReport) -> None:
    print(f"{report.conversations} conversations, {len(report.faults)} faults", flush=True)


if __name__ == "__main__":
    sys.exit(run(main))
