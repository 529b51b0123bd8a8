"""make bench: its tables, goals, pictures and command line; in a process without gevent, its generator."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.goals import GOALS, judge
from benchmarks.plots import draw
from benchmarks.report import Results, ratios, report, spread
from benchmarks.servers import ALL, REDIS
from testkit.processes import ROOT, run_unpatched

pytestmark = pytest.mark.measured


@pytest.mark.slow
def test_the_generator_finds_faults_and_every_server_is_measured() -> None:
    run_unpatched("tests/unpatched_benchmark.py")


# Tables, goals and pictures


def rounds(*figures: float) -> dict[int, dict[str, float]]:
    return {number: {"CPU per message": figure, "generator": 0.5} for number, figure in enumerate(figures, 1)}


PIPELINED = "pipelined, 10 pairs, 16 bytes"
FOUND: Results = {
    PIPELINED: {"ours": rounds(1.0, 2.0, 3.0), "redis": rounds(2.0, 2.0, 2.0), "mosquitto": rounds(10.0, 10.0)}
}


def test_ratios_compare_figures_of_the_same_round() -> None:
    ours = FOUND[PIPELINED]["ours"]
    assert ratios(ours, FOUND[PIPELINED]["redis"], "CPU per message") == [0.5, 1.0, 1.5]
    assert ratios(ours, FOUND[PIPELINED]["mosquitto"], "CPU per message") == [0.1, 0.2]
    assert spread([0.5, 1.5, 1.0]) == "1 (0.5 .. 1.5)"


def test_the_cheapest_server_comes_first() -> None:
    table = report(FOUND).splitlines()
    assert [line.split()[0] for line in table[3:6]] == ["ours", "redis", "mosquitto"]
    assert "1 (0.5 .. 1.5)" in table[4]
    assert table[-1] == "the generator used at most 50% of a core"


def test_the_median_decides_whether_a_goal_is_reached() -> None:
    reached = [line for line in judge(FOUND) if "redis" in line]
    assert reached == [f"reached  {PIPELINED}: CPU per message 1 (0.5 .. 1.5) of at most 1 redis's"]
    missed: Results = {PIPELINED: {"ours": rounds(3.0, 3.0), "redis": rounds(2.0, 2.0)}}
    assert judge(missed) == [f"MISSED   {PIPELINED}: CPU per message 1.5 (1.5 .. 1.5) of at most 1 redis's"]


GROUPED = "group: pipelined, 10 pairs, 16 bytes"
ACROSS = "ours, across 2 nodes"
IN_GROUP: Results = {
    GROUPED: {
        "ours": rounds(0.5, 1.0),
        ACROSS: {
            number: {"CPU per message": total, "CPU of node 1": total / 2, "CPU of redis": total / 2}
            for number, total in ((1, 2.0), (2, 5.0))
        },
    }
}


def test_a_group_is_reported_in_multiples_of_a_single_server_with_the_share_of_each_party() -> None:
    table = report(IN_GROUP).splitlines()
    assert table[2].split()[-3:] == ["it", "/", "ours"]
    assert " ".join(table[4].split()) == f"{ACROSS} 3.5 (2 .. 5) 4.5 (4 .. 5)"
    assert [line.split() for line in table[5:7]] == [
        ["node", "1", "1.75", "(1", "..", "2.5)"],
        ["redis", "1.75", "(1", "..", "2.5)"],
    ]


def test_a_group_is_judged_in_multiples_of_a_single_server() -> None:
    found = f"{GROUPED}: CPU per message of '{ACROSS}' 4.5 (4 .. 5) of at most 3.5 times ours alone"
    assert judge(IN_GROUP) == [f"MISSED   {found}"]
    cheaper: Results = {GROUPED: {"ours": rounds(2.0, 2.0), ACROSS: rounds(6.0, 8.0)}}
    assert [line.split()[0] for line in judge(cheaper)] == ["reached"]
    assert judge({GROUPED: {ACROSS: rounds(6.0)}}) == []


def test_figures_of_any_size_have_three_digits() -> None:
    assert spread([2118.0, 0.12345, 12.06]) == "12.1 (0.123 .. 2,120)"


def test_servers_without_a_common_round_are_not_judged() -> None:
    ours, theirs = rounds(1.0, 1.0), rounds(1.0)
    apart: Results = {PIPELINED: {"ours": {2: ours[2]}, "redis": theirs}}
    assert judge(apart) == []
    assert "-" in report(apart)


def test_a_run_without_our_server_has_neither_ratios_nor_goals() -> None:
    alone: Results = {PIPELINED: {"redis": rounds(2.0)}}
    assert judge(alone) == []
    assert "redis" not in report(alone)


def test_only_measured_pictures_are_drawn(tmp_path: Path) -> None:
    pictures = draw(FOUND | IN_GROUP, tmp_path)
    assert [picture.name for picture in pictures] == ["cpu.png", "group.png"]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


# The program


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.compare", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.slow
def test_a_run_prints_progress_and_writes_its_figures(tmp_path: Path) -> None:
    chosen = [PIPELINED, "latency at 2000 messages a second"]
    measures = [part for name in chosen for part in ("--measure", name)]
    short = ["--rounds", 2, "--seconds", 0.1, "--output", tmp_path, *measures]
    done = bench(*short, "--server", "uvloop", "--server", "ours, scraped", "--before", ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{PIPELINED}  before: CPU per message" in done.stdout
    found = json.loads((tmp_path / "full.json").read_text())
    figures = {server: len(rounds) for server, rounds in found["results"][PIPELINED].items()}
    assert figures == {"ours": 2, "uvloop": 2, "ours, scraped": 2, "before": 2}
    assert found["servers"]["ours"]["settings"] == "--history off --log-level warning"
    assert (tmp_path / "cpu.png").exists()


@pytest.mark.slow
def test_measures_are_chosen_by_prefix_and_groups_are_compared_with_ours(tmp_path: Path) -> None:
    if REDIS.missing:
        pytest.skip(REDIS.missing)
    short = ["--rounds", 1, "--seconds", 0.1, "--output", tmp_path]
    done = bench(*short, "--measure", "group: pipelined, 10", "--server", ACROSS, "--server", "redis")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "full.json").read_text())
    assert {name: list(by_server) for name, by_server in found["results"].items()} == {
        GROUPED: ["ours", ACROSS],
        GROUPED.replace("10", "100"): ["ours", ACROSS],
    }
    assert found["servers"][ACROSS]["version"].startswith("on redis ")
    assert f"{GROUPED}: CPU per message of '{ACROSS}' " in done.stdout
    assert (tmp_path / "group.png").exists()


def test_bad_options_are_rejected(tmp_path: Path) -> None:
    bad: list[tuple[list[object], str]] = [
        (["--server", "apache"], "invalid choice: 'apache'"),
        (["--before", tmp_path], "is no working copy: it has no server.py"),
        (["--rounds", "0"], "invalid choice: 0"),
        (["--measure", "speed"], "invalid choice: 'speed'"),
    ]
    for arguments, complaint in bad:
        done = bench(*arguments)
        assert done.returncode == 2
        assert complaint in done.stderr


def test_the_list_names_all_servers_and_the_measures_of_all_goals() -> None:
    listed = {line.strip() for line in bench("--list").stdout.splitlines()}
    assert {server.name for server in ALL} <= listed
    assert {goal.measure for goal in GOALS} | {goal.than for goal in GOALS if goal.than} <= listed
