"""What a run of the benchmark says, as a table."""

from collections.abc import Mapping
from statistics import median
from typing import TypeAlias

Rounds: TypeAlias = Mapping[int, Mapping[str, float]]  # by number: figures by name
Results: TypeAlias = dict[str, dict[str, dict[int, dict[str, float]]]]  # measure, server, round, name of the figure

UNITS = {
    "CPU per message": "us",
    "p50": "us",
    "p99": "us",
    "p99.9": "us",
    "memory per client": "KiB",
    "CPU per login": "us",
}
OURS = "ours"
GROUP = "group: "  # so begin measures of groups of our servers, which are told as multiples of one alone
PARTY = "CPU of "  # ... and the figure of a party's share
WIDTH = 22


def report(results: Results) -> str:
    """Each figure of each server, and how many times as much ours is (or, in a group, it is of ours), pair by pair."""
    lines = []
    for measure, by_server in results.items():
        names = (
            [name for name in next(iter(by_server[OURS].values()), {}) if name in UNITS] if OURS in by_server else []
        )
        for name in names:
            in_group = measure.startswith(GROUP)
            heading = "it / ours" if in_group else "ours / it"
            lines += ["", f"{measure}: {name}", f"{'':{WIDTH}}{UNITS[name] + ', median (min .. max)':>30}{heading:>28}"]
            for server, rounds in sorted(by_server.items(), key=lambda one: _median(one[1], name)):
                ours = by_server[OURS]
                ratio = spread(ratios(rounds, ours, name) if in_group else ratios(ours, rounds, name))
                lines.append(f"{server:{WIDTH}}{_figures(rounds, name):>30}{'' if server == OURS else ratio:>28}")
                lines += [f"  {party:{WIDTH - 2}}{_figures(rounds, PARTY + party):>30}" for party in parties(rounds)]
    busiest = max(
        (f.get("generator", 0.0) for m in results.values() for r in m.values() for f in r.values()), default=0.0
    )
    return "\n".join([*lines, "", f"the generator used at most {busiest:.0%} of a core"])


def ratios(ours: Rounds, other: Rounds, name: str) -> list[float]:
    """Ours divided by the other's, of the rounds that both have."""
    return [ours[number][name] / other[number][name] for number in ours if number in other and other[number][name]]


def parties(rounds: Rounds) -> list[str]:
    """Those whose shares are known."""
    figures = next(iter(rounds.values()), {})
    return [name.removeprefix(PARTY) for name in figures if name.startswith(PARTY)]


def _figures(rounds: Rounds, name: str) -> str:
    return spread([figures[name] for figures in rounds.values()])


def _median(rounds: Rounds, name: str) -> float:
    return median(figures[name] for figures in rounds.values())


def spread(values: list[float]) -> str:
    """Median, least and most, with three digits."""
    if not values:
        return "-"
    return f"{digits(median(values))} ({digits(min(values))} .. {digits(max(values))})"


def digits(value: float) -> str:
    """Three of them."""
    return f"{float(f'{value:.3g}'):,g}"
