"""The one way to print a table: admin.py, the load tester, the benchmarks and the stress programs use it."""

from collections.abc import Sequence


def aligned(lines: Sequence[Sequence[str]], left: int = 0, indent: str = "  ") -> str:
    """Lines of equally many cells as a table, each column as wide as its widest cell.

    The first `left` columns are aligned to the left, the others to the right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    formats = [f"{{:{'<' if number < left else '>'}{width}}}" for number, width in enumerate(widths)]
    return "\n".join((indent + "  ".join(formats).format(*line)).rstrip() for line in lines)
