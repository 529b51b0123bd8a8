"""The delivery ledger: what it finds, what it excuses, and what it cannot know."""

import pytest

from loadtest.core.balance import Fault, PairBalance
from loadtest.core.ledger import STAMP_BYTES, Ledger, Stamp, decode_stamp, encode_stamp
from loadtest.core.pair import AllowedRepeat, FaultFound


class Clock:
    """Stands still until it is set."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def ledger_of(*online: str) -> Ledger:
    ledger = Ledger(Clock())
    for name in online:
        ledger.connect(name)
    return ledger


def send(ledger: Ledger, count: int = 1, sender: str = "ann", receiver: str = "bob") -> list[str]:
    return [ledger.send(sender, receiver, 0.0) for _ in range(count)]


def receive(ledger: Ledger, *texts: str, sender: str = "ann", receiver: str = "bob") -> list[str]:
    """What was found to be wrong with each of those that should not have arrived."""
    found = []
    for text in texts:
        try:
            ledger.receive(sender, receiver, text)
        except FaultFound as fault:
            found.append(str(fault))
    return found


def line(ledger: Ledger, sender: str = "ann", receiver: str = "bob") -> PairBalance:
    return next(line for line in ledger.balance().pairs if (line.sender, line.receiver) == (sender, receiver))


def findings(ledger: Ledger) -> list[str]:
    return ledger.balance().findings()


# Stamps


def test_a_message_is_as_long_as_it_was_ordered() -> None:
    ledger = ledger_of("ann", "bob")
    for size in (STAMP_BYTES, 100, 65_536):
        text = ledger.send("ann", "bob", 1.5, size)
        assert len(text.encode()) == size
        assert receive(ledger, text) == []


def test_a_stamp_of_forty_bytes_is_enough_for_long_names_and_long_runs() -> None:
    stamp = Stamp("load-99999", 999_999_999, 7 * 24 * 3600 * 10**6)
    assert decode_stamp(encode_stamp(stamp, "load-99998", STAMP_BYTES), "load-99998") == stamp


def test_a_message_that_is_too_short_for_its_stamp_is_not_counted_as_sent() -> None:
    ledger = ledger_of("ann", "bob")
    with pytest.raises(ValueError, match="'ann 1 0 ' and a checksum do not fit 15 bytes"):
        ledger.send("ann", "bob", 0.0, 15)
    assert line(ledger).sent == 0


def test_a_name_with_a_space_is_refused_before_anything_is_sent() -> None:
    ledger = ledger_of("ann", "bob")
    with pytest.raises(ValueError, match="the name has a space"):
        ledger.send("ann lee", "bob", 0.0)


@pytest.mark.parametrize("text", ["", "hello", "a b c", "bob 1 0 ", "bob one 0 12345678", "bob 1 0 12345678", "\ud800"])
def test_a_text_that_is_no_stamped_message_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"has no stamp|is not as it was sent to 'bob'"):
        decode_stamp(text, "bob")


def test_every_flipped_bit_of_a_message_is_noticed() -> None:
    text = encode_stamp(Stamp("ann", 12, 345), "bob", STAMP_BYTES)
    for place, character in enumerate(text):
        for bit in range(7):
            damaged = text[:place] + chr(ord(character) ^ 1 << bit) + text[place + 1 :]
            with pytest.raises(ValueError, match=r"has no stamp|is not as it was sent to 'bob'"):
                decode_stamp(damaged, "bob")


def test_latency_counts_from_when_the_message_was_due() -> None:
    clock = Clock()
    clock.seconds = 1000.0
    ledger = Ledger(clock)
    text = ledger.send("ann", "bob", due=1000.25)
    clock.seconds = 1002.0
    assert ledger.receive("ann", "bob", text) == pytest.approx(1.75)


# Both ends stay online


def test_messages_that_arrive_in_order_balance() -> None:
    ledger = ledger_of("ann", "bob")
    assert receive(ledger, *send(ledger, 3)) == []
    assert line(ledger) == PairBalance("ann", "bob", sent=3, delivered=3, refused=0, in_flight=0, faults={})


def test_a_user_that_writes_to_itself_is_a_pair_like_any_other() -> None:
    ledger = ledger_of("ann")
    texts = send(ledger, 3, receiver="ann")
    assert ledger.pending("ann") == 3
    receive(ledger, texts[0], texts[2], receiver="ann")
    assert ledger.pending("ann") == 0
    assert findings(ledger) == ["lost: ann -> ann: 2"]


def test_a_message_that_was_lost_is_named_with_its_pair_and_number() -> None:
    ledger = ledger_of("ann", "bob")
    first, _, third = send(ledger, 3)
    receive(ledger, first, third)
    assert findings(ledger) == ["lost: ann -> bob: 2"]
    assert line(ledger).delivered == 2


def test_the_last_message_is_lost_if_it_never_arrives() -> None:
    ledger = ledger_of("ann", "bob")
    receive(ledger, send(ledger, 2)[0])
    assert findings(ledger) == ["lost: ann -> bob: 2"]


def test_a_message_that_arrives_twice_is_duplicated_and_delivered_once() -> None:
    ledger = ledger_of("ann", "bob")
    first, second = send(ledger, 2)
    assert receive(ledger, first, second, first, second, first) == ["duplicated"] * 3
    assert line(ledger).count(Fault.DUPLICATED) == 3
    assert line(ledger).delivered == 2
    assert set(line(ledger).faults) == {"duplicated"}


def test_a_message_that_others_have_overtaken_is_reordered_and_no_longer_lost() -> None:
    ledger = ledger_of("ann", "bob")
    first, second, third, fourth = send(ledger, 4)
    assert receive(ledger, first, fourth, third, second) == []
    assert findings(ledger) == ["reordered: ann -> bob: 2-3"]
    assert line(ledger).delivered == 4


def test_a_reordered_message_that_arrives_again_is_duplicated() -> None:
    ledger = ledger_of("ann", "bob")
    first, second = send(ledger, 2)
    assert receive(ledger, second, first, first) == ["duplicated"]
    assert findings(ledger) == ["duplicated: ann -> bob: 1", "reordered: ann -> bob: 1"]


def test_a_corrupted_message_is_named_with_the_number_that_was_expected() -> None:
    ledger = ledger_of("ann", "bob")
    first, second, third = send(ledger, 3)
    assert receive(ledger, first, second.replace(".", ","), third) == ["corrupted"]
    assert findings(ledger) == ["corrupted: ann -> bob: 2"]
    assert line(ledger).unbalanced == 0


def test_which_message_was_corrupted_is_a_guess_where_others_before_it_are_missing() -> None:
    ledger = ledger_of("ann", "bob")
    first, _, third, fourth = send(ledger, 4)
    receive(ledger, first, third[:-1], fourth)
    assert findings(ledger) == ["lost: ann -> bob: 3", "corrupted: ann -> bob: 2"]
    assert line(ledger).unbalanced == 0


def test_an_unexpected_corrupted_message_has_number_0() -> None:
    ledger = ledger_of("ann", "bob")
    assert receive(ledger, "hello") == ["corrupted"]
    receive(ledger, send(ledger)[0][:-1])
    assert findings(ledger) == ["corrupted: ann -> bob: 0-1"]
    assert line(ledger).unbalanced == 0


def test_a_message_at_somebody_else_is_misdelivered_there_and_lost_here() -> None:
    ledger = ledger_of("ann", "bob", "cat")
    assert receive(ledger, *send(ledger), receiver="cat") == ["misdelivered"]
    assert findings(ledger) == ["lost: ann -> bob: 1", "misdelivered: ann -> cat: 1"]


def test_messages_that_change_places_between_receivers_are_misdelivered_even_with_the_same_number() -> None:
    ledger = ledger_of("ann", "bob", "cat")
    for_bob, for_cat = send(ledger) + send(ledger, receiver="cat")
    assert receive(ledger, for_cat) + receive(ledger, for_bob, receiver="cat") == ["misdelivered", "misdelivered"]
    assert line(ledger).faults == line(ledger, "ann", "cat").faults == {"lost": [[1, 1]], "misdelivered": [[1, 1]]}


def test_a_message_under_a_wrong_name_is_corrupted() -> None:
    ledger = ledger_of("ann", "bob", "cat")
    assert receive(ledger, *send(ledger), sender="cat") == ["corrupted"]
    assert findings(ledger) == ["lost: ann -> bob: 1", "corrupted: cat -> bob: 0"]


def test_a_message_of_an_earlier_ledger_is_misdelivered() -> None:
    assert receive(ledger_of("ann", "bob"), *send(ledger_of("ann", "bob"))) == ["misdelivered"]


# Connections end and begin


def test_messages_missing_when_the_receiver_ends_are_in_flight() -> None:
    ledger = ledger_of("ann", "bob")
    receive(ledger, send(ledger, 3)[0])
    ledger.disconnect("bob")
    assert line(ledger) == PairBalance("ann", "bob", sent=3, delivered=1, refused=0, in_flight=2, faults={})


def test_messages_to_somebody_who_is_not_online_may_be_missing() -> None:
    ledger = ledger_of("ann", "bob")
    ledger.disconnect("bob")
    receive(ledger, send(ledger, 3)[1])  # the server has not noticed yet
    ledger.settle("ann")
    assert line(ledger) == PairBalance("ann", "bob", sent=3, delivered=1, refused=0, in_flight=2, faults={})


def test_a_message_to_a_user_who_never_logged_in_may_be_missing() -> None:
    ledger = ledger_of("ann")
    send(ledger)
    assert ledger.pending() == 0
    assert line(ledger).in_flight == 1


def test_both_ends_must_be_online_for_a_message_to_be_lost() -> None:
    ledger = ledger_of("ann", "bob")
    receive(ledger, *send(ledger))
    ledger.disconnect("bob")
    ledger.disconnect("ann")
    ledger.connect("ann")
    send(ledger)
    assert line(ledger).in_flight == 1


@pytest.mark.parametrize("who", ["ann", "bob"])
def test_a_gap_across_a_new_connection_of_either_end_is_in_flight(who: str) -> None:
    ledger = ledger_of("ann", "bob")
    send(ledger, 2)
    ledger.disconnect(who)
    send(ledger)
    ledger.connect(who)
    assert receive(ledger, *send(ledger)) == []
    assert line(ledger) == PairBalance("ann", "bob", sent=4, delivered=1, refused=0, in_flight=3, faults={})


def test_a_gap_is_in_flight_even_if_what_jumps_over_it_was_sent_before_the_connection_ended() -> None:
    ledger = ledger_of("ann", "bob")
    _, second = send(ledger, 2)  # the first is written to a connection that ends, the second to the one that follows
    ledger.disconnect("bob")
    ledger.connect("bob")
    receive(ledger, second)
    assert findings(ledger) == []
    assert line(ledger).in_flight == 1


def test_a_message_lost_before_a_connection_ended_stays_lost() -> None:
    ledger = ledger_of("ann", "bob")
    receive(ledger, send(ledger, 2)[1])
    ledger.disconnect("bob")
    ledger.connect("bob")
    receive(ledger, *send(ledger))
    assert findings(ledger) == ["lost: ann -> bob: 1"]


def test_a_new_connection_excuses_nothing_that_was_sent_after_it_began() -> None:
    ledger = ledger_of("ann", "bob")
    send(ledger)
    ledger.disconnect("bob")
    ledger.connect("bob")
    receive(ledger, send(ledger, 2)[1])
    assert findings(ledger) == ["lost: ann -> bob: 2"]
    assert line(ledger).in_flight == 1


def test_a_message_that_arrives_late_after_an_end_is_delivered() -> None:
    ledger = ledger_of("ann", "bob")
    texts = send(ledger, 2)
    ledger.disconnect("ann")
    assert receive(ledger, *texts) == []
    assert line(ledger) == PairBalance("ann", "bob", sent=2, delivered=2, refused=0, in_flight=0, faults={})


def test_an_end_elsewhere_excuses_nothing() -> None:
    ledger = ledger_of("ann", "bob", "cat")
    texts = send(ledger, 2)
    ledger.disconnect("cat")
    receive(ledger, texts[1])
    assert findings(ledger) == ["lost: ann -> bob: 1"]


def test_nobody_knows_whether_a_doubtful_message_was_sent_so_it_is_not_lost() -> None:
    ledger = ledger_of("ann", "bob")
    send(ledger)
    ledger.doubt("ann", "bob")
    assert line(ledger).in_flight == 1
    receive(ledger, *send(ledger))
    assert line(ledger) == PairBalance("ann", "bob", sent=2, delivered=1, refused=0, in_flight=1, faults={})


def test_a_doubtful_message_that_arrives_is_delivered() -> None:
    ledger = ledger_of("ann", "bob")
    texts = send(ledger)
    ledger.doubt("ann", "bob")
    receive(ledger, *texts)
    assert line(ledger) == PairBalance("ann", "bob", sent=1, delivered=1, refused=0, in_flight=0, faults={})


# Refusals


def test_refused_messages_to_somebody_offline_balance() -> None:
    ledger = ledger_of("ann")
    send(ledger, 2)
    ledger.refuse("ann", "bob")
    ledger.refuse("ann", "bob")
    assert line(ledger) == PairBalance("ann", "bob", sent=2, delivered=0, refused=2, in_flight=0, faults={})


def test_a_refusal_explains_what_a_connection_cut_off_before_it_explains_what_is_lost() -> None:
    ledger = ledger_of("ann", "bob")
    send(ledger)
    ledger.disconnect("bob")
    ledger.connect("bob")
    receive(ledger, send(ledger, 2)[1])
    ledger.refuse("ann", "bob")
    assert line(ledger) == PairBalance(
        "ann", "bob", sent=3, delivered=1, refused=1, in_flight=0, faults={"lost": [[2, 2]]}
    )


def test_which_message_was_refused_is_not_known_so_the_first_that_is_missing_counts_as_refused() -> None:
    ledger = ledger_of("ann", "bob")
    receive(ledger, send(ledger, 4)[2])
    ledger.refuse("ann", "bob")
    assert line(ledger) == PairBalance(
        "ann", "bob", sent=4, delivered=1, refused=1, in_flight=0, faults={"lost": [[2, 2], [4, 4]]}
    )


def test_more_refusals_than_missing_messages_are_unbalanced() -> None:
    ledger = ledger_of("ann", "bob")
    receive(ledger, *send(ledger, 2))
    ledger.refuse("ann", "bob")
    assert line(ledger).unbalanced == 1
    assert findings(ledger) == ["unbalanced: ann -> bob: 1 refused, and delivered all the same"]


# Waiting


def test_a_message_is_open_until_it_arrives() -> None:
    ledger = ledger_of("ann", "bob", "cat")
    first, second = send(ledger, 2)
    send(ledger, receiver="cat")
    assert [ledger.pending(name) for name in ("ann", "bob", "cat", "dan", None)] == [3, 2, 1, 0, 3]
    receive(ledger, first)
    assert ledger.pending("bob") == 1
    receive(ledger, second)
    assert ledger.pending("bob") == 0


def test_a_message_that_was_refused_is_not_open() -> None:
    ledger = ledger_of("ann", "bob")
    send(ledger, 2)
    ledger.refuse("ann", "bob")
    assert ledger.pending("ann") == 1
    ledger.refuse("ann", "bob")
    assert ledger.pending("ann") == 0


def test_refusals_from_before_a_connection_began_do_not_hide_what_is_open_now() -> None:
    ledger = ledger_of("ann")
    send(ledger, 3)
    for _ in range(3):
        ledger.refuse("ann", "bob")
    ledger.connect("bob")
    texts = send(ledger)
    assert ledger.pending("ann") == 1
    receive(ledger, *texts)
    assert ledger.pending("ann") == 0


def test_refusals_of_what_is_missing_do_not_hide_what_is_open_now() -> None:
    ledger = ledger_of("ann", "bob")
    receive(ledger, send(ledger, 2)[1])
    ledger.refuse("ann", "bob")
    send(ledger)
    assert ledger.pending("ann") == 1
    ledger.disconnect("bob")
    ledger.connect("bob")
    receive(ledger, *send(ledger))
    ledger.refuse("ann", "bob")
    send(ledger)
    assert ledger.pending("ann") == 1


def test_nothing_is_open_that_was_cut_off_or_lost_or_is_doubtful() -> None:
    ledger = ledger_of("ann", "bob")
    send(ledger)
    ledger.disconnect("bob")
    assert ledger.pending() == 0
    ledger.connect("bob")
    assert ledger.pending() == 0
    receive(ledger, send(ledger, 2)[1])
    assert ledger.pending() == 0
    send(ledger)
    ledger.doubt("ann", "bob")
    assert ledger.pending() == 0


def test_an_open_message_is_lost_when_its_receiver_is_settled_whatever_ends_then() -> None:
    ledger = ledger_of("ann", "bob", "cat")
    receive(ledger, send(ledger, 3)[0])
    send(ledger, sender="cat")
    ledger.settle("ann")
    assert ledger.pending("ann") == 0
    ledger.disconnect("ann")
    ledger.disconnect("bob")
    assert findings(ledger) == ["lost: ann -> bob: 2-3"]
    assert line(ledger, "cat", "bob").in_flight == 1


def test_a_message_that_may_be_missing_is_not_lost_when_its_receiver_is_settled() -> None:
    ledger = ledger_of("ann")
    send(ledger)
    ledger.connect("bob")
    send(ledger)
    ledger.doubt("ann", "bob")
    ledger.settle("ann")
    assert line(ledger) == PairBalance("ann", "bob", sent=2, delivered=0, refused=0, in_flight=2, faults={})


def test_a_message_after_its_receiver_was_settled_is_late_but_neither_lost_nor_reordered() -> None:
    ledger = ledger_of("ann")
    texts = send(ledger)
    ledger.connect("bob")
    texts += send(ledger, 2)
    ledger.settle("ann")
    assert receive(ledger, *texts) == []
    assert line(ledger) == PairBalance("ann", "bob", sent=3, delivered=3, refused=0, in_flight=0, faults={})


def test_order_still_counts_among_those_that_arrive_after_they_were_settled() -> None:
    ledger = ledger_of("ann", "bob")
    first, second, third = send(ledger, 3)
    ledger.settle("bob")
    receive(ledger, second, first, third)
    assert findings(ledger) == ["reordered: ann -> bob: 1"]


# Mailboxes


def travelled(*senders: str) -> Ledger:
    """Bob was online and has left; the senders are online."""
    ledger = ledger_of("bob", *senders)
    ledger.disconnect("bob", in_order=True)
    ledger.open_mailbox("bob")
    return ledger


def test_a_message_to_an_offline_user_must_arrive() -> None:
    ledger = travelled("ann")
    texts = send(ledger, 3)
    assert ledger.is_offline("bob")
    ledger.connect("bob")
    assert not ledger.is_offline("bob")
    receive(ledger, texts[0], texts[2])
    assert findings(ledger) == ["lost: ann -> bob: 2"]


def test_mail_in_order_balances_with_later_messages() -> None:
    ledger = travelled("ann")
    texts = send(ledger, 2)
    ledger.connect("bob")
    assert receive(ledger, *texts, *send(ledger, 2)) == []
    assert line(ledger) == PairBalance("ann", "bob", sent=4, delivered=4, refused=0, in_flight=0, faults={})


def test_mail_that_arrives_twice_or_late_is_found() -> None:
    ledger = travelled("ann")
    first, second, third = send(ledger, 3)
    ledger.connect("bob")
    assert receive(ledger, second, first, third, third) == ["duplicated"]
    assert findings(ledger) == ["duplicated: ann -> bob: 3", "reordered: ann -> bob: 1"]


def test_mail_that_arrives_at_a_later_login_is_reordered() -> None:
    ledger = travelled("ann")
    texts = send(ledger)
    ledger.connect("bob")
    ledger.settle("bob")
    ledger.disconnect("bob", in_order=True)
    ledger.open_mailbox("bob")
    ledger.connect("bob")
    receive(ledger, *texts)
    assert findings(ledger) == ["reordered: ann -> bob: 1"]


def test_mail_that_is_not_collected_is_lost() -> None:
    ledger = travelled("ann")
    send(ledger)
    assert findings(ledger) == ["lost: ann -> bob: 1"]


def test_mail_that_cannot_be_collected_is_in_flight() -> None:
    ledger = travelled("ann")
    send(ledger)
    ledger.disconnect("bob")
    assert not ledger.is_offline("bob")
    assert line(ledger) == PairBalance("ann", "bob", sent=1, delivered=0, refused=0, in_flight=1, faults={})
    ledger.connect("bob")
    send(ledger)
    assert findings(ledger) == ["lost: ann -> bob: 2"]


def test_a_message_sent_before_the_server_noticed_the_departure_may_be_missing() -> None:
    ledger = ledger_of("ann", "bob")
    ledger.disconnect("bob", in_order=True)
    send(ledger)
    ledger.open_mailbox("bob")
    send(ledger)
    assert line(ledger) == PairBalance(
        "ann", "bob", sent=2, delivered=0, refused=0, in_flight=1, faults={"lost": [[2, 2]]}
    )


def test_draining_does_not_wait_for_messages_in_a_mailbox() -> None:
    ledger = travelled("ann")
    send(ledger)
    assert [ledger.pending(name) for name in ("ann", "bob", None)] == [0, 0, 0]
    ledger.settle("ann")
    ledger.connect("bob")
    assert [ledger.pending(name) for name in ("ann", "bob", None)] == [1, 1, 1]


def test_a_sender_who_leaves_in_order_still_owes_what_it_has_sent() -> None:
    ledger = travelled("ann")
    send(ledger)
    ledger.disconnect("ann", in_order=True)
    ledger.connect("ann")
    send(ledger)
    assert findings(ledger) == ["lost: ann -> bob: 1-2"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_sender_whose_connection_ends_owes_what_is_durable_and_what_it_sends_then(when: str) -> None:
    ledger = travelled("ann")
    send(ledger, 3)
    if when == "before":
        ledger.mark_durable("ann", "bob", 2)
    ledger.disconnect("ann")
    if when == "after":
        ledger.mark_durable("ann", "bob", 2)  # it has not heard of it while it could
    ledger.connect("ann")
    send(ledger)
    lost = ["lost: ann -> bob: 2, 4"] if when == "before" else ["lost: ann -> bob: 4"]
    assert findings(ledger) == lost


def test_a_crash_excuses_what_is_not_durable_in_a_mailbox_even_of_a_sender_who_has_left() -> None:
    ledger = travelled("ann", "cat")
    send(ledger, 2)
    ledger.mark_durable("ann", "bob", 1)
    ledger.disconnect("ann", in_order=True)
    ledger.crash()
    assert line(ledger).faults == {"lost": [[1, 1]]}
    assert line(ledger).in_flight == 1


def test_after_a_crash_each_message_may_arrive_again_once_and_in_order() -> None:
    ledger = travelled("ann")
    first, second, third = send(ledger, 3)
    ledger.connect("bob")
    receive(ledger, first, second)
    ledger.disconnect("bob")
    ledger.crash()
    ledger.connect("bob")
    for text in (first, second):
        with pytest.raises(AllowedRepeat):
            ledger.receive("ann", "bob", text)
    assert receive(ledger, first, second, third, third) == ["duplicated"] * 3
    assert line(ledger) == PairBalance(
        "ann", "bob", sent=3, delivered=3, refused=0, in_flight=0, faults={"duplicated": [[1, 3]]}
    )


def test_nothing_may_arrive_again_at_a_user_whose_connection_did_not_end() -> None:
    ledger = ledger_of("ann", "bob", "cat")
    texts = send(ledger)
    receive(ledger, *texts)
    ledger.disconnect("cat")
    ledger.crash()
    assert receive(ledger, *texts) == ["duplicated"]


def test_refusals_explain_what_a_full_mailbox_did_not_take() -> None:
    ledger = travelled("ann")
    texts = send(ledger, 3)
    ledger.refuse("ann", "bob")
    ledger.connect("bob")
    receive(ledger, *texts[:2])
    assert ledger.pending("bob") == 0
    assert line(ledger) == PairBalance("ann", "bob", sent=3, delivered=2, refused=1, in_flight=0, faults={})


def test_a_message_in_a_mailbox_cannot_have_been_delivered() -> None:
    ledger = ledger_of("ann", "bob")
    texts = send(ledger)
    assert not ledger.is_in_mailbox("ann", "bob", 1)  # it may have been written to bob's connection
    receive(ledger, *texts)
    ledger.disconnect("bob", in_order=True)
    ledger.open_mailbox("bob")
    assert not ledger.is_in_mailbox("ann", "bob", 1)
    send(ledger)
    assert ledger.is_in_mailbox("ann", "bob", 2)
    ledger.connect("bob")
    assert not ledger.is_in_mailbox("ann", "bob", 2)
    ledger.disconnect("bob")  # who has come for it, and perhaps not got it
    ledger.open_mailbox("bob")
    assert not ledger.is_in_mailbox("ann", "bob", 2)


def test_mail_may_wait_for_a_user_who_did_not_get_everything() -> None:
    ledger = travelled("ann", "cat")
    send(ledger)
    receive(ledger, *send(ledger, receiver="cat"), receiver="cat")
    send(ledger, receiver="ann")
    ledger.refuse("ann", "ann")
    assert ledger.receivers_with_mail() == ["bob"]


def test_a_name_is_new_until_its_first_login() -> None:
    ledger = travelled("ann")
    assert [ledger.is_new(name) for name in ("ann", "bob", "cat")] == [False, False, True]


# The past


def talk() -> tuple[Ledger, list[str]]:
    """Five messages that have arrived, and one that has not."""
    ledger = ledger_of("ann", "bob")
    texts = send(ledger, 6)
    receive(ledger, *texts[:5])
    return ledger, texts


def test_recent_is_what_has_arrived_in_either_direction_since_both_are_online() -> None:
    ledger, _ = talk()
    receive(ledger, *send(ledger, 2, "bob", "ann"), sender="bob", receiver="ann")
    assert ledger.recent("ann", "bob") == ledger.recent("bob", "ann") == 7
    receive(ledger, *send(ledger, 3, receiver="ann"), receiver="ann")
    assert ledger.recent("ann", "ann") == 3
    ledger.disconnect("bob")
    assert ledger.recent("ann", "bob") == 0
    ledger.connect("bob")
    assert ledger.recent("ann", "bob") == 0
    receive(ledger, *send(ledger))
    assert ledger.recent("ann", "bob") == 1


def test_recent_counts_nothing_that_may_never_have_been_handed_over() -> None:
    ledger, _ = talk()
    receive(ledger, *send(ledger))  # one of seven is missing
    assert ledger.recent("ann", "bob") == 6
    ledger.refuse("ann", "bob")
    assert ledger.recent("ann", "bob") == 5


def test_a_past_in_order_and_without_a_gap_is_right() -> None:
    ledger, texts = talk()
    ledger.check_history("ann", "bob", texts, is_latest=True)
    ledger.check_history("ann", "bob", texts[2:5])
    ledger.check_history("ann", "bob", [], is_latest=True)


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ((1, 3), "not all of them: 2, 4"),
        ((2, 1), "out of order: 3, 2"),
        ((1, 1), "out of order: 2, 2"),
        ((3, 4), "the last one was 6: 4, 5"),
    ],
)
def test_a_past_with_a_gap_or_out_of_order_or_too_old_is_wrong(order: tuple[int, ...], told: str) -> None:
    ledger, texts = talk()
    with pytest.raises(ValueError, match=told):
        ledger.check_history("ann", "bob", [texts[place] for place in order], is_latest=True)


def test_a_past_of_others_is_wrong() -> None:
    ledger, texts = talk()
    with pytest.raises(ValueError, match="is not as it was sent to 'cat'"):
        ledger.check_history("ann", "cat", texts)
    with pytest.raises(ValueError, match="not all of these are by cat"):
        ledger.check_history("cat", "bob", texts)


def test_a_past_from_before_both_were_online_or_that_was_never_sent_is_wrong() -> None:
    ledger, texts = talk()
    ledger.disconnect("ann")
    ledger.connect("ann")
    later = send(ledger)
    with pytest.raises(ValueError, match="of messages 7 to 7 came 6, 7"):
        ledger.check_history("ann", "bob", texts[5:] + later)
    with pytest.raises(ValueError, match="of messages 1 to 0 came 1"):
        ledger_of("ann", "bob").check_history("ann", "bob", texts[:1])


def test_a_refused_message_may_be_missing_in_the_history() -> None:
    ledger, texts = talk()
    ledger.refuse("ann", "bob")
    ledger.check_history("ann", "bob", [texts[1], texts[3]], is_latest=True)


def test_a_balance_in_between_changes_nothing() -> None:
    ledger = ledger_of("ann", "bob")
    texts = send(ledger, 2)
    assert line(ledger).faults == {"lost": [[1, 2]]}
    receive(ledger, *texts)
    assert findings(ledger) == []
