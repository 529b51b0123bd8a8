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


def report(results: Results) -> str:
    """Each figure of each server, and how many times as much ours is, pair by pair."""
    lines = []
    for measure, by_server in results.items():
        names = (
            [name for name in next(iter(by_server[OURS].values()), {}) if name in UNITS] if OURS in by_server else []
        )
        for name in names:
            lines += ["", f"{measure}: {name}", f"{'':16}{UNITS[name] + ', median (min .. max)':>30}{'ours / it':>28}"]
            for server, rounds in sorted(by_server.items(), key=lambda one: _median(one[1], name)):
                figures = spread([figures[name] for figures in rounds.values()])
                ratio = "" if server == OURS else spread(ratios(by_server[OURS], rounds, name))
                lines.append(f"{server:16}{figures:>30}{ratio:>28}")
    busiest = max(
        (f.get("generator", 0.0) for m in results.values() for r in m.values() for f in r.values()), default=0.0
    )
    return "\n".join([*lines, "", f"the generator used at most {busiest:.0%} of a core"])


def ratios(ours: Rounds, other: Rounds, name: str) -> list[float]:
    """Ours divided by the other's, of the rounds that both have."""
    return [ours[number][name] / other[number][name] for number in ours if number in other and other[number][name]]


def _median(rounds: Rounds, name: str) -> float:
    return median(figures[name] for figures in rounds.values())


def spread(values: list[float]) -> str:
    """Median, least and most, with three digits."""
    if not values:
        return "-"
    return f"{median(values):.3g} ({min(values):.3g} .. {max(values):.3g})"
