"""Pictures of what a run has found, one glance each; drawn again with `python -m benchmarks.plots FILE.json`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.report import OURS, Results
from benchmarks.servers import RELAYS

OUR_COLOR, PEER_COLOR, RELAY_COLOR = "#c0392b", "#5d7b93", "#b8c4cc"
LOGARITHMIC = 50  # the most by as many times the least, and the axis is
Panel = tuple[str, str, str]  # title, measure, figure


def draw(results: Results, folder: Path) -> list[Path]:
    """The pictures that this run has figures for."""
    pages: dict[str, tuple[str, list[Panel]]] = {
        "cpu": ("server CPU per message, us", [*_panels("pipelined", 16), *_panels("ping-pong", 16)]),
        "cpu-100-bytes": ("the same, texts of 100 bytes", [*_panels("pipelined", 100), *_panels("ping-pong", 100)]),
        "latency": ("latency, us", [(p, "latency at 2000 messages a second", p) for p in ("p50", "p99", "p99.9")]),
        "clients": (
            "what a client costs",
            [
                ("KiB, idle, of 1,000", "memory, 1000 idle clients", "memory per client"),
                ("KiB, idle, of 5,000", "memory, 5000 idle clients", "memory per client"),
                ("CPU of a login, us", "login", "CPU per login"),
            ],
        ),
    }
    written = []
    for name, (title, panels) in pages.items():
        found = [panel for panel in panels if panel[1] in results]
        if found:
            written.append(folder / f"{name}.png")
            _page(written[-1], title, found, results)
    return written


def _panels(kind: str, text_bytes: int) -> list[Panel]:
    return [
        (f"{kind}, {pairs} pairs", f"{kind}, {pairs} pairs, {text_bytes} bytes", "CPU per message")
        for pairs in (10, 100, 1000)
    ]


def _page(file: Path, title: str, panels: Sequence[Panel], results: Results) -> None:
    rows = -(-len(panels) // 3)
    figure, grid = pyplot.subplots(rows, 3, figsize=(12, 0.6 + 3.1 * rows), squeeze=False)
    figure.suptitle(title)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (heading, measure, name) in zip(grid.flat, panels, strict=False):
        _bars(
            axes, heading, {server: [f[name] for f in rounds.values()] for server, rounds in results[measure].items()}
        )
    figure.tight_layout()
    figure.savefig(file, dpi=80)
    pyplot.close(figure)


def _bars(axes: Axes, heading: str, found: dict[str, list[float]]) -> None:
    """Medians, the least at the top, with a line from the least to the most that was measured."""
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
    axes.margins(x=0.2)
    axes.set_title(heading, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _color(server: str) -> str:
    if server.startswith(OURS):
        return OUR_COLOR
    return RELAY_COLOR if server in {relay.name for relay in RELAYS} else PEER_COLOR


if __name__ == "__main__":
    print(*draw(json.loads(Path(sys.argv[1]).read_text())["results"], Path(sys.argv[1]).parent), sep="\n")
