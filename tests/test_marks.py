"""How far what one wrote has come, by the receipts for it."""

import pytest

from chatterminal.marks import Marks, Stage
from client import ReceiptReceived
from protocol import Level, Reason

BOB, CAROL = 1, 2


def send(marks: Marks, *numbers: int, to: int = BOB) -> None:
    """A text as Messages of these numbers."""
    marks.begin()
    marks.end(to, range(numbers[0], numbers[-1] + 1))


def stored(first: int, last: int) -> ReceiptReceived:
    return ReceiptReceived(Level.STORED, first, last)


def delivered(first: int, last: int) -> ReceiptReceived:
    return ReceiptReceived(Level.DELIVERED, first, last)


def test_a_partner_without_messages_has_no_status() -> None:
    marks = Marks()
    send(marks, 1)
    assert marks.stage(CAROL)[0] is Stage.NOTHING


def test_a_text_is_as_far_as_the_last_of_its_messages() -> None:
    marks = Marks()
    send(marks, 1, 3)
    assert marks.stage(BOB) == (Stage.SENT, 1)
    marks.reach(stored(1, 2))
    assert marks.stage(BOB) == (Stage.SENT, 1)
    marks.reach(stored(3, 3))
    assert marks.stage(BOB) == (Stage.STORED, 1)
    marks.reach(delivered(2, 3))
    assert marks.stage(BOB) == (Stage.STORED, 1)
    marks.reach(delivered(1, 1))
    assert marks.stage(BOB)[0] is Stage.DELIVERED
    marks.reach(stored(1, 3))
    assert marks.stage(BOB)[0] is Stage.DELIVERED


def test_the_slowest_texts_are_counted() -> None:
    marks = Marks()
    for number in range(1, 6):
        send(marks, number)
    marks.reach(delivered(5, 5))
    assert marks.stage(BOB) == (Stage.SENT, 4)
    marks.reach(stored(1, 3))
    assert marks.stage(BOB) == (Stage.SENT, 1)
    assert marks.unconfirmed == 1
    marks.reach(stored(4, 5))
    assert marks.stage(BOB) == (Stage.STORED, 4)
    marks.reach(delivered(1, 4))
    assert marks.stage(BOB)[0] is Stage.DELIVERED


def test_each_partner_has_marks_of_their_own() -> None:
    marks = Marks()
    send(marks, 1, to=BOB)
    send(marks, 2, to=CAROL)
    marks.reach(delivered(2, 2))
    assert marks.stage(BOB) == (Stage.SENT, 1)
    assert marks.stage(CAROL)[0] is Stage.DELIVERED


def test_a_receipt_may_arrive_before_the_numbers_are_known() -> None:
    marks = Marks()
    marks.begin()
    marks.reach(delivered(1, 2))
    marks.end(BOB, range(1, 3))
    assert marks.stage(BOB)[0] is Stage.DELIVERED
    send(marks, 3)
    assert marks.stage(BOB) == (Stage.SENT, 1)


def test_a_range_may_be_far_larger_than_what_was_sent() -> None:
    marks = Marks()
    send(marks, 1)
    marks.reach(delivered(1, 2**32 - 1))
    assert marks.stage(BOB)[0] is Stage.DELIVERED


def test_messages_without_a_receipt_are_the_refused_ones() -> None:
    marks = Marks()
    for number in (1, 2, 3):
        send(marks, number)
    marks.refuse(Reason.MAILBOX_FULL)
    assert marks.stage(BOB) == (Stage.SENT, 3)
    marks.reach(stored(1, 2))
    assert marks.stage(BOB) == (Stage.STORED, 2)
    assert marks.unconfirmed == 0
    marks.reach(delivered(1, 2))
    assert marks.stage(BOB)[0] is Stage.REFUSED
    send(marks, 4)
    marks.reach(delivered(4, 4))
    assert marks.stage(BOB)[0] is Stage.DELIVERED


def test_an_error_may_arrive_before_the_whole_text_is_sent() -> None:
    marks = Marks()
    marks.begin()
    marks.refuse(Reason.USER_NOT_ONLINE)
    marks.end(BOB, range(1, 2))
    assert marks.stage(BOB)[0] is Stage.REFUSED


@pytest.mark.parametrize("reason", [Reason.MAILBOX_FULL, "Oops"])
def test_an_error_that_answers_no_message_marks_none(reason: str) -> None:
    marks = Marks()
    marks.refuse(reason)
    send(marks, 1)
    marks.refuse("Oops")
    assert marks.stage(BOB) == (Stage.SENT, 1)


def test_a_packet_that_did_not_go_out_has_no_mark() -> None:
    marks = Marks()
    marks.begin()
    marks.end(BOB, range(0))
    assert marks.stage(BOB)[0] is Stage.NOTHING
    assert marks.unconfirmed == 0


@pytest.mark.parametrize(
    ("stage", "count", "encoding", "words"),
    [
        (Stage.NOTHING, 1, "utf-8", ""),
        (Stage.SENT, 1, "utf-8", "… sent"),
        (Stage.STORED, 3, "utf-8", "✓ 3 stored"),
        (Stage.STORED, 3, "latin-1", "3 stored"),
        (Stage.DELIVERED, 1, "ascii", "delivered"),
    ],
)
def test_a_status_is_a_mark_a_count_and_a_word(stage: Stage, count: int, encoding: str, words: str) -> None:
    assert stage.describe(count, encoding) == words
