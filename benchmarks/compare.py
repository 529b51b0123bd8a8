"""Our server beside its peers: `make bench`, and `make bench-quick` in about a minute.

Each round measures every server, one right after the other, each time in a new process. The ratios within a round
count: in the next round the machine may be slower.
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

from benchmarks import servers
from benchmarks.dialects import WrongAnswer
from benchmarks.goals import judge
from benchmarks.measures import MEASURES, QUICK, Measure
from benchmarks.plots import draw
from benchmarks.report import Results, report
from benchmarks.servers import ALL, OURS, Server, find, running
from protocol import IS_COMPILED

RESULTS = Path(__file__).parent / "results"
OPEN_FILES = 16384


def main() -> None:
    options = parse_options()
    contenders = [server for server in ALL if server is OURS or not options.server or server.name in options.server]
    if options.before:
        contenders.append(servers.before(options.before.resolve()))
    measures = [MEASURES[name] for name in options.measure]
    contenders = [server for server in contenders if any(server not in measure.without for measure in measures)]
    for server in contenders:
        if server.missing:
            print(server.missing)
    contenders = [server for server in contenders if not server.missing]
    _allow_open_files()
    results, faults = _measure(list(_jobs(measures, contenders, options.rounds)), options.seconds)
    print(report(results))
    compared = {server.name: {"version": version(server), "settings": server.settings} for server in contenders}
    print(f"\n{interpreter()}")
    for name, about in compared.items():
        print(f"{name} {about['version']}".rstrip() + f": {about['settings']}")
    _save(options, compared, results)
    print("", *judge(results), sep="\n")
    for fault in faults:
        print(f"FAILED: {fault}", file=sys.stderr)
    sys.exit(bool(faults))


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Exits with status 2 and one line if it is wrong."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only two measures, in about a minute")
    parser.add_argument(
        "--rounds", type=int, choices=range(1, 101), metavar="N", help="how many (default: 5, or 3 with --quick)"
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="seconds of each run (default: 2, or 0.5 with --quick)"
    )
    parser.add_argument(
        "--measure",
        type=_measures,
        action="extend",
        metavar="NAME",
        help="only this measure, or those whose names begin with NAME (repeatable)",
    )
    names = [server.name for server in ALL]
    parser.add_argument(
        "--server", action="append", choices=names, metavar="NAME", help="only ours and this server (repeatable)"
    )
    parser.add_argument("--before", type=Path, metavar="DIR", help="compare with another working copy as well")
    parser.add_argument(
        "--output",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help="for figures and pictures (default: benchmarks/results)",
    )
    parser.add_argument("--list", action="store_true", help="list the measures and the servers")
    options = parser.parse_args(argv)
    if options.list:
        print("measures:", *MEASURES, "\nservers:", *names, sep="\n  ")
        sys.exit()
    if options.before and not (options.before / "server.py").exists():
        parser.error(f"--before {options.before} is no working copy: it has no server.py")
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.seconds = options.seconds or (0.5 if options.quick else 2.0)
    options.measure = options.measure or (QUICK if options.quick else list(MEASURES))
    return options


def _measures(name: str) -> list[str]:
    """The measure of this name, or all whose names begin with it."""
    found = [name] if name in MEASURES else [known for known in MEASURES if known.startswith(name)]
    if not found:
        raise argparse.ArgumentTypeError(f"invalid choice: {name!r} (--list lists them)")
    return found


def _allow_open_files() -> None:
    """Raise the limit as far as allowed: a measure that needs more fails by itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _jobs(
    measures: Sequence[Measure], contenders: Sequence[Server], rounds: int
) -> Iterator[tuple[int, Measure, Server]]:
    for number in range(1, rounds + 1):
        for measure in measures:
            for server in contenders if number % 2 else reversed(contenders):
                if server not in measure.without:
                    yield number, measure, server


def _measure(jobs: Sequence[tuple[int, Measure, Server]], seconds: float) -> tuple[Results, list[str]]:
    """Run the jobs and print progress; returns the results and the failures."""
    results: Results = {}
    faults = []
    begin = time.monotonic()
    for done, (number, measure, server) in enumerate(jobs):
        left = (time.monotonic() - begin) / done * (len(jobs) - done) if done else 0.0
        try:
            with running(server, measure.clients) as run:
                figures = measure.run(run, seconds)
        except WrongAnswer as error:
            faults.append(f"{measure.name}: {error}")
            shown = "FAILED"
        else:
            results.setdefault(measure.name, {}).setdefault(server.name, {})[number] = figures
            shown = "  ".join(f"{name} {figure:.3g}" for name, figure in figures.items())
        ahead = f"  ({left / 60:.0f} min left)" if left > 60 else ""
        print(f"{done + 1}/{len(jobs)}  {measure.name}  {server.name}: {shown}{ahead}", flush=True)
    return results, faults


def _save(options: argparse.Namespace, compared: dict[str, dict[str, str]], results: Results) -> None:
    file: Path = options.output / ("quick.json" if options.quick else "full.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "date": f"{date.today():%Y-%m-%d}",
        "machine": {"cores": os.cpu_count(), "processor": _processor(), "system": platform.platform()},
        "python": interpreter(),
        "seconds": options.seconds,
        "servers": compared,
        "results": results,
    }
    file.write_text(json.dumps(found, indent=1) + "\n")
    pictures = [] if options.quick else draw(results, options.output)
    print("\nwritten:", *[file, *pictures], sep="\n  ")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.machine()


def interpreter() -> str:
    """What runs our server: Python, how it was built, and in which language the protocol's loop is."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    guided = "with" if "--enable-optimizations" in arguments else "without"
    language = "C" if IS_COMPILED else "Python"
    return f"Python {platform.python_version()} {guided} profile-guided optimisation, protocol in {language}"


def version(server: Server) -> str:
    """The version that the program prints; "" for our own programs; for a group that of its Redis."""
    if server.redis:
        return f"on {server.redis.name} {version(server.redis)}"
    if not server.version:
        return ""
    command = [find(server.program) or server.program, *server.version]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"\d+(\.\d+)+", output) or re.search(r"\d\S*", output)
    return found[0] if found else "unknown"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
