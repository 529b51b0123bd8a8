"""How clients come back when the server restarts: `make restart-test`.

Twenty clients are logged in when the server stops; it starts again on the same port and folder, at once or after
--down seconds. Most clients are loops over ChatClient that pause as client.backoff says; some run terminal.py, each at
a terminal of its own. A second measurement, with the same limits but without jitter, serves as comparison.

A storm is many attempts at the same moment, so the tables show how the attempts are spread, and the most within 100 ms.
Exit status: 1 if a client did not come back or was not notified why the server closed its connection.
"""

from gevent import monkey

monkey.patch_all()

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic

import gevent

from client import ChatClient, ChatError, ConnectionClosed, LoginRefused, backoff
from protocol import Reason
from stress.program import run
from table import aligned
from testkit import HarnessError
from testkit.ports import free_port
from testkit.processes import wait_for
from testkit.programs import ScreenProgram
from testkit.server import ServerProcess, run_server

WINDOW = 0.1  # seconds
BAR_SECONDS = 0.1  # of the histogram
PATIENCE_SECONDS = 90.0  # for all clients to come back; generous, since pauses grow up to 30 s

Pauses = Callable[[], Iterator[float]]


def lockstep() -> Iterator[float]:
    """The limits of client.backoff without its jitter."""
    limit = 0.5
    while True:
        yield limit
        limit = min(30.0, 2 * limit)


@dataclass(slots=True)
class Visitor:
    """A client that stays logged in, and reconnects when it is disconnected. Times are those of monotonic()."""

    name: str
    pauses: Pauses
    goodbyes: list[str] = field(default_factory=list)  # the reasons for which its connections ended
    attempts: list[float] = field(default_factory=list)  # times of connecting, since the last disconnection
    refusals: Counter[str] = field(default_factory=Counter)
    client: ChatClient | None = None  # while it is logged in

    def stay(self, host: str, port: int) -> None:
        """Log in and listen; reconnect whenever the connection ends, forever."""
        self.client = self.connect(host, port, chain([0.0], self.pauses()))
        while True:
            try:
                self.client.receive(timeout=None)
            except ConnectionClosed as closing:
                self.goodbyes.append(closing.reason or str(closing))
                self.client.close()
                self.attempts.clear()
                self.client = self.connect(host, port, self.pauses())

    def connect(self, host: str, port: int, pauses: Iterator[float]) -> ChatClient:
        """Try until a login succeeds, with these pauses."""
        while True:
            gevent.sleep(next(pauses))
            self.attempts.append(monotonic())
            try:
                return self.log_in(host, port)
            except LoginRefused as refusal:
                self.refusals[refusal.reason] += 1
            except (ChatError, TimeoutError):
                continue

    def log_in(self, host: str, port: int) -> ChatClient:
        client = ChatClient(host, port)
        try:
            client.login(self.name)
        except BaseException:
            client.close()
            raise
        return client


@dataclass(frozen=True, slots=True)
class Comeback:
    """How clients came back after a restart. Times are sorted seconds; terminals do not show their attempts."""

    clients: int
    notified: int  # clients that received Server Shutting Down
    missing: list[str]  # clients that did not come back
    first_attempts: list[float]  # since the server began to stop; not of terminals
    logins: list[float]  # since the server listened again
    refusals: Counter[str]

    @property
    def back(self) -> int:
        """How many clients came back."""
        return self.clients - len(self.missing)

    @property
    def is_complete(self) -> bool:
        """Whether every client was notified and came back."""
        return self.notified == self.back == self.clients

    def __str__(self) -> str:
        last = f", the last after {self.logins[-1]:.2f} s" if self.logins else ""
        missing = f"; missing: {', '.join(self.missing)}" if self.missing else ""
        return f"{self.notified} of {self.clients} notified, {self.back} back{last}{missing}"


SPREADS: dict[str, Callable[[Comeback], list[float]]] = {
    "first attempt, from the stop": lambda back: back.first_attempts,
    "login, from the start": lambda back: back.logins,
}


def restart(
    folder: Path,
    clients: int,
    terminals: int,
    down: float,
    pauses: Pauses = backoff,
    patience: float = PATIENCE_SECONDS,
) -> Comeback:
    """Restart a server that has this many clients, some of them terminals; it stays down for at least `down` seconds.

    Clients that are not back `patience` seconds after its start are `missing`.
    """
    visitors = [Visitor(f"client-{number}", pauses) for number in range(clients - terminals)]
    people = [f"person-{number}" for number in range(terminals)]
    names = {*people, *(visitor.name for visitor in visitors)}
    options = ("--pool-size", clients, "--port", free_port())
    with ExitStack() as stack:
        with run_server(folder / "data", *options) as server:
            stack.enter_context(visiting(visitors, server))
            screens = [stack.enter_context(terminal(folder, name, server)) for name in people]
            wait_for("everyone's login", lambda: logged_in(server.log) >= names, PATIENCE_SECONDS)
            for screen in screens:
                screen.wait_for(r"^person-\d+>$")
            stopped = monotonic()  # the end of this block stops it
        gevent.sleep(down)
        with run_server(folder / "data", *options) as again:
            with suppress(HarnessError):  # the Comeback lists those that are missing
                wait_for("everyone's return", lambda: logged_in(again.log) >= names, patience)
            return Comeback(
                clients,
                notified(visitors, screens),
                sorted(names - logged_in(again.log)),
                sorted(visitor.attempts[0] - stopped for visitor in visitors if visitor.attempts),
                sorted(moments(again.log, "logged in as")),
                sum((visitor.refusals for visitor in visitors), Counter()),
            )


@contextmanager
def visiting(visitors: Sequence[Visitor], server: ServerProcess) -> Iterator[None]:
    """These clients are logged in or connecting."""
    loops = [gevent.spawn(visitor.stay, server.host, server.port) for visitor in visitors]
    try:
        yield
    finally:
        gevent.killall(loops)
        for visitor in visitors:
            if visitor.client:
                visitor.client.close()


def terminal(folder: Path, name: str, server: ServerProcess) -> ScreenProgram:
    """terminal.py for this user, with a home of its own."""
    home = {"HOME": str(folder), "XDG_STATE_HOME": str(folder / "state"), "CHAT_PASSWORD": ""}
    return ScreenProgram("terminal.py", name, server.address, environment=home)


def notified(visitors: Sequence[Visitor], screens: Sequence[ScreenProgram]) -> int:
    """How many clients know why the server closed their connections."""
    reason = Reason.SERVER_SHUTTING_DOWN
    return sum(visitor.goodbyes == [reason] for visitor in visitors) + sum(shows(each, reason) for each in screens)


def shows(screen: ScreenProgram, text: str) -> bool:
    """Whether this text appears on the screen."""
    try:
        screen.wait_for(re.escape(text))
    except HarnessError:
        return False
    return True


def logged_in(log: str) -> set[str]:
    """The names of users who logged in, from a server's log."""
    return set(re.findall(r"logged in as (\S+),", log))


def moments(log: str, text: str) -> list[float]:
    """When the log's lines with this text were written, in seconds since the server listened."""
    begin, *_ = (_moment(line) for line in log.splitlines() if "listening on" in line)
    return [(_moment(line) - begin).total_seconds() for line in log.splitlines() if text in line]


def _moment(line: str) -> datetime:
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f")


def most_within(window: float, times: Sequence[float]) -> int:
    """The largest number of these times that fall into one span of `window` seconds."""
    return max((sum(begin <= time < begin + window for time in times) for begin in times), default=0)


def histogram(times: Sequence[float]) -> str:
    """A bar for each tenth of a second, up to the last of these times."""
    bars = Counter(int(time / BAR_SECONDS) for time in times)
    lines = [f"  {number * BAR_SECONDS:4.1f} s {'#' * bars[number]}" for number in range(max(bars, default=-1) + 1)]
    return "\n".join(lines or ["  none"])


def main() -> int:
    options = parse_options()
    modes = {"full jitter": (backoff, options.terminals), "no jitter": (lockstep, 0)}  # terminals always use jitter
    measured: dict[str, list[Comeback]] = {name: [] for name in modes}
    try:
        for number in range(1, options.restarts + 1):
            for name, (pauses, terminals) in modes.items():
                with TemporaryDirectory(prefix="restart-") as folder:
                    settings = options.clients, terminals, options.down, pauses, options.patience
                    measured[name].append(restart(Path(folder), *settings))
                print(f"restart {number} of {options.restarts}, {name}: {measured[name][-1]}", flush=True)
    finally:
        if any(measured.values()):
            print(report(measured))
    return 0 if all(back.is_complete for backs in measured.values() for back in backs) else 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make restart-test", description=(__doc__ or "").partition("\n")[0])
    numbers = {"--clients": (range(2, 101), 20), "--terminals": (range(21), 2), "--restarts": (range(1, 101), 3)}
    for option, (choices, count) in numbers.items():
        parser.add_argument(
            option, type=int, choices=choices, metavar="N", default=count, help=f"how many (default: {count})"
        )
    times = {
        "--down": (0.0, "seconds between stop and start"),
        "--patience": (PATIENCE_SECONDS, "seconds to wait for all clients"),
    }
    for option, (seconds, text) in times.items():
        parser.add_argument(option, type=float, metavar="S", default=seconds, help=f"{text} (default: {seconds:g})")
    options = parser.parse_args()
    if options.terminals >= options.clients:
        parser.error("--terminals must be fewer than --clients")
    return options


def report(measured: Mapping[str, Sequence[Comeback]]) -> str:
    """The spread with and without jitter over all restarts, and histograms of the first one."""
    headings = ["", "", "notified", "back", "refused", "first", "median", "last", f"most in {WINDOW * 1000:.0f} ms"]
    lines, pictures = [headings], []
    for name, backs in measured.items():
        for title, spread in SPREADS.items():
            lines += [[name, title, *figures(backs, spread)] for _ in backs[:1]]
            pictures += [f"{name}, {title}\n{histogram(spread(back))}" for back in backs[:1]]
    table = f'\nMedians of the restarts, in seconds; of "most in" the largest\n{aligned(lines)}'
    return "\n\n".join([table, *pictures])


def figures(backs: Sequence[Comeback], spread: Callable[[Comeback], list[float]]) -> list[str]:
    """The cells of a line; "-" in place of times if no client came back."""
    clients = sum(back.clients for back in backs)
    spreads = [times for back in backs if (times := spread(back))]
    ends = zip(*((times[0], median(times), times[-1]) for times in spreads), strict=True)
    return [
        *(
            f"{count} of {clients}"
            for count in (sum(back.notified for back in backs), sum(back.back for back in backs))
        ),
        str(sum(back.refusals.total() for back in backs)),
        *([f"{median(values):.2f}" for values in ends] or ["-"] * 3),
        str(max((most_within(WINDOW, times) for times in spreads), default=0)),
    ]


if __name__ == "__main__":
    sys.exit(run(main))
