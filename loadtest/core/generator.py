"""Whether the load generator could keep up: if it is the bottleneck, it measures only itself."""

from collections.abc import Callable
from dataclasses import dataclass

from loadtest.core.histogram import Histogram

TICK = 0.01  # seconds between two measurements of the loop's lag
WINDOW = 5.0  # seconds over which the CPU share is averaged; the busiest window counts
SHORTEST = 0.5  # seconds; a shorter window says nothing


@dataclass(frozen=True, slots=True)
class GeneratorLoad:
    """How busy a generator was: its share of one core (1.0 is all of it), and how late its loop woke up (seconds)."""

    cpu: float = 0.0
    lag_p99: float = 0.0

    def worst(self, other: "GeneratorLoad") -> "GeneratorLoad":
        """Combine two loads: the higher of each figure."""
        return GeneratorLoad(max(self.cpu, other.cpu), max(self.lag_p99, other.lag_p99))

    def exceeds(self, limits: "GeneratorLimits") -> bool:
        """Whether the generator itself was the bottleneck."""
        return self.cpu > limits.cpu or self.lag_p99 > limits.lag


@dataclass(frozen=True, slots=True)
class GeneratorLimits:
    """The load above which the generator itself was the bottleneck: a share of one core, and seconds of lag."""

    cpu: float = 0.9
    lag: float = 0.01


class LoadMeter:
    """Measures the load of its own process. The loop that it measures calls tick() every TICK seconds.

    `clock` returns the time in seconds, `cpu` the processor time in seconds that this process has used.
    """

    def __init__(self, clock: Callable[[], float], cpu: Callable[[], float]) -> None:
        self._clock = clock
        self._cpu = cpu
        self._lag = Histogram()
        self._expected = clock() + TICK
        self._window = (clock(), cpu())
        self._busiest = 0.0

    def tick(self) -> None:
        """Record how late the loop has woken up; to be called when it wakes up after sleeping for TICK seconds."""
        now = self._clock()
        self._lag.record(now - self._expected)
        self._expected = now + TICK
        if now - self._window[0] >= WINDOW:
            self._busiest = max(self._busiest, self._share())
            self._window = (now, self._cpu())

    def read(self) -> GeneratorLoad:
        """Return the load since this meter was created."""
        return GeneratorLoad(max(self._busiest, self._share()), self._lag.percentile(99))

    def _share(self) -> float:
        begin, used = self._window
        seconds = self._clock() - begin
        return (self._cpu() - used) / seconds if seconds >= SHORTEST else 0.0
