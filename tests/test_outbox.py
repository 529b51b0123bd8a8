"""Outboxes: bounds in bytes, waiting, closing, who may put, and the fate of the Messages in them."""

from typing import Any

import gevent
import pytest
from gevent import Greenlet

from chatserver.transport.outbox import MARK_BYTES, PUT_BYTES, Outbox
from chatserver.transport.states import OutputEvent
from chatserver.transport.turns import PIECE_BYTES, Turn
from protocol import Envelope, PacketType, Run, encode

WRAP = Envelope("alice").wrap


class CountedFate:
    """A fate that counts what it is notified of."""

    def __init__(self) -> None:
        self.sent = 0
        self.lost = 0

    def delivered(self, count: int) -> None:
        self.sent += count

    def dropped(self, count: int) -> None:
        self.lost += count

    @property
    def figures(self) -> tuple[int, int]:
        return self.sent, self.lost


def outbox(limit: int, puts: int = 1, marks: int = 0) -> Outbox:
    """An outbox with room for `limit` bytes in `puts` puts, of which `marks` have a fate."""
    return Outbox(limit + puts * PUT_BYTES + marks * MARK_BYTES, lambda: None)


def waiting(greenlet: "Greenlet[Any, Any]") -> bool:
    gevent.sleep(0)
    gevent.sleep(0)
    return not greenlet.dead


def test_packets_leave_the_outbox_in_order_and_joined() -> None:
    box = outbox(100)
    assert box.put(b"ab")
    assert box.put_each([b"c", b"d"]) == 2
    assert box.take() == b"abcd"
    assert box.take() == b""


def test_bytes_in_flight_count_until_they_are_sent() -> None:
    box = outbox(10)
    box.put(b"x" * 10)
    taken = box.take()
    sender = gevent.spawn(box.put, b"y")
    assert waiting(sender)
    box.sent(len(taken))
    assert sender.get(timeout=5) is True
    assert box.take() == b"y"


def test_the_overhead_of_a_put_is_given_back_when_it_is_taken() -> None:
    box = outbox(4, puts=2)
    box.put(b"12")
    box.put(b"3")
    sender = gevent.spawn(box.put, b"4")
    assert waiting(sender), "there is room for its byte, but not for a third put"
    box.sent(len(box.take()))
    assert sender.get(timeout=5) is True
    box.sent(len(box.take()))
    assert box.put_each([b"1", b"2", b"34"]) == 3, "in one put, so there is room as at first"
    assert box.take() == b"1234"


def test_parts_larger_than_the_outbox_go_through_as_room_is_made() -> None:
    box = outbox(10)
    sender = gevent.spawn(box.put_each, [b"1234", b"5678", b"abcd", b"efgh"])
    received = b""
    while waiting(sender) or not box.empty:
        taken = box.take()
        assert len(taken) <= 10
        received += taken
        box.sent(len(taken))
    assert received == b"12345678abcdefgh"
    assert sender.value == 4


def test_closing_ends_pending_puts_and_they_return_how_much_was_queued() -> None:
    box = outbox(8)
    batch = gevent.spawn(box.put_each, [b"1234", b"5678", b"abcd"])
    single = gevent.spawn(box.put, b"z")
    assert waiting(batch)
    assert waiting(single)
    box.close(b"the end")
    assert batch.get(timeout=5) == 1
    assert single.get(timeout=5) is False
    assert box.take() == b"1234the end"


def test_after_the_first_close_nothing_is_queued_not_even_another_last_packet() -> None:
    box = outbox(100)
    box.close(b"first")
    box.close(b"second")
    assert box.put(b"late") is False
    assert box.put_each([b"late"]) == 0
    assert box.take() == b"first"


def test_an_unreachable_outbox_takes_nothing_more_and_ends_pending_puts() -> None:
    box = outbox(4)
    box.put(b"1234")
    sender = gevent.spawn(box.put, b"5")
    assert waiting(sender)
    box.advance(OutputEvent.SEND_FAILED)
    assert sender.get(timeout=5) is False
    assert box.put_each([b"6"]) == 0
    assert not box.closed, "what its client sent before is still handled"


def test_the_writer_is_called_once_until_it_takes() -> None:
    calls: list[bool] = []
    box = Outbox(1000, lambda: calls.append(True))
    box.put(b"a")
    box.put_each([b"b", b"c"])
    assert calls == [True]
    assert box.is_due
    assert box.take() == b"abc"
    assert not box.is_due
    box.close(b"d")
    assert calls == [True, True]


def deliver(box: Outbox, messages: list[bytes], fate: CountedFate, turn: Turn | None = None) -> int:
    return box.deliver(Run(b"".join(messages), len(messages)), fate, turn or Turn())


# In line


def test_senders_that_wait_are_served_in_turn_a_piece_each() -> None:
    box, fate = outbox(1000), CountedFate()
    box.put(b"x" * 1000)
    floods = [WRAP(letter * 90) for letter in (b"a", b"b", b"c")]
    flooders = [gevent.spawn(deliver, box, [flood] * 200, fate) for flood in floods]
    gevent.sleep(0)
    honest = gevent.spawn(deliver, box, [WRAP(b"honest")], fate)
    gevent.sleep(0)
    stream = b""
    while b"honest" not in stream:
        stream += drained(box)
    before = stream.partition(b"honest")[0]
    for flood in floods:
        assert PIECE_BYTES <= before.count(flood) * len(flood) < PIECE_BYTES + len(flood)
    assert honest.get(timeout=5) == 1
    gevent.killall(flooders)


def test_who_comes_when_others_wait_does_not_overtake_them() -> None:
    box, fate = outbox(1000), CountedFate()
    box.put(b"x" * 1000)
    first = gevent.spawn(deliver, box, [b"first"], fate)
    gevent.sleep(0)
    box.sent(len(box.take()))  # there is room, and the first one has not run yet
    assert not box.offer(b"offered", 1, fate)
    assert not box.has_room_for(Run(b"second", 1))
    second = gevent.spawn(deliver, box, [b"second"], fate)
    gevent.joinall([first, second], timeout=5, raise_error=True)
    assert box.take() == b"firstsecond"
    assert box.offer(b"offered", 1, fate)


def test_the_rest_of_a_sender_that_is_ended_or_has_left_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatserver.transport.turns.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("chatserver.transport.turns.PATIENCE_SECONDS", 0.05)
    box, fate = outbox(1000), CountedFate()
    box.put(b"x" * 1000)
    ended, left, stays = Turn(), Turn(lambda: True), Turn()
    senders = [gevent.spawn(deliver, box, [WRAP(b"a"), WRAP(b"b")], fate, turn) for turn in (ended, left, stays)]
    gevent.sleep(0)
    ended.end()
    assert senders[0].get(timeout=5) == 0
    assert senders[1].get(timeout=5) == 0
    assert waiting(senders[2])
    drained(box)
    assert senders[2].get(timeout=5) == 2


def test_all_who_wait_in_line_return_when_the_outbox_is_closed() -> None:
    box, fate = outbox(1000), CountedFate()
    box.put(b"x" * 1000)
    senders = [gevent.spawn(deliver, box, [WRAP(b"a"), WRAP(b"b")], fate) for _ in range(5)]
    gevent.sleep(0)
    box.close()
    assert [sender.get(timeout=5) for sender in senders] == [0] * 5


def drained(box: Outbox) -> bytes:
    """What is in it, sent; who waits has been able to go on."""
    stream = box.take()
    box.sent(len(stream))
    gevent.sleep(0)
    gevent.sleep(0)
    return stream


# The fate of Messages


def test_messages_are_delivered_when_the_kernel_has_the_last_byte_of_their_put() -> None:
    box, fate = outbox(1000), CountedFate()
    box.put(b"\x09\x00")
    deliver(box, [WRAP(b"one"), WRAP(b"two")], fate)
    box.put(b"\x09\x00")
    stream = box.take()
    box.sent(len(stream) - 3)
    assert fate.figures == (0, 0)
    box.sent(1)
    assert fate.figures == (2, 0)
    box.sent(2)
    assert fate.figures == (2, 0)
    assert box.size == 0


def test_without_room_for_all_each_message_is_put_and_delivered_by_itself() -> None:
    box, fate = outbox(20, marks=1), CountedFate()
    sender = gevent.spawn(deliver, box, [WRAP(b"one"), WRAP(b"two")], fate)
    assert waiting(sender)
    box.sent(len(box.take()))
    assert fate.figures == (1, 0)
    assert sender.get(timeout=5) == 2
    box.sent(len(box.take()))
    assert fate.figures == (2, 0)


@pytest.mark.parametrize("sent", range(60))
def test_a_stream_cut_anywhere_has_delivered_its_whole_messages(sent: int) -> None:
    run, fate = [WRAP(b"one"), WRAP(b"three"), WRAP(b"")], CountedFate()
    box = outbox(1000, puts=3)
    box.put(encode(PacketType.PONG, b"?"))
    deliver(box, run, fate)
    box.put(encode(PacketType.PONG, b"?"))
    stream = box.take()
    sent = min(sent, len(stream))
    box.sent(sent)
    lost = box.drop(stream, sent)
    whole = sum(3 + len(b"".join(run[: number + 1])) <= sent for number in range(3))
    assert fate.figures == (whole, 3 - whole)
    assert lost == len(stream) - sent
    assert box.size == 0


def test_a_part_of_a_message_in_several_packets_is_not_delivered() -> None:
    split, fate = WRAP(b"x" * 136), CountedFate()
    box = outbox(1000)
    deliver(box, [split], fate)
    stream = box.take()
    box.sent(150)
    box.drop(stream, 150)
    assert fate.figures == (0, 1)


def test_the_queue_is_dropped_with_the_stream_in_flight_except_the_last_packet() -> None:
    box, first, second = outbox(1000, puts=3), CountedFate(), CountedFate()
    deliver(box, [WRAP(b"one"), WRAP(b"two")], first)
    stream = box.take()
    box.sent(2)
    deliver(box, [WRAP(b"three")], second)
    box.close(b"the end")
    assert box.drop(stream, len(WRAP(b"one")), keep=7) == len(WRAP(b"two")) + len(WRAP(b"three"))
    assert (first.figures, second.figures) == ((0, 1), (0, 1))
    box.sent(len(WRAP(b"one")) - 2)
    assert first.figures == (1, 1)
    assert box.size == 7
    box.sent(7)
    assert box.size == 0


# Reserved


def test_a_reserved_outbox_takes_only_from_its_owner_and_others_wait() -> None:
    box, fate = outbox(1000, puts=9), CountedFate()
    with box.reserved():
        other = gevent.spawn(deliver, box, [b"other"], fate)
        assert waiting(other)
        assert box.put(b"own,")
        assert box.put_each([b"and,", b"own,"]) == 2
        assert waiting(other)
    assert other.get(timeout=5) == 1
    assert box.take() == b"own,and,own,other"


def test_a_put_that_waits_for_room_also_waits_while_the_outbox_is_reserved() -> None:
    box, fate = outbox(5, marks=1), CountedFate()
    box.put(b"12345")
    other = gevent.spawn(deliver, box, [b"other"], fate)
    assert waiting(other)
    with box.reserved():
        box.sent(len(box.take()))
        assert waiting(other)
        box.put(b"own")
        box.sent(len(box.take()))
        assert waiting(other)
    assert other.get(timeout=5) == 1


def test_waiting_for_a_reserved_outbox_ends_when_it_is_freed_or_closed() -> None:
    box = outbox(10)
    with box.reserved():
        waiters = [gevent.spawn(box.wait_until_free) for _ in range(2)]
        assert waiting(waiters[0])
    gevent.joinall(waiters, timeout=5, raise_error=True)
    with box.reserved():
        waiter = gevent.spawn(box.wait_until_free)
        assert waiting(waiter)
        box.close()
        waiter.get(timeout=5)


# Notices


def test_notices_follow_what_is_queued_and_are_taken_last() -> None:
    said = [b"new", b"", b"old"]
    box = outbox(10)
    box.notices.append(lambda: said.pop())
    box.put(b"queued ")
    assert box.take() == b"queued old"
    assert box.size == len(b"queued old")
    assert box.take() == b""
    assert box.take() == b"new"
    box.sent(len(b"queued oldnew"))
    assert box.size == 0


def test_a_notice_calls_the_writer_and_needs_no_room() -> None:
    calls: list[bool] = []
    said: list[bytes] = []
    box = Outbox(PUT_BYTES + 1, lambda: calls.append(True))
    box.announce()
    assert not calls, "there is no source of notices"
    box.notices.append(lambda: said.pop() if said else b"")
    box.put(b"x")
    said.append(b"a long notice")
    box.announce()
    assert calls == [True], "there was something to take already"
    assert box.take() == b"xa long notice"
    assert box.take() == b""
    said.append(b"another")
    box.announce()
    assert calls == [True, True]
    assert box.take() == b"another"


def test_a_reserved_or_closed_outbox_yields_no_notices() -> None:
    puts: list[bool] = []
    box = Outbox(100 + 2 * PUT_BYTES, lambda: puts.append(True))
    box.notices.append(lambda: b"notice")
    with box.reserved():
        box.put(b"own ")
        assert box.take() == b"own "
        box.announce()
        assert box.take() == b""
        puts.clear()
    assert puts, "the writer is called, since there may be notices now"
    assert box.take() == b"notice"
    box.close(b"last")
    assert box.take() == b"last"
