"""What the load tester makes of receipts: which of them cannot be true."""

from hypothesis import given
from hypothesis import strategies as st

from loadtest.core.receipts import KEPT, ReceiptLedger

STORED, DELIVERED = "stored", "delivered"


def sent(count: int) -> ReceiptLedger[str, int]:
    """So many messages have been sent; of each its number is what is known."""
    receipts: ReceiptLedger[str, int] = ReceiptLedger((STORED, DELIVERED))
    for number in range(1, count + 1):
        receipts.expect(number, number)
    return receipts


@given(
    count=st.integers(1, 40),
    refused=st.sets(st.integers(1, 40)),
    cuts=st.sets(st.integers(2, 40)),
    data=st.data(),
)
def test_truthful_receipts_in_any_order_stand_for_each_message_once(
    count: int, refused: set[int], cuts: set[int], data: st.DataObject
) -> None:
    """Ranges end at refused messages, and at `cuts`; Errors come before, after and in between."""
    ranges: list[tuple[int, int]] = []
    for number in range(1, count + 1):
        if number not in refused:
            joins = ranges and ranges[-1][1] == number - 1 and number not in cuts
            ranges.append((ranges.pop()[0], number) if joins else (number, number))
    receipts = sent(count)
    kept = [number for number in range(1, count + 1) if number not in refused]
    said = [(level, *numbers) for level in (STORED, DELIVERED) for numbers in ranges]
    found: dict[str, list[int]] = {STORED: [], DELIVERED: []}
    for event in data.draw(st.permutations([*said, *[None] * (count - len(kept))])):
        if event is None:
            assert receipts.refuse() == []
        else:
            messages, wrong = receipts.reach(*event)
            assert wrong == ""
            found[event[0]] += messages
    assert sorted(found[STORED]) == sorted(found[DELIVERED]) == kept


def test_a_receipt_for_unsent_messages_is_wrong_but_counts_for_the_sent_ones() -> None:
    assert sent(2).reach(STORED, 2, 4) == ([2], "for message 4, when 2 had been sent")
    assert sent(0).reach(STORED, 1, 2**32 - 1) == ([], f"for message {2**32 - 1}, when 0 had been sent")


def test_a_second_receipt_of_the_same_level_is_wrong_and_one_of_the_other_level_is_not() -> None:
    receipts = sent(3)
    assert receipts.reach(STORED, 1, 2) == ([1, 2], "")
    assert receipts.reach(STORED, 2, 3) == ([3], "for messages 2 to 3, some of which had one before")
    assert receipts.reach(DELIVERED, 1, 3) == ([1, 2, 3], "")


def test_more_receipts_than_unrefused_messages_are_wrong_in_any_order() -> None:
    receipts = sent(3)
    assert receipts.refuse() == []
    assert receipts.reach(STORED, 1, 3) == ([1, 2, 3], "for messages 1 to 3, although 1 were refused")
    assert receipts.reach(DELIVERED, 1, 2) == ([1, 2], "")
    assert receipts.refuse() == [STORED, DELIVERED]


def test_one_such_receipt_is_one_failure_and_a_second_one_another() -> None:
    receipts = sent(4)
    receipts.refuse()
    receipts.refuse()
    assert receipts.reach(STORED, 1, 2)[1] == ""
    assert receipts.reach(STORED, 3, 3)[1] == "for messages 3 to 3, although 2 were refused"
    receipts.expect(5, 5)
    assert receipts.reach(STORED, 5, 5)[1] == ""
    assert receipts.reach(STORED, 4, 4)[1] == "for messages 4 to 4, although 2 were refused"


def test_of_many_messages_the_last_ones_are_remembered_and_of_the_others_nothing_is_said() -> None:
    receipts = sent(KEPT + 2)
    assert receipts.reach(STORED, 1, 4) == ([3, 4], "")
    assert receipts.reach(STORED, 1, 2) == ([], "")
    assert receipts.reach(STORED, 4, 5) == ([5], "for messages 4 to 5, some of which had one before")
    assert len(receipts.reach(STORED, 6, KEPT + 2)[0]) == KEPT - 3
