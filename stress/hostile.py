"""Does the memory stay below the bound that the server has logged, while clients do their worst? `make soak`.

Twenty hostile clients work at full speed, in processes of their own, and more wait in the backlog; two honest clients
chat meanwhile. Exit status 1 where the bound was exceeded, or an honest message was lost.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from stress.attacks import ATTACKS
from stress.program import run
from testkit.processes import ROOT, ServerProcess, run_server, untraced, wait_for

HOSTILE, HONEST = 20, 2
OPTIONS = ("--pool-size", HOSTILE + HONEST, "--login-timeout", 4, "--write-timeout", 2)
GRACE = 60.0  # seconds for the processes to end
SAMPLE_SECONDS = 0.05
KIB, MIB = 1024, 1024 * 1024

BOUND = re.compile(r"memory: (\d+) MiB now, (\d+) MiB at most .* hashes ([\d.]+) MiB")
OUTCOME = re.compile(r" (?:disconnected: |refused as .*: )(.*)$", re.MULTILINE)


@dataclass
class AttackOutcome:
    """What came of it; memory in bytes, `honest` as chat_honestly tells it."""

    seconds: float
    bound: int
    bound_at_rest: int  # with no hash under way
    peak: int = 0
    quarters: list[int] = field(default_factory=list)  # the most that was seen in each quarter of the time
    after: int = 0
    log_lines: int = 0
    cpu: float = 0.0  # seconds
    outcomes: Counter[str] = field(default_factory=Counter)  # of connections and logins, by the server's log
    hostile: dict[str, dict[str, float]] = field(default_factory=dict)
    honest: dict[str, float] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """Promises that were not kept."""
        sent, received = self.honest.get("sent", 0), self.honest.get("received", 0)
        idle = [kind for kind, done in self.hostile.items() if not done.get("connections")]
        checks = {
            f"{self.peak / MIB:.1f} MiB are more than the bound": self.peak > self.bound,
            f"{self.after / MIB:.1f} MiB are left when all have gone": self.after > self.bound_at_rest,
            f"{received:.0f} of {sent:.0f} honest messages arrived": not sent or received != sent,
            f"hostile clients that did nothing: {', '.join(idle)}": bool(idle),
        }
        return [fault for fault, holds in checks.items() if holds]

    def summary(self) -> str:
        """For people."""
        share = self.peak / self.bound
        quarters = ", ".join(f"{most / MIB:.1f}" for most in self.quarters)
        packets = sum(done.get("packets", 0) for done in self.hostile.values())
        honest = ", ".join(f"{name} {value:g}" for name, value in self.honest.items())
        return "\n".join(
            [
                f"memory: peak {self.peak / MIB:.1f} MiB of {self.bound / MIB:.0f} at most ({share:.0%}); "
                f"by quarters of the time {quarters}; {self.after / MIB:.1f} when all had gone",
                f"server: {self.cpu / self.seconds:.0%} of a core, {self.log_lines / self.seconds:.0f} log lines/s",
                f"honest chat: {honest} (latency in ms)",
                f"hostile packets written: {packets}; most are discarded unread, after the Error that closes",
                *(f"  {kind:<18}{json.dumps(done)[1:-1]}" for kind, done in self.hostile.items()),
                "what the log says of connections and logins:",
                *(f"  {times:>8}  {outcome}" for outcome, times in self.outcomes.most_common()),
            ]
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long they attack (default: 60)")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        outcome = attack(Path(folder) / "data", seconds)
    print(outcome.summary())
    faults = outcome.faults()
    print("\n".join(f"FAILED: {fault}" for fault in faults) or "passed")
    return 1 if faults else 0


def attack(data_dir: Path, seconds: float) -> AttackOutcome:
    """Attack a server of its own for so long. Raises AssertionError where it does not serve on, or stop, well."""
    with run_server(data_dir, *OPTIONS) as server, ExitStack() as processes:
        outcome = _begin(server, seconds)
        server.may_stall = True  # a turn of the loop handles 20 full chunks: long, where coverage traces each line
        honest = _start(processes, "honest", server, seconds)
        server.wait_for_log("logged in as honest-b")
        hostile = {kind.__name__: _start(processes, kind.__name__, server, seconds) for kind in ATTACKS}
        _watch(server, outcome)
        outcome.hostile = {kind: _result(process) for kind, process in hostile.items()}
        outcome.honest = _result(honest)
        wait_for("the end of all connections", lambda: _everyone_has_gone(server.log), GRACE)
        with server.log_in("honest-a") as client:
            client.expect_pong()
        until = time.monotonic() + GRACE  # hashes outlast the connections that asked for them
        while (after := _memory(server, "VmRSS")) > outcome.bound_at_rest and time.monotonic() < until:
            time.sleep(SAMPLE_SECONDS)
        outcome.after = after
        outcome.peak = max(_memory(server, "VmHWM"), *outcome.quarters)  # the kernel counts a little late
        outcome.outcomes = Counter(OUTCOME.findall(server.log))
    return outcome


def _begin(server: ServerProcess, seconds: float) -> AttackOutcome:
    server.wait_for_log("MiB of kernel buffers")
    promised = BOUND.search(server.log)
    assert promised, server.log
    bound = int(promised[2]) * MIB
    return AttackOutcome(seconds, bound, bound_at_rest=bound - int(float(promised[3]) * MIB))


def _start(processes: ExitStack, kind: str, server: ServerProcess, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "stress.attacks", kind, str(server.port), str(seconds)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=untraced(),  # coverage slows them down
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process, which ends them
    )
    processes.callback(process.wait)
    processes.callback(process.kill)
    return process


def _result(process: "subprocess.Popen[str]") -> dict[str, float]:
    output, _ = process.communicate(timeout=GRACE)
    result: dict[str, float] = json.loads(output or "{}")
    return result


def _watch(server: ServerProcess, outcome: AttackOutcome) -> None:
    """Sample until the time is up."""
    cpu, lines, start = _cpu_seconds(server), server.log.count("\n"), time.monotonic()
    outcome.quarters = [0] * 4
    shown = 0
    while (passed := time.monotonic() - start) < outcome.seconds:
        quarter = int(4 * passed / outcome.seconds)
        if quarter > shown:
            shown = quarter
            print(f"{passed:.0f} s: {outcome.quarters[quarter - 1] / MIB:.0f} MiB", flush=True)
        outcome.quarters[quarter] = max(outcome.quarters[quarter], _memory(server, "VmRSS"))
        time.sleep(SAMPLE_SECONDS)
    outcome.cpu = _cpu_seconds(server) - cpu
    outcome.log_lines = server.log.count("\n") - lines


def _memory(server: ServerProcess, name: str) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, status
    return int(found[1]) * KIB


def _cpu_seconds(server: ServerProcess) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _everyone_has_gone(log: str) -> bool:
    return len(re.findall(r" connected$", log, re.MULTILINE)) == len(re.findall(r" disconnected: ", log))


if __name__ == "__main__":
    sys.exit(run(main))
