"""Whether the machine that measures could keep up: a generator that is the bottleneck measures itself."""

from collections.abc import Callable
from dataclasses import dataclass

from loadtest.core.histogram import Histogram

TICK = 0.01  # seconds between two looks at the loop
WINDOW = 5.0  # seconds over which the CPU share is taken; the busiest counts
SHORTEST = 0.5  # seconds of which a share says something


@dataclass(frozen=True, slots=True)
class GeneratorLoad:
    """How busy a generator was: the share of one core, 1.0 for all of it, and how late its loop woke up, in seconds."""

    cpu: float = 0.0
    lag_p99: float = 0.0

    def worst(self, other: "GeneratorLoad") -> "GeneratorLoad":
        return GeneratorLoad(max(self.cpu, other.cpu), max(self.lag_p99, other.lag_p99))

    def exceeds(self, limits: "GeneratorLimits") -> bool:
        """Whether the generator itself was the bottleneck."""
        return self.cpu > limits.cpu or self.lag_p99 > limits.lag


@dataclass(frozen=True, slots=True)
class GeneratorLimits:
    """Beyond which the generator itself was the bottleneck: a share of one core, and seconds."""

    cpu: float = 0.9
    lag: float = 0.01


class LoadMeter:
    """Measures its own process. To be told of each TICK by the loop that it measures.

    `clock` and `cpu` give seconds: of the day, and of processor time that this process has used.
    """

    def __init__(self, clock: Callable[[], float], cpu: Callable[[], float]) -> None:
        self._clock = clock
        self._cpu = cpu
        self._lag = Histogram()
        self._expected = clock() + TICK
        self._window = (clock(), cpu())
        self._busiest = 0.0

    def tick(self) -> None:
        """Called when the loop wakes up after TICK seconds."""
        now = self._clock()
        self._lag.record(now - self._expected)
        self._expected = now + TICK
        if now - self._window[0] >= WINDOW:
            self._busiest = max(self._busiest, self._share())
            self._window = (now, self._cpu())

    def read(self) -> GeneratorLoad:
        """How busy it was since it was made."""
        return GeneratorLoad(max(self._busiest, self._share()), self._lag.percentile(99))

    def _share(self) -> float:
        begin, used = self._window
        seconds = self._clock() - begin
        return (self._cpu() - used) / seconds if seconds >= SHORTEST else 0.0
