"""Marks: where Messages lie in an outbox's stream, and when their fates are notified."""

import pytest

from chatserver.transport.marks import Marks
from protocol import Envelope

WRAP = Envelope("alice").wrap
ONE, TWO, THREE = WRAP(b"one"), WRAP(b"twos"), WRAP(b"three")


class RecordedFate:
    """A fate that records each notification."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def delivered(self, count: int) -> None:
        self.calls.append(("delivered", count))

    def dropped(self, count: int) -> None:
        self.calls.append(("dropped", count))


def marks_of(*puts: tuple[bytes, int, RecordedFate | None]) -> Marks:
    """Marks after these puts: bytes, how many Messages they are, and their fate if they have one."""
    marks = Marks()
    for packets, count, fate in puts:
        begin, marks.length = marks.length, marks.length + len(packets)
        if fate:
            marks.append((begin, marks.length, count, fate))
    return marks


def test_messages_are_delivered_once_the_last_byte_of_their_put_is_sent() -> None:
    fate = RecordedFate()
    marks = marks_of((b"pong", 0, None), (ONE + TWO, 2, fate), (b"pong", 0, None))
    assert marks.sent(4 + len(ONE + TWO) - 1) == 0
    assert fate.calls == []
    assert marks.sent(1) == 1
    assert fate.calls == [("delivered", 2)]
    assert marks.sent(4) == 0
    assert not marks


def test_several_puts_sent_at_once_are_delivered_in_order() -> None:
    fate = RecordedFate()
    marks = marks_of((ONE, 1, fate), (TWO + THREE, 2, fate), (ONE, 1, fate))
    assert marks.sent(len(ONE + TWO + THREE)) == 2
    assert fate.calls == [("delivered", 1), ("delivered", 2)]
    assert len(marks) == 1


@pytest.mark.parametrize("end", range(len(ONE + TWO + THREE)))
def test_a_put_cut_anywhere_keeps_its_whole_messages_and_drops_the_others(end: int) -> None:
    fate = RecordedFate()
    marks = marks_of((ONE + TWO + THREE, 3, fate))
    whole = (end >= len(ONE)) + (end >= len(ONE + TWO))
    assert marks.drop(ONE + TWO + THREE, 0, end) == (0 if whole else 1)
    assert fate.calls == [("dropped", 3 - whole)]
    assert marks.length == end
    marks.sent(end)
    assert fate.calls[1:] == ([("delivered", whole)] if whole else [])


def test_a_single_message_of_several_packets_is_dropped_when_any_of_it_is_cut() -> None:
    fate, split = RecordedFate(), WRAP(b"x" * 136)
    marks = marks_of((split, 1, fate))
    assert marks.drop(split, 0, len(split) - 1) == 1
    assert fate.calls == [("dropped", 1)]


def test_puts_behind_the_cut_are_dropped_from_the_last_one_on() -> None:
    first, second, third = RecordedFate(), RecordedFate(), RecordedFate()
    marks = marks_of((ONE, 1, first), (TWO, 1, second), (THREE, 1, third))
    marks.sent(len(ONE))
    assert marks.drop(TWO, len(ONE), 3) == 2  # the stream in flight begins after ONE, and THREE is still queued
    assert (first.calls, second.calls, third.calls) == ([("delivered", 1)], [("dropped", 1)], [("dropped", 1)])
    assert not marks
    assert marks.length == len(ONE) + 3
