"""Outboxes and who is online: bounds in bytes, waiting, closing."""

from typing import Any

import gevent
import pytest
from gevent import Greenlet

from chatserver.relay import PUT_BYTES, Member, Outbox, Relay


def outbox(limit: int, puts: int = 1) -> Outbox:
    """With room for so many bytes in so many puts."""
    return Outbox(limit + puts * PUT_BYTES, lambda: None)


def waiting(greenlet: "Greenlet[Any, Any]") -> bool:
    gevent.sleep(0)
    gevent.sleep(0)
    return not greenlet.dead


def test_what_is_put_comes_out_in_order_and_joined() -> None:
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


def test_what_a_put_costs_besides_its_bytes_is_given_back_when_it_is_taken() -> None:
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


def test_a_batch_larger_than_the_outbox_goes_through_as_room_is_made() -> None:
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


def test_closing_tells_those_who_wait_how_much_went_in() -> None:
    box = outbox(8)
    batch = gevent.spawn(box.put_each, [b"1234", b"5678", b"abcd"])
    single = gevent.spawn(box.put, b"z")
    assert waiting(batch)
    assert waiting(single)
    box.close(b"the end")
    assert batch.get(timeout=5) == 1
    assert single.get(timeout=5) is False
    assert box.take() == b"1234the end"


def test_after_the_first_close_nothing_goes_in_not_even_another_last_packet() -> None:
    box = outbox(100)
    box.close(b"first")
    box.close(b"second")
    assert box.put(b"late") is False
    assert box.put_each([b"late"]) == 0
    assert box.take() == b"first"


def test_an_outbox_that_leads_nowhere_takes_nothing_more_and_lets_go_of_those_who_wait() -> None:
    box = outbox(4)
    box.put(b"1234")
    sender = gevent.spawn(box.put, b"5")
    assert waiting(sender)
    box.lead_nowhere()
    assert sender.get(timeout=5) is False
    assert box.put_each([b"6"]) == 0
    assert not box.closed, "what its client sent before is still handled"


def test_the_writer_is_told_of_each_put() -> None:
    puts: list[bool] = []
    box = Outbox(1000, lambda: puts.append(True))
    box.put(b"a")
    box.put_each([b"b", b"c"])
    box.close(b"d")
    assert len(puts) == 3


def member(user_id: int) -> Member:
    return Member(user_id, b"entry", outbox(100))


def test_everyone_is_listed_in_ascending_id_order() -> None:
    relay = Relay()
    for user_id in (3, 1, 2):
        relay.join(member(user_id))
    assert [one.user_id for one in relay.everyone()] == [1, 2, 3]


def test_a_member_whose_outbox_is_closed_is_no_longer_online() -> None:
    relay = Relay()
    one = member(1)
    relay.join(one)
    one.outbox.close()
    assert not relay.is_online(1)
    assert relay.everyone() == []
    assert relay.deliver(1, [b"x"]) == 0


def test_a_member_who_cannot_be_reached_is_no_longer_online() -> None:
    relay = Relay()
    one = member(1)
    relay.join(one)
    one.outbox.lead_nowhere()
    assert not relay.is_online(1)
    assert relay.deliver(1, [b"x"]) == 0


def test_leaving_late_does_not_take_the_successor_offline() -> None:
    relay = Relay()
    old, new = member(1), member(1)
    relay.join(old)
    old.outbox.close()
    relay.join(new)
    relay.leave(old)
    assert relay.is_online(1)
    relay.leave(new)
    assert not relay.is_online(1)


@pytest.mark.parametrize("user_id", [0, 5])
def test_nobody_is_online_under_an_id_that_never_joined(user_id: int) -> None:
    relay = Relay()
    assert not relay.is_online(user_id)
    assert relay.deliver(user_id, [b"x"]) == 0
