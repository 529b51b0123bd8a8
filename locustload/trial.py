"""One trial of a rate, in one process: what the capacity test orders, and what it is told."""

from time import monotonic, process_time
from typing import TypedDict

import gevent

from loadtest.balance import Fault
from loadtest.generator import LoadMeter
from loadtest.histogram import Histogram
from locustload.run import Pace, Run
from locustload.users import LOOK_SECONDS

RECOVERY_SECONDS = 30.0  # for what the last trial has left
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
    _wait_until_quiet(run, RECOVERY_SECONDS)
    before = _counts(run)
    run.trial_latencies = Histogram()
    start = monotonic() + LOOK_SECONDS  # by then every user has noticed
    run.pace = Pace(order["rate"], start, start + order["seconds"])
    gevent.sleep(LOOK_SECONDS)
    run.meter = LoadMeter(monotonic, process_time)
    gevent.sleep(start + order["seconds"] - monotonic())
    load = run.meter.read()
    late = _wait_until_quiet(run, run.options.drain)
    after = _counts(run)
    return {
        "number": order["number"],
        "users": sum(user.is_online for user in run.paced),
        "sent": after["sent"] - before["sent"],
        "delivered": after["delivered"] - before["delivered"],
        "late": late,
        "failures": after["failures"] - before["failures"],
        "faults": max(0, after["faults"] - before["faults"] - late),  # what is late only seems to be lost
        "latencies": run.trial_latencies.encode(),
        "cpu": load.cpu,
        "lag_p99": load.lag_p99,
    }


def _counts(run: Run) -> dict[str, int]:
    totals = run.ledger.balance().totals()
    return totals | {
        "faults": sum(totals[fault] for fault in Fault) + totals["unbalanced"],
        "failures": sum(row.failures for row in run.rows.values()),
    }


def _wait_until_quiet(run: Run, seconds: float) -> int:
    """Wait until all that is due is sent and has arrived; how many are not there after so many seconds."""
    deadline = monotonic() + seconds
    while late := run.ledger.open() + sum(user.is_behind() for user in run.paced):
        if monotonic() >= deadline:
            break
        gevent.sleep(LOOK_AGAIN_SECONDS)
    return late
