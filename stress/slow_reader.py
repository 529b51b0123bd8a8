"""What a slow reader costs everyone else: `make slow-reader`.

The load tester's 16 users chat, far below what a server takes, while others read slowly or not at all. Each of these
is attacked: it has a sender of its own that floods it until its outbox is full, whereupon the sender is made to wait
too. After --write-timeout the server drops the reader as Too Slow; it comes back, and is flooded again. So there is
pressure all the time, but a flood that is blocked uses no CPU: what is left is the work of filling outboxes, and of
refusing what a dropped reader missed.

A machine is noisy, and the generator shares it with the server. So runs without and with slow readers alternate, and
what counts is the ratio of the two p99 of each round; the report says how much they vary by themselves. The server has
more places than by default, as each slow reader takes two, and a shorter deadline, so that all this happens several
times in a run. Exit status: 1 when a run of the load tester failed, as it does when a message was lost.
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

from loadtest.core.summary import aligned
from protocol import PacketType, Reason, encode, encode_login
from stress.program import run
from testkit.loadtests import LoadRun, load, run_locust
from testkit.processes import BIG, DEADLINE, Flood, ServerProcess, Wire, run_server

USERS = 16
MESSAGES = 10  # a second, of each user who chats
PLACES = 60  # for the load, and two for each slow reader
WRITE_TIMEOUT = 2  # seconds, shorter than by default: so that readers are dropped, and come back, in each run
SERVER = ("--pool-size", PLACES, "--write-timeout", WRITE_TIMEOUT)
DROPPED = "disconnected: Too Slow"  # in the server's log
BARRIER = encode(PacketType.PING, b"over")
STUCK_SECONDS = 0.5  # without room, until a flood counts as blocked: well within the deadline
SMALL_BUFFER = 16 * 1024  # the kernel's, on both sides of a flood: it is the server's that shall be full
WELL_READ_BYTES = 256 * 1024  # before a reader stops half-way

Reader = Callable[[Wire], None]


def never_reads(_: Wire) -> None:
    """As a program that has stopped."""


def reads_a_byte_a_second(client: Wire) -> None:
    """So little that its kernel opens the window again only after minutes: to the server it takes nothing."""
    with suppress(ConnectionResetError):  # dropped, and we never came to read the Error that says so
        while client.socket.recv(1):
            gevent.sleep(1)


def stops_half_way(client: Wire) -> None:
    """At first it is as quick as anybody."""
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
    """One run of the load tester, beside slow readers or not."""

    run: LoadRun
    dropped: int  # how often a slow reader was dropped as Too Slow
    cpu: float  # the server's, as a share of a core; nan where the system does not tell

    @property
    def p99(self) -> float:
        """Of everyone else's messages, in milliseconds; nan where none arrived."""
        return self.run.rows["deliver"].times.get("p99", math.nan) * 1000 if "deliver" in self.run.rows else math.nan

    @property
    def lost(self) -> int:
        """Messages of everyone else's that the ledger finds fault with."""
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
    parser.add_argument("--rounds", type=int, choices=range(1, 101), metavar="N", default=3, help="default: 3")
    parser.add_argument("--seconds", type=int, choices=range(1, 3601), metavar="N", default=8, help="a run; default: 8")
    parser.add_argument(
        "--readers",
        type=int,
        nargs="+",
        choices=range(1, most + 1),
        metavar="N",
        default=[1, 5, 10],
        help=f"how many slow readers there are, up to {most} (default: 1 5 10)",
    )
    return parser.parse_args()


def measure_all(server: ServerProcess, folder: Path, options: argparse.Namespace) -> Iterator[tuple[Setting, Pair]]:
    """Round after round for each kind and number of readers, and tell how far it is."""
    for kind, reads in KINDS.items():
        for count in options.readers:
            for number in range(1, options.rounds + 1):
                without = measure(server, folder, [], options.seconds)
                beside = measure(server, folder, [reads] * count, options.seconds)
                figures = f"without {without.p99:.2f}, with {beside.p99:.2f}, Too Slow {beside.dropped} times"
                print(f"{count} who {kind}, round {number} of {options.rounds}: {figures}", flush=True)
                yield (kind, count), (without, beside)


def measure(server: ServerProcess, folder: Path, readers: Sequence[Reader], seconds: int) -> ReaderFigures:
    """Run the load tester while these readers are under attack."""
    with attacked(server, readers):
        dropped, cpu, begin = server.log.count(DROPPED), cpu_seconds(server.process.pid), monotonic()
        load_run = run_locust(folder, *load(server.address, USERS, seconds, rate=MESSAGES))
        share = (cpu_seconds(server.process.pid) - cpu) / (monotonic() - begin)
        return ReaderFigures(load_run, server.log.count(DROPPED) - dropped, share)


def cpu_seconds(pid: int) -> float:
    """What a process has used so far; nan where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    user, system = map(int, fields[11:13])
    return (user + system) / os.sysconf("SC_CLK_TCK")


@contextmanager
def attacked(server: ServerProcess, readers: Sequence[Reader]) -> Iterator[None]:
    """Each of these readers has been flooded until its outbox is full, and will be again and again."""
    blocked = [Event() for _ in readers]
    attacks = [gevent.spawn(attack, server, *one) for one in zip(range(len(readers)), readers, blocked, strict=True)]
    try:
        for event in blocked:
            if not event.wait(DEADLINE):
                raise AssertionError("the server takes all that a slow reader is sent")
        yield
        for ended in filter(Greenlet.ready, attacks):
            ended.get()  # raises what ended it
    finally:
        gevent.killall(attacks)


def attack(server: ServerProcess, number: int, reads: Reader, blocked: Event) -> None:
    """Flood a reader until the server drops it as Too Slow, again and again; `blocked` is set as soon as it is full."""
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
    """Until there is an Error to read, for the first Message that the reader was dropped before it got."""
    while not select.select([sender.socket], [], [], 0)[0]:
        if not flood.push(STUCK_SECONDS):
            blocked.set()


def read_refusals(sender: Wire, flood: Flood) -> None:
    """End the flood on a whole packet, and read an Error for each that came too late."""
    ending = gevent.spawn(flood.end, BARRIER)
    try:
        sender.expect_error(Reason.USER_NOT_ONLINE)
        while (packet := sender.read()) != (PacketType.PONG, b"over"):
            if packet is None:
                raise AssertionError("the server hung up on a sender")
        ending.get()
    finally:
        ending.kill()


def log_in(server: ServerProcess, name: str) -> Wire:
    """A client with small buffers in its kernel."""
    client = Wire(server.host, server.port, SMALL_BUFFER)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
    client.send(encode_login(name))
    client.read_list(name)
    return client


def report(rounds: Mapping[Setting, Sequence[Pair]]) -> str:
    """A line for each kind and number of readers, and how to read it."""
    lines = [["slow readers", "", "p99 without", "with", "ratio", "range", "lost", "Too Slow", "CPU without", "with"]]
    lines += [[f"who {kind}", str(count), *figures(pairs)] for (kind, count), pairs in rounds.items()]
    plain = [without.p99 for pairs in rounds.values() for without, _ in pairs]
    changes = [max(two) / min(two) for two in pairwise(plain)] or [math.nan]
    return f"""
Everyone else, medians of the rounds: p99 of deliver in ms, and the CPU of the server
{aligned(lines)}

How to read it: nothing may be lost, and those who read slowly are dropped (Too Slow) again and again.
Without them p99 was {min(plain):.2f} to {max(plain):.2f} ms, and from one such run to the next it changed
by a factor of {median(changes):.1f}, up to {max(changes):.1f}: ratios below that may be noise.
A server in which a slow reader holds up others would show some {WRITE_TIMEOUT * 1000} ms (its --write-timeout)."""


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
