"""One trial of a rate, in one process: what the capacity test orders, and what it is told."""

from time import monotonic, process_time
from typing import TypedDict

import gevent

from loadtest.core.balance import Fault
from loadtest.core.generator import LoadMeter
from loadtest.core.histogram import Histogram
from loadtest.locust.run import Pace, Run
from loadtest.locust.users import LOOK_SECONDS

STILL_SECONDS = 2.0  # after which nothing more is expected, if nothing has come meanwhile
LOOK_AGAIN_SECONDS = 0.02


class TrialOrder(TypedDict):
    """Messages a second that each user is due to send, and for how many seconds."""

    number: int
    rate: float
    seconds: float


class TrialReport(TypedDict):
    """What came of it in this process; `users` are the paced ones who are online."""

    number: int
    users: int
    sent: int
    delivered: int
    late: int
    failures: int
    faults: int
    latencies: bytes  # an encoded histogram
    cpu: float
    lag_p99: float


def attempt(run: Run, order: TrialOrder) -> TrialReport:
    """Carry out a trial, which takes as long as it says, and the time to drain."""
    before = _counts(run)
    latencies = run.trial_latencies = Histogram()
    start = monotonic() + LOOK_SECONDS  # by then every user has noticed
    run.pace = Pace(order["rate"], start, start + order["seconds"])
    gevent.sleep(LOOK_SECONDS)
    run.meter = LoadMeter(monotonic, process_time)
    gevent.sleep(start + order["seconds"] - monotonic())
    load = run.meter.read()
    _wait_until_quiet(run)
    unsent, missing = _behind(run), run.ledger.open()
    after = _counts(run)
    run.ledger.settle()  # what still comes is not of the next trial
    return {
        "number": order["number"],
        "users": sum(user.is_online for user in run.paced),
        "sent": after["sent"] - before["sent"],
        "delivered": after["delivered"] - before["delivered"],
        "late": unsent + missing,
        "failures": after["failures"] - before["failures"],
        "faults": after["faults"] - before["faults"] - missing,  # the balance takes these for lost
        "latencies": latencies.encode(),
        "cpu": load.cpu,
        "lag_p99": load.lag_p99,
    }


def _counts(run: Run) -> dict[str, int]:
    totals = run.ledger.balance().totals()
    return totals | {
        "faults": sum(totals[fault] for fault in Fault) + totals["unbalanced"],
        "failures": sum(row.failures for row in run.rows.values()),
    }


def _behind(run: Run) -> int:
    """How many users have not sent all that is due."""
    return sum(user.is_behind() for user in run.paced)


def _wait_until_quiet(run: Run) -> None:
    """Wait until all that is due is sent and has arrived, for as long as there is progress."""
    last, since = -1, monotonic()
    while (left := _behind(run) + run.ledger.open()) and monotonic() - since < STILL_SECONDS:
        if left != last:
            last, since = left, monotonic()
        gevent.sleep(LOOK_AGAIN_SECONDS)
