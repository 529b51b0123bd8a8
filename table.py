"""The one way to print a table: admin.py, the load tester, the benchmarks and the stress programs use it."""

from collections.abc import Sequence


def aligned(lines: Sequence[Sequence[str]], align: str = "", indent: str = "  ") -> str:
    """Lines of equally many cells as a table, each column as wide as its widest cell.

    `align` has a "<" or ">" for each of the first columns: left or right. The others are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    formats = [f"{{:{align[number : number + 1] or '>'}{width}}}" for number, width in enumerate(widths)]
    return "\n".join((indent + "  ".join(formats).format(*line)).rstrip() for line in lines)
