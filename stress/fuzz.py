"""Fuzzing, as long as you like: `make fuzz`. First libFuzzer on sessions alone, then mutations over sockets."""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stress.inputs import corpus
from stress.program import run
from stress.seeds import PACKETS
from testkit.processes import ROOT, untraced

PROGRESS_SECONDS = 5.0
CANNOT = "atheris cannot be imported: it exists only for Linux on x86-64"
LIMITS = ("-max_len=256", "-timeout=20", "-rss_limit_mb=1024")  # bytes per input, seconds per run, MiB in all
WORD_BYTES = 64  # the longest word that libFuzzer accepts
KINDS = ("crash", "timeout", "oom", "leak")  # prefixes of the inputs that libFuzzer saves
STATUS = re.compile(r"#(\d+)\s.*cov: (\d+) ft: \d+ corp: (\d+)/")


@dataclass(slots=True)
class FuzzOutcome:
    """How a run of libFuzzer went; `crash` is the input that broke a promise, and `report` describes it."""

    runs: int = 0
    coverage: int = 0
    corpus: int = 0
    seconds: float = 0.0
    crash: Path | None = None
    report: str = ""

    def __str__(self) -> str:
        return f"{self.runs} runs in {self.seconds:.0f} s, {self.coverage} branches reached, {self.corpus} inputs kept"


def can_fuzz() -> bool:
    """Whether atheris is installed."""
    return importlib.util.find_spec("atheris") is not None


def fuzz(
    folder: Path,
    *options: str,
    program: tuple[str, ...] = ("-m", "stress.libfuzzer"),
    show: Callable[[FuzzOutcome], object] = lambda _: None,
) -> FuzzOutcome:
    """Run libFuzzer with these options, in a process of its own; all files are in `folder`."""
    inputs, dictionary = _prepare(folder)
    command = [sys.executable, *program, str(inputs), f"-artifact_prefix={folder}/", *LIMITS]
    outcome, begin, shown, lines = FuzzOutcome(), time.monotonic(), time.monotonic(), []
    with subprocess.Popen(
        [*command, f"-dict={dictionary}", *options],
        cwd=ROOT,
        env=untraced(),  # libFuzzer measures coverage itself
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            lines.append(line)
            if status := STATUS.match(line):
                outcome.runs, outcome.coverage, outcome.corpus = map(int, status.groups())
            outcome.seconds = time.monotonic() - begin
            if time.monotonic() > shown + PROGRESS_SECONDS:
                shown = time.monotonic()
                show(outcome)
    if process.returncode:
        outcome.crash = next((found for kind in KINDS for found in folder.glob(f"{kind}-*")), folder)
        outcome.report = _explain("".join(lines))
    return outcome


def _explain(output: str) -> str:
    """The exception in this output, or its end if there is none."""
    exception = re.search(r"=== Uncaught Python exception: ===\n(.*?)\n(?:Traceback|==)", output, re.DOTALL)
    return exception[1] if exception else output[-2000:]


def _prepare(folder: Path) -> tuple[Path, Path]:
    """The folder of initial inputs, and the dictionary of words that libFuzzer may use."""
    inputs, dictionary = folder / "corpus", folder / "packets.dict"
    inputs.mkdir(parents=True)
    for number, data in enumerate(corpus()):
        (inputs / f"seed-{number:03}").write_bytes(data)
    words = ("".join(f"\\x{byte:02x}" for byte in packet) for packet in PACKETS if len(packet) <= WORD_BYTES)
    dictionary.write_text("".join(f'"{word}"\n' for word in words))
    return inputs, dictionary


def main() -> int:
    """Returns the exit status: 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="duration of libFuzzer (default: 60)")
    parser.add_argument("--conversations", type=int, metavar="N", default=100_000, help="default: 100000")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    options = parser.parse_args()
    status = _fuzz_for(options.seconds, options.seed) if can_fuzz() else _skip()
    command = [sys.executable, "-m", "stress.mutate", "--seed", str(options.seed)]
    print(f"over sockets: {options.conversations} conversations", flush=True)
    done = subprocess.run([*command, "--conversations", str(options.conversations)], cwd=ROOT, check=False)
    return max(status, done.returncode)


def _skip() -> int:
    print(CANNOT)
    return 0


def _fuzz_for(seconds: int, seed: int) -> int:
    print(f"sessions alone: {seconds} s", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chat-fuzz-"))
    try:
        outcome = fuzz(folder, f"-max_total_time={seconds}", f"-seed={seed}", show=lambda now: print(now, flush=True))
    except KeyboardInterrupt:
        shutil.rmtree(folder)
        raise
    print(outcome)
    if outcome.crash:
        print(f"FAULT: {outcome.report}\nThe input is in {outcome.crash}. To run it again:")
        print(f"  python -m stress.libfuzzer {outcome.crash}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
