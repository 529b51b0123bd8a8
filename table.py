"""The one way to print a table: admin.py, the load tester, the benchmarks and the stress programs use it."""

from collections.abc import Sequence

from wcwidth import wcswidth


def aligned(lines: Sequence[Sequence[str]], align: str = "", indent: str = "  ") -> str:
    """Lines of equally many cells as a table, each column as wide as its widest cell.

    `align` has a "<" or ">" for each of the first columns: left or right. The others are aligned to the right.
    """
    widths = [max(map(wcswidth, column)) for column in zip(*lines, strict=True)]
    sides = align.ljust(len(widths), ">")
    padded = ([_pad(*cell) for cell in zip(line, widths, sides, strict=True)] for line in lines)
    return "\n".join((indent + "  ".join(cells)).rstrip() for cells in padded)


def _pad(cell: str, width: int, side: str) -> str:
    """The cell with spaces, as wide as `width` columns of a terminal."""
    spaces = " " * (width - wcswidth(cell))
    return spaces + cell if side == ">" else cell + spaces
