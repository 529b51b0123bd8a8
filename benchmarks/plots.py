"""Draws the results of a run; `python -m benchmarks.plots FILE.json` draws them again."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from benchmarks.report import GROUP, OURS, PARTY, Results, Rounds, digits, parties
from benchmarks.servers import RELAYS

OUR_COLOR, PEER_COLOR, RELAY_COLOR = "#c0392b", "#5d7b93", "#b8c4cc"
PARTY_COLORS = {"node 1": OUR_COLOR, "node 2": "#d9705f", "node 3": "#ecaa9e", "redis": PEER_COLOR}
LOGARITHMIC = 50  # ratio of the largest to the smallest figure above which the axis is logarithmic
Panel = tuple[str, str, str]  # title, measure, figure
Paint = Callable[[Axes, str, Mapping[str, Rounds], str], None]  # a panel: axes, title, rounds by server, figure


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw the pictures that this run has figures for; returns their files."""
    pages: dict[str, tuple[str, Paint, list[Panel]]] = {
        "cpu": ("server CPU per message, us", _bars, [*_panels("pipelined", 16), *_panels("ping-pong", 16)]),
        "cpu-100-bytes": (
            "the same, texts of 100 bytes",
            _bars,
            [*_panels("pipelined", 100), *_panels("ping-pong", 100)],
        ),
        "latency": (
            "latency, us",
            _bars,
            [(p, "latency at 2000 messages a second", p) for p in ("p50", "p99", "p99.9")],
        ),
        "clients": (
            "what a client costs",
            _bars,
            [
                ("KiB, idle, of 1,000", "memory, 1000 idle clients", "memory per client"),
                ("KiB, idle, of 5,000", "memory, 5000 idle clients", "memory per client"),
                ("CPU of a login, us", "login", "CPU per login"),
            ],
        ),
        "group": (
            "CPU per message in a group of servers, us",
            _shares,
            [
                *_panels("pipelined", 16, GROUP),
                *_panels("ping-pong", 16, GROUP),
                ("CPU of a login, us", f"{GROUP}login", "CPU per login"),
            ],
        ),
    }
    written = []
    for name, (title, paint, panels) in pages.items():
        found = [panel for panel in panels if panel[1] in results]
        if found:
            written.append(folder / f"{name}.png")
            _page(written[-1], title, paint, found, results)
    return written


def _panels(kind: str, text_bytes: int, prefix: str = "") -> list[Panel]:
    return [
        (f"{kind}, {pairs} pairs", f"{prefix}{kind}, {pairs} pairs, {text_bytes} bytes", "CPU per message")
        for pairs in (10, 100, 1000)
    ]


def _page(file: Path, title: str, paint: Paint, panels: Sequence[Panel], results: Results) -> None:
    rows = -(-len(panels) // 3)
    figure, grid = pyplot.subplots(rows, 3, figsize=(12, 0.6 + 3.1 * rows), squeeze=False)
    figure.suptitle(title)
    parts: dict[str, Artist] = {}  # of bars, by name, for the legend
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (heading, measure, name) in zip(grid.flat, panels, strict=False):
        paint(axes, heading, results[measure], name)
        axes.margins(x=0.2)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        parts |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if parts:
        figure.legend(parts.values(), parts.keys(), loc="lower right", bbox_to_anchor=(0.85, 0.2))
    figure.tight_layout()
    figure.savefig(file, dpi=80)
    pyplot.close(figure)


def _bars(axes: Axes, heading: str, by_server: Mapping[str, Rounds], name: str) -> None:
    """Bars of medians, the smallest at the top, each with a line from the least to the greatest measured."""
    found = {server: _values(rounds, name) for server, rounds in by_server.items()}
    servers = sorted(found, key=lambda server: -median(found[server]))
    middles = [median(found[server]) for server in servers]
    below = [middle - min(found[server]) for server, middle in zip(servers, middles, strict=True)]
    above = [max(found[server]) - middle for server, middle in zip(servers, middles, strict=True)]
    axes.barh(servers, middles, color=[_color(server) for server in servers], xerr=[below, above], ecolor="#333333")
    for place, middle in enumerate(middles):
        axes.annotate(f" {middle:.3g}", (max(found[servers[place]]), place), va="center", fontsize=8)
    if max(middles) > LOGARITHMIC * min(middles):
        heading += " (logarithmic)"
        axes.set_xscale("log")
        axes.set_xlim(min(middles) / 4, max(middles) * 8)
    axes.set_title(heading, fontsize=10)


def _shares(axes: Axes, heading: str, by_server: Mapping[str, Rounds], name: str) -> None:
    """Bars of medians, stacked from the shares of the parties; the single server at the top."""
    for server, rounds in reversed([*by_server.items()]):
        end = 0.0
        for party in parties(rounds) or ["node 1"]:
            share = median(_values(rounds, PARTY + party if parties(rounds) else name))
            axes.barh(server, share, left=end, color=PARTY_COLORS[party], label=party)
            end += share
        axes.annotate(f" {digits(median(_values(rounds, name)))}", (end, server), va="center", fontsize=8)
    axes.set_title(heading, fontsize=10)


def _values(rounds: Rounds, name: str) -> list[float]:
    return [figures[name] for figures in rounds.values()]


def _color(server: str) -> str:
    if server.startswith(OURS):
        return OUR_COLOR
    return RELAY_COLOR if server in {relay.name for relay in RELAYS} else PEER_COLOR


if __name__ == "__main__":
    print(*draw(json.loads(Path(sys.argv[1]).read_text())["results"], Path(sys.argv[1]).parent), sep="\n")
