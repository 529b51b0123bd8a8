"""The tables that a load test prints at its end: latencies in microseconds, and the ledger."""

from collections.abc import Mapping

from loadtest.core.balance import Balance, Fault
from loadtest.core.verdict import RequestStats
from table import aligned

PERCENTILES = (50.0, 90.0, 99.0, 99.9, 100.0)
HEADINGS = ("row", "count", "failures", "p50", "p90", "p99", "p99.9", "max")
FINDINGS = 20  # how many the terminal shows; the ledger's file has all of them


def latency_table(rows: Mapping[str, RequestStats]) -> str:
    """Format one line for each row of the statistics: times in microseconds, "-" where nothing was timed."""
    lines = [list(HEADINGS)]
    for name, row in sorted(rows.items()):
        timed = row.histogram.count > 0
        times = [f"{row.histogram.percentile(percent) * 1e6:.0f}" if timed else "-" for percent in PERCENTILES]
        lines.append([name, str(row.count), str(row.failures), *times])
    return f"Latency (microseconds)\n{aligned(lines)}"


def ledger_table(balance: Balance) -> str:
    """Format the totals, and name each fault."""
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
    return "\n".join([f"Delivery ledger ({len(balance.pairs)} pairs)", *(f"  {line}" for line in lines)])


def _difference(totals: Mapping[str, int]) -> str:
    """The number that is missing in the equation if it does not hold."""
    missing = totals["sent"] - totals["delivered"] - totals["refused"] - totals["in_flight"]
    return f" {'+' if missing > 0 else '-'} {abs(missing)}: it does not balance" if missing else ""
