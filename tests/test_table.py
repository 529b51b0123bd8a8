"""The tables that programs print."""

from table import aligned


def test_columns_are_as_wide_as_their_widest_cell_and_numbers_end_together() -> None:
    assert aligned([("", "p50", "max"), ("login", "7", "1234")], "<") == "         p50   max\n  login    7  1234"


def test_a_column_can_be_aligned_to_either_side() -> None:
    assert aligned([("a", "long", "bb"), ("bb", "x", "a")], "><<", indent="") == " a  long  bb\nbb  x     a"
