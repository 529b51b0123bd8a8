"""How many messages a second one Locust process drives, and what share is Locust's own: `make bench-tester`.

Alternating rounds, each against the same server: Locust with its users due to send more than they can; and the same
clients, ledger and histogram without Locust. Both keep one core busy, so the ratio of what they get done is the share
of the work that is not Locust's.
"""

from gevent import monkey

monkey.patch_all()

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic

import gevent

ROOT = Path(__file__).parent.parent

from client import ChatClient, MessageReceived
from loadtest.core.histogram import Histogram
from loadtest.core.ledger import Ledger
from loadtest.core.pairing import PAIRINGS
from testkit.server import run_server

USERS = 20
DUE = 2000  # messages a second and user, more than can be sent


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-tester", description=__doc__)
    parser.add_argument("--rounds", type=int, choices=range(1, 101), metavar="N", default=5, help="default: 5")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (default: 10)")
    parser.add_argument("--plain", metavar="PORT", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        print(drive_without_locust(options.plain, options.seconds))
        return
    measured: dict[str, list[float]] = {"with Locust": [], "without": []}
    with tempfile.TemporaryDirectory() as folder, run_server(Path(folder) / "data") as server:
        for number in range(options.rounds):
            measured["with Locust"].append(drive_with_locust(server.port, options.seconds))
            measured["without"].append(drive_in_a_process_of_its_own(server.port, options.seconds))
            latest = (f"{name} {rates[-1]:.0f}/s" for name, rates in measured.items())
            print(f"round {number + 1} of {options.rounds}:", *latest, sep="  ", flush=True)
    print(report(measured))


def report(measured: dict[str, list[float]]) -> str:
    """Messages a second, and the share of Locust, round by round."""
    shares = [1 - ours / plain for ours, plain in zip(*measured.values(), strict=True)]
    lines = [f"\n{USERS} users in one process, messages a second    min  median     max"]
    for name, rates in measured.items():
        lines.append(f"  {name:<44}{min(rates):>6.0f}{statistics.median(rates):>8.0f}{max(rates):>8.0f}")
    least, middle, most = min(shares), statistics.median(shares), max(shares)
    lines.append(f"  {'share that is Locust itself':<44}{least:>6.0%}{middle:>8.0%}{most:>8.0%}")
    return "\n".join(lines)


def drive_with_locust(port: int, seconds: float) -> float:
    """Messages a second that were delivered."""
    command = [sys.executable, "-m", "locust", "-f", "locustfiles/chat.py", "Chatter", "--headless", "--only-summary"]
    command += ["--host", f"127.0.0.1:{port}", "--users", str(USERS), "--spawn-rate", str(USERS), "--drain", "60"]
    command += ["--run-time", f"{seconds:.0f}s", "--message-rate", str(DUE), "--exit-code-on-error", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = re.search(r"sent (\d+) = delivered (\d+)", done.stdout)
    if not found or found[1] != found[2]:
        sys.exit(f"the ledger does not balance:\n{done.stdout}{done.stderr}")
    return int(found[2]) / seconds


def drive_in_a_process_of_its_own(port: int, seconds: float) -> float:
    """The same without Locust."""
    command = [sys.executable, "-m", "benchmarks.tester", "--plain", str(port), "--seconds", str(seconds)]
    return float(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


def drive_without_locust(port: int, seconds: float) -> float:
    """Pairs of clients that write to each other as fast as they can; messages a second that were delivered."""
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
            gevent.sleep(0)  # as between two tasks

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
