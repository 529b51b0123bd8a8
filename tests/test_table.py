"""The tables that programs print."""

from table import aligned


def test_columns_are_as_wide_as_their_widest_cell_and_numbers_end_together() -> None:
    assert aligned([("", "p50", "max"), ("login", "7", "1234")], "<") == "         p50   max\n  login    7  1234"


def test_a_column_can_be_aligned_to_either_side() -> None:
    assert aligned([("a", "long", "bb"), ("bb", "x", "a")], "><<", indent="") == " a  long  bb\nbb  x     a"


def test_a_cell_counts_as_wide_as_a_terminal_shows_it() -> None:
    """Chinese and emoji take two columns, a combining mark none."""
    assert aligned([("名前", "x"), ("é", "y"), ("😀a", "z")], "<<", indent="") == "名前  x\né     y\n😀a   z"
