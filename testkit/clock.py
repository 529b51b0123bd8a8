"""A wall clock that can be stepped, for one process, as an operator or NTP steps it."""

import os
import shutil
import subprocess
from pathlib import Path

from testkit import HarnessError, Missing
from testkit.processes import DEADLINE

SOURCE = Path(__file__).with_name("stepped_clock.c")


class SteppedClock:
    """Processes with this `environment` have their wall clock stepped; their monotonic clock goes on."""

    def __init__(self, folder: Path) -> None:
        """Compile what is preloaded. Raises Missing where there is no C compiler, or no preloading."""
        compiler = shutil.which("cc")
        if compiler is None or os.uname().sysname != "Linux":
            raise Missing("needs Linux and a C compiler, to step the clock of one process")
        self._step = folder / "step"
        self._step.write_text("0")
        library = folder / "stepped_clock.so"
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
        if done.returncode:
            raise HarnessError(f"{SOURCE.name} does not compile: {done.stderr}")
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_STEP": str(self._step)}

    @property
    def under(self) -> list[str]:
        """What to start a program under."""
        return ["env", *(f"{name}={value}" for name, value in self.environment.items())]

    def step(self, seconds: int) -> None:
        """Move the clock to so many seconds after the true time, or before it."""
        new = self._step.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._step)
