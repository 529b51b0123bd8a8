"""The results of a run of the benchmark, as tables."""

from collections.abc import Mapping
from statistics import median
from typing import TypeAlias

from table import aligned

Rounds: TypeAlias = Mapping[int, Mapping[str, float]]  # figures by name, by round
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
GROUP = "group: "  # prefix of measures of groups of our servers, compared with a single one
PARTY = "CPU of "  # prefix of a figure that is a party's share


def report(results: Results) -> str:
    """A table for each figure, with the ratio to ours, round by round: ours / it, in a group it / ours."""
    tables = []
    for measure, by_server in results.items():
        ours = by_server.get(OURS, {})
        names = [name for name in next(iter(ours.values()), {}) if name in UNITS]
        tables += [f"{measure}: {name}\n{_table(by_server, name, measure.startswith(GROUP))}" for name in names]
    busiest = max(
        (f.get("generator", 0.0) for m in results.values() for r in m.values() for f in r.values()), default=0.0
    )
    return "\n" + "\n\n".join([*tables, f"the generator used at most {busiest:.0%} of a core"])


def _table(by_server: Mapping[str, Rounds], name: str, in_group: bool) -> str:
    ours = by_server[OURS]
    lines = [("", f"{UNITS[name]}, median (min .. max)", "it / ours" if in_group else "ours / it")]
    for server, rounds in sorted(by_server.items(), key=lambda one: _median(one[1], name)):
        ratio = spread(ratios(rounds, ours, name) if in_group else ratios(ours, rounds, name))
        lines.append((server, _figures(rounds, name), "" if server == OURS else ratio))
        lines += [(f"  {party}", _figures(rounds, PARTY + party), "") for party in parties(rounds)]
    return aligned(lines, "<")


def ratios(ours: Rounds, other: Rounds, name: str) -> list[float]:
    """Our figure divided by the other's, for each round that both have."""
    return [ours[number][name] / other[number][name] for number in ours if number in other and other[number][name]]


def parties(rounds: Rounds) -> list[str]:
    """The parties whose shares are known."""
    figures = next(iter(rounds.values()), {})
    return [name.removeprefix(PARTY) for name in figures if name.startswith(PARTY)]


def _figures(rounds: Rounds, name: str) -> str:
    return spread([figures[name] for figures in rounds.values()])


def _median(rounds: Rounds, name: str) -> float:
    return median(figures[name] for figures in rounds.values())


def spread(values: list[float]) -> str:
    """Median, least and greatest, with three digits."""
    if not values:
        return "-"
    return f"{digits(median(values))} ({digits(min(values))} .. {digits(max(values))})"


def digits(value: float) -> str:
    """A figure with three digits: 12.1, 0.123, 2,120."""
    return f"{float(f'{value:.3g}'):,g}"
