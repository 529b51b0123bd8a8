"""Durations, counted with three significant digits from a microsecond to an hour, so that they add up across processes.

Recording costs less than a microsecond, and the size does not grow with the number of values (hdrhistogram.org).
"""

from collections.abc import Iterable
from pathlib import Path

from hdrh.histogram import HdrHistogram

MICROSECONDS = 1e6
LONGEST = 3600 * 10**6
DIGITS = 3


class Histogram:
    """Durations in seconds; what is shorter than a microsecond or longer than an hour counts as that."""

    def __init__(self) -> None:
        self._values = HdrHistogram(1, LONGEST, DIGITS)

    @property
    def count(self) -> int:
        return int(self._values.get_total_count())

    def record(self, seconds: float) -> None:
        self._values.record_value(min(max(1, round(seconds * MICROSECONDS)), LONGEST))

    def percentile(self, percent: float) -> float:
        """The duration that `percent` of all values do not exceed, in seconds; 0 when there are none."""
        return float(self._values.get_value_at_percentile(percent)) / MICROSECONDS

    def add(self, encoded: bytes) -> None:
        """Add what another process has encoded. Raises ValueError for anything else."""
        try:
            self._values.decode_and_add(encoded)
        except Exception as error:  # the library lets through whatever struct, zlib and base64 raise
            raise ValueError(f"no encoded histogram: {error}") from error

    def encode(self) -> bytes:
        """The compressed encoding that all HDR histogram libraries read (V2, base64)."""
        return bytes(self._values.encode())

    def write(self, file: Path) -> None:
        """Write the percentile distribution in milliseconds, the text that HDR plotters read. Raises OSError."""
        with file.open("wb") as out:
            self._values.output_percentile_distribution(out, MICROSECONDS / 1000)


def merged(parts: Iterable[bytes]) -> Histogram:
    """One histogram of all that was encoded."""
    whole = Histogram()
    for part in parts:
        whole.add(part)
    return whole
