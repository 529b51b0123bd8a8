"""Histograms of durations: three significant digits, from a microsecond to an hour. Those of several processes add up.

Recording a value takes less than a microsecond, and the size does not grow with their number (hdrhistogram.org).
"""

from collections.abc import Iterable
from pathlib import Path

from hdrh.histogram import HdrHistogram

MICROSECONDS = 1e6
LONGEST = 3600 * 10**6
DIGITS = 3


class Histogram:
    """Durations in seconds. Shorter ones than a microsecond count as one, and longer ones than an hour as an hour."""

    def __init__(self) -> None:
        self._values = HdrHistogram(1, LONGEST, DIGITS)

    @property
    def count(self) -> int:
        return int(self._values.get_total_count())

    def record(self, seconds: float) -> None:
        self._values.record_value(min(max(1, round(seconds * MICROSECONDS)), LONGEST))

    def percentile(self, percent: float) -> float:
        """Return the duration in seconds that `percent` of all values do not exceed; 0 when there are no values."""
        return float(self._values.get_value_at_percentile(percent)) / MICROSECONDS

    def add(self, encoded: bytes) -> None:
        """Add an encoded histogram, perhaps of another process. Raises ValueError if it is not one."""
        try:
            self._values.decode_and_add(encoded)
        except Exception as error:  # the library passes on whatever struct, zlib and base64 raise
            raise ValueError(f"not an encoded histogram: {error}") from error

    def encode(self) -> bytes:
        """Return the compressed encoding that all HDR histogram libraries read (V2, base64)."""
        return bytes(self._values.encode())

    def write(self, file: Path) -> None:
        """Write the percentile distribution in milliseconds, as text that HDR plotters read. Raises OSError."""
        with file.open("wb") as out:
            self._values.output_percentile_distribution(out, MICROSECONDS / 1000)


def merged(parts: Iterable[bytes]) -> Histogram:
    """Return one histogram of all these encoded ones. Raises ValueError like Histogram.add()."""
    whole = Histogram()
    for part in parts:
        whole.add(part)
    return whole
