"""What a slow reader costs everyone else: `make slow-reader`.

The load tester's 16 users chat, far below the server's capacity, while other clients read slowly or not at all. Each
slow reader has a sender that floods it until its outbox is full; then back-pressure throttles the sender. After
--write-timeout the server drops the reader as Too Slow; the reader reconnects and is flooded again. So there is
pressure all the time. A throttled flood uses no CPU: what remains is the work of filling outboxes, and of refusing
what a dropped reader missed.

Machines are noisy, and the generator shares its machine with the server. So runs without and with slow readers
alternate, and the ratio of the two p99 of each round counts; the report says how much p99 varies by itself. The server
has more places than by default, since each slow reader takes two, and a shorter deadline, so that all this happens
several times in a run. Exit status: 1 if a run of the load tester failed, as it does when a message is lost.
"""

from gevent import monkey

monkey.patch_all()

import argparse
import math
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic

import gevent
from gevent import Greenlet
from gevent.event import Event

from protocol import PacketType, Reason, encode, encode_login
from stress.program import run
from table import aligned
from testkit import HarnessError
from testkit.flood import BIG, Flood
from testkit.loadtests import LoadRun, load, run_locust
from testkit.processes import DEADLINE
from testkit.server import ServerProcess, run_server
from testkit.wire import Wire

USERS = 16
MESSAGES = 10  # a second, of each user of the load tester
PLACES = 60  # for the load, and two for each slow reader
WRITE_TIMEOUT = 2  # seconds; shorter than by default, so that readers are dropped and reconnect in each run
SERVER = ("--pool-size", PLACES, "--write-timeout", WRITE_TIMEOUT)
DROPPED = "disconnected: Too Slow"  # in the server's log
BARRIER = encode(PacketType.PING, b"over")
STUCK_SECONDS = 0.5  # without room, after which a flood counts as blocked: well within the deadline
SMALL_BUFFER = 16 * 1024  # of the kernel, on both sides of a flood: the server's outbox is to fill up, not the kernel
WELL_READ_BYTES = 256 * 1024  # that a reader reads before it stops half-way

Reader = Callable[[Wire], None]


def never_reads(_: Wire) -> None:
    """Like a program that has stopped."""


def reads_a_byte_a_second(client: Wire) -> None:
    """So little that its kernel reopens the window only after minutes: to the server it reads nothing."""
    with suppress(ConnectionResetError):  # dropped, and the Error that says so was never read
        while client.socket.recv(1):
            gevent.sleep(1)


def stops_half_way(client: Wire) -> None:
    """Read fast at first, then nothing."""
    left = WELL_READ_BYTES
    while left > 0 and (data := client.socket.recv(left)):
        left -= len(data)


KINDS: dict[str, Reader] = {
    "never read": never_reads,
    "read a byte a second": reads_a_byte_a_second,
    "stop half-way": stops_half_way,
}


@dataclass(frozen=True, slots=True)
class ReaderFigures:
    """One run of the load tester, with or without slow readers."""

    run: LoadRun
    dropped: int  # how often a slow reader was dropped as Too Slow
    cpu: float  # the server's, as a share of a core; nan if there is no /proc

    @property
    def p99(self) -> float:
        """Of the load tester's messages, in milliseconds; nan if none arrived."""
        return self.run.rows["deliver"].times.get("p99", math.nan) * 1000 if "deliver" in self.run.rows else math.nan

    @property
    def lost(self) -> int:
        """The faults in the load tester's ledger."""
        return sum(self.run.faults.values()) if self.run.ledger else 0


Setting = tuple[str, int]  # the kind of slow readers, and their number
Pair = tuple[ReaderFigures, ReaderFigures]  # without and with them


def main() -> int:
    options = parse_options()
    rounds: dict[Setting, list[Pair]] = {}
    print(f"The load is {USERS} users, {MESSAGES} messages a second each; the server has {' '.join(map(str, SERVER))}.")
    try:
        with TemporaryDirectory(prefix="slow-reader-") as folder, run_server(Path(folder) / "data", *SERVER) as server:
            for setting, pair in measure_all(server, Path(folder), options):
                rounds.setdefault(setting, []).append(pair)
    finally:
        if rounds:
            print(report(rounds))
    failed = [one.run for pairs in rounds.values() for pair in pairs for one in pair if one.run.status]
    for each in failed:
        print(each.explain(), file=sys.stderr)
    return 1 if failed else 0


def parse_options() -> argparse.Namespace:
    most = (PLACES - USERS) // 2
    parser = argparse.ArgumentParser(prog="make slow-reader", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--rounds", type=int, choices=range(1, 101), metavar="N", default=3, help="how many (default: 3)"
    )
    parser.add_argument(
        "--seconds", type=int, choices=range(1, 3601), metavar="N", default=8, help="seconds of a run (default: 8)"
    )
    parser.add_argument(
        "--readers",
        type=int,
        nargs="+",
        choices=range(1, most + 1),
        metavar="N",
        default=[1, 5, 10],
        help=f"numbers of slow readers, each up to {most} (default: 1 5 10)",
    )
    return parser.parse_args()


def measure_all(server: ServerProcess, folder: Path, options: argparse.Namespace) -> Iterator[tuple[Setting, Pair]]:
    """Measure all rounds for each kind and number of readers, and print progress."""
    for kind, reads in KINDS.items():
        for count in options.readers:
            for number in range(1, options.rounds + 1):
                without = measure(server, folder, [], options.seconds)
                beside = measure(server, folder, [reads] * count, options.seconds)
                figures = f"without {without.p99:.2f}, with {beside.p99:.2f}, Too Slow {beside.dropped} times"
                print(f"{count} that {kind}, round {number} of {options.rounds}: {figures}", flush=True)
                yield (kind, count), (without, beside)


def measure(server: ServerProcess, folder: Path, readers: Sequence[Reader], seconds: int) -> ReaderFigures:
    """Run the load tester while these readers are under attack."""
    with attacked(server, readers):
        dropped, cpu, begin = server.log.count(DROPPED), cpu_seconds(server.process.pid), monotonic()
        load_run = run_locust(folder, *load(server.address, USERS, seconds, rate=MESSAGES))
        share = (cpu_seconds(server.process.pid) - cpu) / (monotonic() - begin)
        return ReaderFigures(load_run, server.log.count(DROPPED) - dropped, share)


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used so far; nan if there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    user, system = map(int, fields[11:13])
    return (user + system) / os.sysconf("SC_CLK_TCK")


@contextmanager
def attacked(server: ServerProcess, readers: Sequence[Reader]) -> Iterator[None]:
    """Flood each of these readers until its outbox is full, then go on in the background.

    Raises HarnessError if an outbox does not fill up, or an attack fails.
    """
    blocked = [Event() for _ in readers]
    attacks = [gevent.spawn(attack, server, *one) for one in zip(range(len(readers)), readers, blocked, strict=True)]
    try:
        for event in blocked:
            if not event.wait(DEADLINE):
                raise HarnessError("the server never throttles the flood of a slow reader")
        yield
        for ended in filter(Greenlet.ready, attacks):
            ended.get()  # raises what ended it
    finally:
        gevent.killall(attacks)


def attack(server: ServerProcess, number: int, reads: Reader, blocked: Event) -> None:
    """Flood a reader until the server drops it as Too Slow, again and again; sets `blocked` once its outbox is full."""
    with log_in(server, f"flood-{number}") as sender:
        while True:
            flood = Flood(sender, BIG)
            with log_in(server, f"slow-{number}") as reader:
                sender.chat_with(reader.users[f"slow-{number}"])
                reading = gevent.spawn(reads, reader)
                try:
                    flood_until_refused(sender, flood, blocked)
                finally:
                    reading.kill()
            read_refusals(sender, flood)


def flood_until_refused(sender: Wire, flood: Flood, blocked: Event) -> None:
    """Send until there is an Error to read, which answers the first Message that the dropped reader missed."""
    while not select.select([sender.socket], [], [], 0)[0]:
        if not flood.push(STUCK_SECONDS):
            blocked.set()


def read_refusals(sender: Wire, flood: Flood) -> None:
    """End the flood on a packet boundary, and read the Errors for the Messages that came too late."""
    ending = gevent.spawn(flood.end, BARRIER)
    try:
        sender.expect_error(Reason.USER_NOT_ONLINE)
        while (packet := sender.read()) != (PacketType.PONG, b"over"):
            if packet is None:
                raise HarnessError("the server disconnected a sender")
        ending.get()
    finally:
        ending.kill()


def log_in(server: ServerProcess, name: str) -> Wire:
    """Log in a client with small kernel buffers."""
    client = Wire(server.host, server.port, SMALL_BUFFER)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
    client.send(encode_login(name))
    client.read_list(name)
    return client


def report(rounds: Mapping[Setting, Sequence[Pair]]) -> str:
    """A line for each kind and number of readers, and how to read the table."""
    lines = [["slow readers", "", "p99 without", "with", "ratio", "range", "lost", "Too Slow", "CPU without", "with"]]
    lines += [[f"that {kind}", str(count), *figures(pairs)] for (kind, count), pairs in rounds.items()]
    plain = [without.p99 for pairs in rounds.values() for without, _ in pairs]
    changes = [max(two) / min(two) for two in pairwise(plain)] or [math.nan]
    return f"""
The load tester's users, medians of the rounds: p99 of deliver in ms, and the CPU of the server
{aligned(lines)}

How to read it: nothing may be lost, and slow readers are dropped (Too Slow) again and again.
Without them p99 was {min(plain):.2f} to {max(plain):.2f} ms, and from one such run to the next it changed
by a factor of {median(changes):.1f}, up to {max(changes):.1f}: ratios below that may be noise.
A server whose slow readers delay others would show about {WRITE_TIMEOUT * 1000} ms (its --write-timeout)."""


def figures(pairs: Sequence[Pair]) -> list[str]:
    without, beside = zip(*pairs, strict=True)
    ratios = [slow.p99 / plain.p99 for plain, slow in pairs]
    return [
        *(f"{median(one.p99 for one in side):.2f}" for side in (without, beside)),
        f"{median(ratios):.2f}",
        f"{min(ratios):.2f}-{max(ratios):.2f}",
        str(sum(one.lost for pair in pairs for one in pair)),
        str(sum(one.dropped for one in beside)),
        *(f"{median(one.cpu for one in side):.0%}" for side in (without, beside)),
    ]


if __name__ == "__main__":
    sys.exit(run(main))
