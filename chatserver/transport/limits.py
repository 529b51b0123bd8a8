"""Limits on what one client may use."""

from dataclasses import dataclass
from time import monotonic


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the options, the same for every client. Times in seconds; infinity means no limit."""

    outbox_bytes: int
    write_timeout: float
    login_timeout: float
    idle_timeout: float
    yield_after: float
    packets_per_second: float
    burst: float
    connections_per_address: float


class TokenBucket:
    """Limits a client's packets: `rate` a second in the long run, `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._updated = monotonic()

    def take(self, count: int) -> None:
        """Spend a token for each of `count` packets. The bucket may go into debt."""
        self._tokens -= count

    @property
    def tokens(self) -> int:
        """How many packets may be read now."""
        now = monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        return int(self._tokens)

    @property
    def delay(self) -> float:
        """Seconds until the next packet may be read."""
        return max(0.0, (1 - self._tokens) / self._rate)
