"""The goals of the benchmark, as ratios within one run, and whether a run reaches them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.report import GROUP, OURS, Results, ratios, spread

NATS, REDIS, NGIRCD, MOSQUITTO, FLOOR = "nats-server", "redis", "ngircd", "mosquitto", "C epoll"
NETWORKED = (MOSQUITTO, NATS, REDIS, NGIRCD)
CPU, MEMORY, LOGIN, P99 = "CPU per message", "memory per client", "CPU per login", "p99"
PINGS = "ping-pong, {} pairs, 16 bytes"
LATENCY = "latency at 2000 messages a second"
ACROSS = "ours, across 2 nodes"


@dataclass(frozen=True)
class Goal:
    """The median of our figure, divided by that of each of these `servers`, is `at_most` this.

    With `than` the divisor is our own figure in that other measure; without either there is none. `whose` names the
    server to judge, ours by default.
    """

    measure: str
    figure: str
    at_most: float
    servers: Sequence[str] = ()
    than: str = ""
    whose: str = OURS


GOALS = [
    Goal("pipelined, 10 pairs, 16 bytes", CPU, 0.35, (NATS,)),
    Goal("pipelined, 10 pairs, 16 bytes", CPU, 1.0, (MOSQUITTO, REDIS, NGIRCD)),
    *(Goal(PINGS.format(pairs), CPU, 1.0, (NATS, MOSQUITTO, NGIRCD)) for pairs in (10, 100)),
    *(Goal(PINGS.format(pairs), CPU, 1.05, (REDIS,)) for pairs in (10, 100)),
    *(Goal(PINGS.format(pairs), CPU, 1.3, (FLOOR,)) for pairs in (10, 100)),
    Goal(PINGS.format(1000), CPU, 1.2, than=PINGS.format(100)),  # 1.1 times what the C relay shows
    *(Goal(f"memory, {count} idle clients", MEMORY, 10.0) for count in (1000, 5000)),
    Goal("memory, 1000 chatting clients", MEMORY, 11.0),
    *(Goal(f"memory, {count} idle clients", MEMORY, 1.0, (NATS,)) for count in (1000, 5000)),
    Goal("login", LOGIN, 1.0, (NATS,)),
    Goal(LATENCY, P99, 1.15, NETWORKED),
    *(
        Goal(f"{GROUP}{kind}, {pairs} pairs, 16 bytes", CPU, 3.5, (OURS,), whose=ACROSS)
        for kind in ("pipelined", "ping-pong")
        for pairs in (10, 100)
    ),
    Goal(f"{GROUP}login", LOGIN, 3.0, (OURS,), whose=ACROSS),
]


def judge(results: Results) -> list[str]:
    """A line for each goal that this run has figures for."""
    lines = []
    for goal in GOALS:
        ours = results.get(goal.measure, {}).get(goal.whose)
        if not ours:
            continue
        compared = {
            "times ours alone" if server == OURS else f"{server}'s": results[goal.measure].get(server)
            for server in goal.servers
        }
        if goal.than:
            compared = {f"its own at {goal.than}": results.get(goal.than, {}).get(OURS)}
        found = {name: ratios(ours, other, goal.figure) for name, other in compared.items() if other}
        if not compared:
            found = {"KiB": [figures[goal.figure] for figures in ours.values()]}
        for name, values in found.items():
            if not values:
                continue  # no round has both
            verdict = "reached" if median(values) <= goal.at_most else "MISSED "
            figure = goal.figure if goal.whose == OURS else f"{goal.figure} of {goal.whose!r}"
            lines.append(f"{verdict}  {goal.measure}: {figure} {spread(values)} of at most {goal.at_most:g} {name}")
    return lines
