"""One trial of the capacity test in one process: users send at a given rate for some seconds."""

from time import monotonic, process_time
from typing import TypedDict

import gevent

from loadtest.core.balance import Fault
from loadtest.core.generator import LoadMeter
from loadtest.core.histogram import Histogram
from loadtest.locust.paced import PACE_CHECK_SECONDS
from loadtest.locust.run import Pace, TestRun

STILL_SECONDS = 2.0  # if nothing has arrived for so long, nothing more is expected
QUIET_CHECK_SECONDS = 0.02  # between two checks whether everything has arrived


class TrialOrder(TypedDict):
    """How many messages a second each user is due to send, and for how many seconds."""

    number: int
    rate: float
    seconds: float


class TrialReport(TypedDict):
    """What a trial measured in this process; `users` is the number of paced users who are online."""

    number: int
    users: int
    sent: int
    delivered: int
    undelivered: int  # also counts users who have not sent all that was due
    failures: int
    faults: int
    latencies: bytes  # an encoded histogram
    cpu: float
    lag_p99: float


def run_trial(run: TestRun, order: TrialOrder) -> TrialReport:
    """Carry out a trial. It takes as many seconds as ordered, and the time to drain."""
    before = _counts(run)
    latencies = run.trial_latencies = Histogram()
    start = monotonic() + PACE_CHECK_SECONDS  # by then every user has noticed
    run.pace = Pace(order["rate"], start, start + order["seconds"])
    gevent.sleep(PACE_CHECK_SECONDS)
    run.meter = LoadMeter(monotonic, process_time)
    gevent.sleep(start + order["seconds"] - monotonic())
    load = run.meter.read()
    _wait_until_quiet(run)
    unsent, missing = _behind(run), run.ledger.pending()
    after = _counts(run)
    run.ledger.settle()  # what arrives later does not belong to the next trial
    return {
        "number": order["number"],
        "users": sum(user.is_online for user in run.paced),
        "sent": after["sent"] - before["sent"],
        "delivered": after["delivered"] - before["delivered"],
        "undelivered": unsent + missing,
        "failures": after["failures"] - before["failures"],
        "faults": after["faults"] - before["faults"] - missing,  # the balance counts the missing ones as lost
        "latencies": latencies.encode(),
        "cpu": load.cpu,
        "lag_p99": load.lag_p99,
    }


def _counts(run: TestRun) -> dict[str, int]:
    totals = run.ledger.balance().totals()
    return totals | {
        "faults": sum(totals[fault] for fault in Fault) + totals["unbalanced"],
        "failures": sum(row.failures for row in run.rows.values()),
    }


def _behind(run: TestRun) -> int:
    """Return how many users have not sent all that is due."""
    return sum(user.is_behind() for user in run.paced)


def _wait_until_quiet(run: TestRun) -> None:
    """Wait until everything that is due has been sent and has arrived, as long as there is progress."""
    last, since = -1, monotonic()
    while (left := _behind(run) + run.ledger.pending()) and monotonic() - since < STILL_SECONDS:
        if left != last:
            last, since = left, monotonic()
        gevent.sleep(QUIET_CHECK_SECONDS)
