"""Does the server's memory stay below the bound that it logs, while clients do their worst? `make soak`.

Twenty hostile clients run at full speed in processes of their own, and more wait in the backlog; two honest clients
chat meanwhile. Exit status: 1 if the bound was exceeded or an honest message was lost.
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
from testkit import HarnessError
from testkit.processes import ROOT, untraced, wait_for
from testkit.server import ServerProcess, run_server

HOSTILE, HONEST = 20, 2
OPTIONS = ("--pool-size", HOSTILE + HONEST, "--login-timeout", 4, "--write-timeout", 2)
GRACE = 60.0  # seconds for the processes to end
SAMPLE_SECONDS = 0.05
KIB, MIB = 1024, 1024 * 1024

BOUND = re.compile(r"memory: (\d+) MiB now, (\d+) MiB at most .* hashes ([\d.]+) MiB")
OUTCOME = re.compile(r" (?:disconnected: |refused as .*: )(.*)$", re.MULTILINE)


@dataclass
class AttackOutcome:
    """The result of an attack; memory in bytes, `honest` as chat_honestly returns it."""

    seconds: float
    bound: int
    bound_at_rest: int  # while no password is being hashed
    peak: int = 0
    quarters: list[int] = field(default_factory=list)  # the peak of each quarter of the time
    after: int = 0
    log_lines: int = 0
    cpu: float = 0.0  # seconds
    outcomes: Counter[str] = field(default_factory=Counter)  # of connections and logins, from the server's log
    hostile: dict[str, dict[str, float]] = field(default_factory=dict)
    honest: dict[str, float] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """The promises that were broken."""
        sent, received = self.honest.get("sent", 0), self.honest.get("received", 0)
        idle = [kind for kind, done in self.hostile.items() if not done.get("connections")]
        checks = {
            f"a peak of {self.peak / MIB:.1f} MiB exceeds the bound": self.peak > self.bound,
            f"{self.after / MIB:.1f} MiB remain after all clients have disconnected": self.after > self.bound_at_rest,
            f"{received:.0f} of {sent:.0f} honest messages arrived": not sent or received != sent,
            f"hostile clients that never connected: {', '.join(idle)}": bool(idle),
        }
        return [fault for fault, holds in checks.items() if holds]

    def summary(self) -> str:
        """The report that the program prints."""
        share = self.peak / self.bound
        quarters = ", ".join(f"{most / MIB:.1f}" for most in self.quarters)
        packets = sum(done.get("packets", 0) for done in self.hostile.values())
        honest = ", ".join(f"{name} {value:g}" for name, value in self.honest.items())
        return "\n".join(
            [
                f"memory: peak {self.peak / MIB:.1f} MiB of {self.bound / MIB:.0f} at most ({share:.0%}); "
                f"in each quarter of the time {quarters}; {self.after / MIB:.1f} after all had disconnected",
                f"server: {self.cpu / self.seconds:.0%} of a core, {self.log_lines / self.seconds:.0f} log lines/s",
                f"honest chat: {honest} (latency in ms)",
                f"hostile packets sent: {packets}; the server discards most of them unread, after its closing Error",
                *(f"  {kind:<18}{json.dumps(done)[1:-1]}" for kind, done in self.hostile.items()),
                "connections and logins in the log:",
                *(f"  {times:>8}  {outcome}" for outcome, times in self.outcomes.most_common()),
            ]
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the attack (default: 60)")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        outcome = attack(Path(folder) / "data", seconds)
    print(outcome.summary())
    faults = outcome.faults()
    print("\n".join(f"FAILED: {fault}" for fault in faults) or "passed")
    return 1 if faults else 0


def attack(data_dir: Path, seconds: float) -> AttackOutcome:
    """Start a server and attack it. Raises HarnessError if it does not go on serving or does not stop cleanly."""
    with run_server(data_dir, *OPTIONS) as server, ExitStack() as processes:
        outcome = _begin(server, seconds)
        server.may_stall = True  # one turn of the loop handles 20 full chunks, which takes long under coverage
        honest = _start(processes, "honest", server, seconds)
        server.wait_for_log("logged in as honest-b")
        hostile = {kind.__name__: _start(processes, kind.__name__, server, seconds) for kind in ATTACKS}
        _watch(server, outcome)
        outcome.hostile = {kind: _result(process) for kind, process in hostile.items()}
        outcome.honest = _result(honest)
        wait_for("the end of all connections", lambda: _all_disconnected(server.log), GRACE)
        with server.log_in("honest-a") as client:
            client.expect_pong()
        until = time.monotonic() + GRACE  # hashing outlasts the connections that caused it
        while (after := _memory(server, "VmRSS")) > outcome.bound_at_rest and time.monotonic() < until:
            time.sleep(SAMPLE_SECONDS)
        outcome.after = after
        outcome.peak = max(_memory(server, "VmHWM"), *outcome.quarters)  # the kernel's peak lags a little
        outcome.outcomes = Counter(OUTCOME.findall(server.log))
    return outcome


def _begin(server: ServerProcess, seconds: float) -> AttackOutcome:
    server.wait_for_log("MiB of kernel buffers")
    promised = BOUND.search(server.log)
    if not promised:
        raise HarnessError(server.log)
    bound = int(promised[2]) * MIB
    return AttackOutcome(seconds, bound, bound_at_rest=bound - int(float(promised[3]) * MIB))


def _start(processes: ExitStack, kind: str, server: ServerProcess, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "stress.attacks", kind, str(server.port), str(seconds)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=untraced(),  # coverage would slow them down
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches this process alone, which ends them
    )
    processes.callback(process.wait)
    processes.callback(process.kill)
    return process


def _result(process: "subprocess.Popen[str]") -> dict[str, float]:
    output, _ = process.communicate(timeout=GRACE)
    result: dict[str, float] = json.loads(output or "{}")
    return result


def _watch(server: ServerProcess, outcome: AttackOutcome) -> None:
    """Sample memory until the time is up."""
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
    if not found:
        raise HarnessError(f"no {name} in:\n{status}")
    return int(found[1]) * KIB


def _cpu_seconds(server: ServerProcess) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _all_disconnected(log: str) -> bool:
    return len(re.findall(r" connected$", log, re.MULTILINE)) == len(re.findall(r" disconnected: ", log))


if __name__ == "__main__":
    sys.exit(run(main))
