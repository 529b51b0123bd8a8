"""Histograms: three digits, from a microsecond to an hour, that add up; and the table that is made of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from loadtest.core.histogram import Histogram, merged
from loadtest.core.summary import latency_table
from loadtest.core.verdict import RequestStats

DURATIONS = st.floats(1e-6, 3600)


def histogram_of(*durations: float) -> Histogram:
    histogram = Histogram()
    for seconds in durations:
        histogram.record(seconds)
    return histogram


@given(DURATIONS)
def test_a_duration_keeps_three_digits(seconds: float) -> None:
    assert histogram_of(seconds).percentile(100) == pytest.approx(seconds, rel=1e-3, abs=0.5e-6)


def test_an_empty_histogram_has_no_values() -> None:
    assert (Histogram().count, Histogram().percentile(100), Histogram().percentile(99)) == (0, 0, 0)


@pytest.mark.parametrize(("seconds", "counted"), [(-1, 1e-6), (0, 1e-6), (4e-7, 1e-6), (3601, 3600), (1e9, 3600)])
def test_a_time_outside_the_range_counts_as_the_shortest_or_longest(seconds: float, counted: float) -> None:
    assert histogram_of(seconds).percentile(100) == pytest.approx(counted, rel=1e-3)


def test_a_percentile_is_the_value_that_this_share_does_not_exceed() -> None:
    histogram = histogram_of(*(milliseconds / 1000 for milliseconds in range(1, 1001)))
    assert histogram.count == 1000
    for percent, seconds in ((0.1, 0.001), (50, 0.5), (90, 0.9), (99, 0.99), (99.9, 0.999), (100, 1.0)):
        assert histogram.percentile(percent) == pytest.approx(seconds, rel=1e-3)


@given(st.lists(st.lists(DURATIONS, max_size=20), max_size=4))
def test_merged_histograms_are_the_histogram_of_all_values(parts: list[list[float]]) -> None:
    whole = merged(histogram_of(*part).encode() for part in parts)
    once = histogram_of(*(seconds for part in parts for seconds in part))
    assert whole.count == once.count
    assert whole.encode() == once.encode()


def test_the_encoding_is_the_one_of_all_hdr_libraries() -> None:
    decoded = HdrHistogram.decode(histogram_of(0.001, 0.002).encode())
    assert decoded.get_total_count() == 2
    assert decoded.get_max_value() == 2000


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda _: b"no base64!", lambda good: good[:-8], lambda good: good[8:]]
)
def test_a_broken_encoding_is_a_value_error_and_adds_nothing(damage: Callable[[bytes], bytes]) -> None:
    histogram = histogram_of(0.001)
    with pytest.raises(ValueError, match="not an encoded histogram"):
        histogram.add(damage(histogram_of(0.002).encode()))
    assert (histogram.count, histogram.percentile(100)) == (1, 0.001)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_value_error(noise: bytes) -> None:
    with pytest.raises(ValueError, match="not an encoded histogram"):
        Histogram().add(noise)


def test_the_file_is_the_standard_percentile_text_in_milliseconds(tmp_path: Path) -> None:
    histogram_of(*[0.001] * 99, 1.5).write(tmp_path / "latency.hgrm")
    lines = (tmp_path / "latency.hgrm").read_text().splitlines()
    assert lines[0].split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    values = [line.split() for line in lines if line and not line.startswith(("#", " " * 7 + "Value"))]
    assert [float(cell) for cell in values[0]] == [1.0, 0.0, 99, 1.0]
    assert float(values[-1][0]) == pytest.approx(1500, rel=1e-3)
    assert [float(cell) for cell in values[-1][1:3]] == [1.0, 100]
    assert lines[-3].startswith("#[Mean")
    assert lines[-2].startswith("#[Max")


def test_the_table_has_a_line_for_each_row_in_microseconds() -> None:
    rows = {
        "send": RequestStats(Histogram(), count=1200, failures=3),
        "deliver": RequestStats(histogram_of(*[0.0005] * 98, 0.001, 0.0015), count=100),
    }
    assert latency_table(rows) == (
        "Latency (microseconds)\n"
        "      row  count  failures  p50  p90   p99  p99.9   max\n"
        "  deliver    100         0  500  500  1000   1500  1500\n"
        "     send   1200         3    -    -     -      -     -"
    )
