"""How many messages a second one Locust process drives, and Locust's own share of the work: `make bench-tester`.

Rounds alternate against the same server: Locust, with users that are due to send more than they can; and the same
clients, ledger and histogram without Locust. Both keep one core busy, so the ratio of their rates is the share of the
work that is not Locust's.
"""

from gevent import monkey

monkey.patch_all()

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import monotonic

import gevent

from client import ChatClient, MessageReceived
from loadtest.core.histogram import Histogram
from loadtest.core.ledger import Ledger
from loadtest.core.pairing import PAIRINGS
from table import aligned
from testkit import HarnessError
from testkit.loadtests import load, run_locust
from testkit.processes import ROOT
from testkit.server import ServerProcess, run_server

USERS = 20
DUE = 2000  # messages a second of each user, more than it can send


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-tester", description=__doc__)
    parser.add_argument("--rounds", type=int, choices=range(1, 101), metavar="N", default=5, help="default: 5")
    parser.add_argument("--seconds", type=int, default=10, help="of each measurement (default: 10)")
    parser.add_argument("--plain", metavar="PORT", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        print(drive_without_locust(options.plain, options.seconds))
        return
    measured: dict[str, list[float]] = {"with Locust": [], "without": []}
    with tempfile.TemporaryDirectory() as folder, run_server(Path(folder) / "data") as server:
        for number in range(options.rounds):
            measured["with Locust"].append(drive_with_locust(Path(folder), server, options.seconds))
            measured["without"].append(drive_in_a_process_of_its_own(server, options.seconds))
            latest = (f"{name} {rates[-1]:.0f}/s" for name, rates in measured.items())
            print(f"round {number + 1} of {options.rounds}:", *latest, sep="  ", flush=True)
    print(report(measured))


def report(measured: Mapping[str, Sequence[float]]) -> str:
    """Messages a second, and Locust's share round by round."""
    shares = [1 - ours / plain for ours, plain in zip(*measured.values(), strict=True)]
    lines: list[Sequence[str]] = [("", "min", "median", "max")]
    lines += [(name, *(f"{pick(rates):.0f}" for pick in (min, median, max))) for name, rates in measured.items()]
    lines.append(("share of Locust itself", *(f"{pick(shares):.0%}" for pick in (min, median, max))))
    return f"\n{USERS} users in one process, messages a second\n{aligned(lines, '<')}"


def drive_with_locust(folder: Path, server: ServerProcess, seconds: int) -> float:
    """Messages a second that were delivered. Raises HarnessError if the ledger does not balance."""
    options = [*load(server.address, USERS, seconds, rate=DUE), "--drain", 60, "--exit-code-on-error", 0]
    run = run_locust(folder, *options, "--only-summary", "Chatter")
    if not run.ledger or run.ledger["delivered"] != run.ledger["sent"]:
        raise HarnessError(f"the ledger does not balance:\n{run.explain()}")
    return run.ledger["delivered"] / seconds


def drive_in_a_process_of_its_own(server: ServerProcess, seconds: int) -> float:
    """The same without Locust."""
    command = [sys.executable, "-m", "benchmarks.tester", "--plain", str(server.port), "--seconds", str(seconds)]
    return float(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


def drive_without_locust(port: int, seconds: float) -> float:
    """Pairs of clients write to each other as fast as they can; returns the messages a second that were delivered."""
    ledger, latencies = Ledger(monotonic), Histogram()
    clients = [ChatClient("127.0.0.1", port) for _ in range(USERS)]
    for number, client in enumerate(clients):
        client.login(f"load-{number}")
        ledger.connect(client.username)
    for number, client in enumerate(clients):
        client.chat(f"load-{PAIRINGS['pairs'](number, list(range(USERS)))}")
    end = monotonic() + seconds

    def write(number: int) -> None:
        sender, receiver = f"load-{number}", f"load-{number ^ 1}"
        while monotonic() < end:
            clients[number].send(ledger.send(sender, receiver, monotonic()))
            gevent.sleep(0)  # as Locust does between two tasks

    def listen(client: ChatClient) -> None:
        while True:
            match client.receive(timeout=None):
                case MessageReceived(sender, text):
                    latencies.record(ledger.receive(sender, client.username, text))

    listeners = [gevent.spawn(listen, client) for client in clients]
    gevent.joinall([gevent.spawn(write, number) for number in range(USERS)], raise_error=True)
    while ledger.pending():
        gevent.sleep(0.01)
    gevent.killall(listeners)
    for client in clients:
        client.close()
    return latencies.count / seconds


if __name__ == "__main__":
    main()
