"""What a run prints at its end: latencies in microseconds, and the ledger."""

from collections.abc import Mapping, Sequence

from loadtest.core.balance import Balance, Fault
from loadtest.core.verdict import RequestStats

PERCENTILES = (50.0, 90.0, 99.0, 99.9, 100.0)
HEADINGS = ("row", "count", "failures", "p50", "p90", "p99", "p99.9", "max")
FINDINGS = 20  # that are named on the terminal; the ledger's file has all


def aligned(lines: Sequence[Sequence[str]], left: int = 0) -> str:
    """Lines of equally many cells as an indented table. The first `left` columns are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    formats = [f"  {{:{'<' if number < left else '>'}{width}}}" for number, width in enumerate(widths)]
    return "\n".join("".join(formats).format(*line) for line in lines)


def latency_table(rows: Mapping[str, RequestStats]) -> str:
    """A line for each row; times in microseconds, "-" where nothing was timed."""
    lines = [list(HEADINGS)]
    for name, row in sorted(rows.items()):
        timed = row.histogram.count > 0
        times = [f"{row.histogram.percentile(percent) * 1e6:.0f}" if timed else "-" for percent in PERCENTILES]
        lines.append([name, str(row.count), str(row.failures), *times])
    return f"Latency (microseconds)\n{aligned(lines)}"


def ledger_table(balance: Balance) -> str:
    """The totals, and each fault by name."""
    totals = balance.totals()
    named = balance.findings()
    more = [f"and {len(named) - FINDINGS} more: --ledger FILE writes them all"] if len(named) > FINDINGS else []
    lines = [
        f"sent {totals['sent']} = delivered {totals['delivered']} + refused {totals['refused']}"
        f" + in flight {totals['in_flight']}" + _difference(totals),
        ", ".join(f"{fault} {totals[fault]}" for fault in Fault),
        *named[:FINDINGS],
        *more,
    ]
    return "\n".join([f"Delivery ledger ({len(balance.lines)} pairs)", *(f"  {line}" for line in lines)])


def _difference(totals: Mapping[str, int]) -> str:
    """What the equation lacks where it does not hold."""
    missing = totals["sent"] - totals["delivered"] - totals["refused"] - totals["in_flight"]
    return f" {'+' if missing > 0 else '-'} {abs(missing)}: it does not balance" if missing else ""
