"""Balances: they add up across processes, name every fault, and can be written to a file."""

from pathlib import Path

import msgpack  # type: ignore[import-untyped]  # what Locust sends between its processes
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.core.balance import Balance, Fault, PairBalance, ranges
from loadtest.core.summary import FINDINGS, ledger_table

WHOLE = PairBalance("ann", "bob", sent=5, delivered=3, refused=1, in_flight=1, faults={})
DAMAGED = PairBalance("cat", "dan", sent=9, delivered=5, refused=0, in_flight=0, faults={"lost": [[2, 4], [7, 7]]})

NUMBERS = st.lists(st.integers(0, 30))
PAIRS = st.builds(
    PairBalance,
    sender=st.text(),
    receiver=st.text(),
    sent=st.integers(0, 2**63),
    delivered=st.integers(0, 2**63),
    refused=st.integers(0, 2**63),
    in_flight=st.integers(0, 2**63),
    faults=st.dictionaries(st.sampled_from([str(fault) for fault in Fault]), NUMBERS.filter(bool).map(ranges)),
)


@given(NUMBERS)
def test_ranges_list_each_number_as_often_as_it_occurs(numbers: list[int]) -> None:
    said = [number for first, last in ranges(numbers) for number in range(first, last + 1)]
    assert sorted(said) == sorted(numbers)


@given(st.lists(PAIRS))
def test_a_balance_survives_its_way_to_another_process(lines: list[PairBalance]) -> None:
    travelled = msgpack.unpackb(msgpack.packb(Balance(lines).encode()))
    assert Balance.decode(travelled) == Balance(lines)


@given(st.lists(PAIRS), st.lists(PAIRS))
def test_the_balances_of_two_processes_add_up(here: list[PairBalance], there: list[PairBalance]) -> None:
    total = (Balance(here) + Balance(there)).totals()
    one, other = Balance(here).totals(), Balance(there).totals()
    assert total == {name: one[name] + other[name] for name in total}


def test_a_corrupted_message_is_part_of_the_balance_unless_nothing_was_expected() -> None:
    assert (
        PairBalance(
            "ann", "bob", sent=2, delivered=1, refused=0, in_flight=0, faults={"corrupted": [[2, 2]]}
        ).unbalanced
        == 0
    )
    assert (
        PairBalance(
            "ann", "bob", sent=2, delivered=1, refused=0, in_flight=0, faults={"corrupted": [[0, 1]]}
        ).unbalanced
        == 0
    )
    assert (
        PairBalance(
            "ann", "bob", sent=2, delivered=2, refused=0, in_flight=0, faults={"corrupted": [[0, 0]]}
        ).unbalanced
        == 0
    )


@pytest.mark.parametrize("fault", ["duplicated", "reordered", "misdelivered"])
def test_a_late_message_does_not_count_twice(fault: str) -> None:
    assert (
        PairBalance("ann", "bob", sent=2, delivered=2, refused=0, in_flight=0, faults={fault: [[1, 2]]}).unbalanced == 0
    )


def test_only_the_first_ranges_of_a_fault_are_named() -> None:
    lost = ranges(range(1, 15, 2))
    line = PairBalance("ann", "bob", sent=14, delivered=7, refused=0, in_flight=0, faults={"lost": lost})
    assert Balance([line]).findings() == ["lost: ann -> bob: 1, 3, 5, 7, 9 and 2 more"]


def test_the_file_has_a_line_for_each_pair_with_all_numbers(tmp_path: Path) -> None:
    Balance([DAMAGED, WHOLE]).write(tmp_path / "ledger.csv")
    assert (tmp_path / "ledger.csv").read_text().splitlines() == [
        "sender,receiver,sent,delivered,refused,in_flight,unbalanced,lost,duplicated,reordered,corrupted,misdelivered",
        "ann,bob,5,3,1,1,0,,,,,",
        'cat,dan,9,5,0,0,0,"2-4, 7",,,,',
    ]


def test_the_table_of_a_ledger_that_balances_is_an_equation() -> None:
    assert ledger_table(Balance([WHOLE, WHOLE])) == (
        "Delivery ledger (2 pairs)\n"
        "  sent 10 = delivered 6 + refused 2 + in flight 2\n"
        "  lost 0, duplicated 0, reordered 0, corrupted 0, misdelivered 0"
    )


def test_the_table_says_what_the_equation_lacks_and_names_the_faults() -> None:
    assert ledger_table(Balance([WHOLE, DAMAGED])) == (
        "Delivery ledger (2 pairs)\n"
        "  sent 14 = delivered 8 + refused 1 + in flight 1 + 4: it does not balance\n"
        "  lost 4, duplicated 0, reordered 0, corrupted 0, misdelivered 0\n"
        "  lost: cat -> dan: 2-4, 7"
    )


def test_the_table_says_of_what_there_is_too_much() -> None:
    line = PairBalance("ann", "bob", sent=2, delivered=2, refused=1, in_flight=0, faults={})
    assert ledger_table(Balance([line])) == (
        "Delivery ledger (1 pairs)\n"
        "  sent 2 = delivered 2 + refused 1 + in flight 0 - 1: it does not balance\n"
        "  lost 0, duplicated 0, reordered 0, corrupted 0, misdelivered 0\n"
        "  unbalanced: ann -> bob: 1 refused, and delivered all the same"
    )


def test_the_table_does_not_grow_without_end() -> None:
    table = ledger_table(Balance([DAMAGED] * (FINDINGS + 3))).splitlines()
    assert len(table) == 3 + FINDINGS + 1
    assert table[-1] == "  and 3 more: --ledger FILE writes them all"
