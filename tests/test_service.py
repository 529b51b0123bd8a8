"""deploy/chat.service, as far as systemd can check it without starting it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chatserver.operations.control import STOP_SECONDS
from chatserver.operations.options import parse_options
from testkit.processes import DEADLINE, ROOT

UNIT = ROOT / "deploy" / "chat.service"
MIB = 1024 * 1024

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="this machine has no systemd-analyze, which checks units"
)


def settings(unit: str) -> dict[str, str]:
    """The last value of each setting."""
    lines = [line for line in unit.splitlines() if "=" in line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)


@needs_systemd
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "chat.service"
    unit.write_text(
        UNIT.read_text().replace("/opt/chat/.venv/bin/python", sys.executable).replace("/opt/chat", str(ROOT))
    )
    done = analyze("verify", unit)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_systemd_rates_the_unit_as_well_secured() -> None:
    done = analyze("security", "--offline=true", "--threshold=20", UNIT)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd cannot rate a unit that is not loaded, which takes version 250")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_limits_of_the_unit_fit_those_of_the_server() -> None:
    unit, options = settings(UNIT.read_text()), parse_options([])
    assert float(unit["TimeoutStopSec"]) > options.drain + STOP_SECONDS + 5
    assert int(unit["LimitNOFILE"]) >= 2 * options.pool_size + 64
    assert (
        int(unit["MemoryMax"].removesuffix("M")) * MIB > (50 + 128) * MIB + 3 * options.pool_size * options.outbox_bytes
    )
