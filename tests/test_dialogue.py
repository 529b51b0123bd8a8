"""Dialogue without a socket: which answer goes to which call, and what is an event, whole and byte by byte."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatclient.dialogue import CLOSING, Call, Dialogue, ErrorReceived, Event, MessageReceived
from protocol import (
    ALL_FEATURES,
    EXTRA_FROM_CLIENT,
    FROM_CLIENT,
    Decoder,
    PacketType,
    Reason,
    encode,
    encode_chat_init,
    encode_error,
    encode_login,
    encode_string,
    encode_user,
    parse_text,
    split_packets,
)
from testkit.scripted_server import message

CHAT = encode_chat_init(1)
LOGIN = encode_login("alice")
LIST = encode_user("bob", 1, 1) + encode_user("alice", 2, 1)
Feed = Callable[[bytes], None]


@pytest.fixture
def dialogue() -> Dialogue:
    return Dialogue()


@pytest.fixture(params=["whole", "byte by byte"])
def feed(dialogue: Dialogue, request: pytest.FixtureRequest) -> Feed:
    """Lets the server say something."""

    def bytewise(data: bytes) -> None:
        for byte in data:
            dialogue.receive(bytes([byte]))

    return dialogue.receive if request.param == "whole" else bytewise


def packets(written: bytes) -> list[tuple[int, bytes]]:
    decoder = Decoder(FROM_CLIENT)
    decoder.accept_extra(EXTRA_FROM_CLIENT, ALL_FEATURES)
    return list(decoder.packets(written))


def types(written: bytes) -> list[int]:
    return [packet_type for packet_type, _ in packets(written)]


def pongs(written: bytes) -> list[bytes]:
    """The Pongs for the Pings in `written`."""
    return [encode(PacketType.PONG, body) for packet_type, body in packets(written) if packet_type == PacketType.PING]


def taken(dialogue: Dialogue) -> list[Event]:
    """The events, which are gone then."""
    events = list(dialogue.events)
    dialogue.events.clear()
    return events


# Lists


def test_a_list_ends_with_the_own_name(dialogue: Dialogue, feed: Feed) -> None:
    call = Call(LOGIN, "alice")
    assert dialogue.ask(call) == LOGIN
    feed(encode_user("bob", 1, 1))
    assert not call.done
    feed(encode_user("alice", 300, 2))
    assert call.done
    assert (call.users, call.refusal) == ({"bob": 1, "alice": 300}, None)


def test_messages_between_the_entries_of_a_list_are_events(dialogue: Dialogue, feed: Feed) -> None:
    call = Call(LOGIN, "alice")
    dialogue.ask(call)
    feed(message("bob", "1") + encode_user("bob", 1, 1) + message("bob", "a:b") + encode_user("alice", 2, 1))
    feed(message("bob", ""))
    assert call.users == {"bob": 1, "alice": 2}
    assert taken(dialogue) == [MessageReceived("bob", text) for text in ("1", "a:b", "")]


def test_an_error_between_the_entries_of_a_list_is_its_refusal(dialogue: Dialogue, feed: Feed) -> None:
    call = Call(LOGIN, "alice")
    dialogue.ask(call)
    feed(encode_user("bob", 1, 1) + encode_error(Reason.STORAGE_UNAVAILABLE))
    assert call.done
    assert call.refusal == Reason.STORAGE_UNAVAILABLE


def test_a_list_that_nobody_asked_for_is_ignored(dialogue: Dialogue, feed: Feed) -> None:
    feed(LIST)
    call = Call(CHAT)
    written = dialogue.ask(call)
    feed(LIST)
    assert not call.done
    feed(*pongs(written))
    assert call.done
    assert not dialogue.events


def test_entries_of_a_list_given_up_do_not_begin_the_next_one(dialogue: Dialogue, feed: Feed) -> None:
    dialogue.ask(Call(LOGIN, "alice"))
    feed(encode_user("bob", 1, 1))
    call = Call(LOGIN, "alice")
    written = dialogue.ask(call)
    assert types(written) == [PacketType.PING, PacketType.CONFIG]
    feed(encode_user("carol", 3, 1) + encode_user("alice", 2, 1))
    assert not call.done
    feed(*pongs(written))
    feed(LIST)
    assert call.users == {"bob": 1, "alice": 2}


# Whose Error it is


def test_no_error_before_the_pong_is_success(dialogue: Dialogue, feed: Feed) -> None:
    call = Call(CHAT)
    written = dialogue.ask(call)
    assert types(written) == [PacketType.CHAT_INIT, PacketType.PING]
    assert not call.done
    feed(*pongs(written))
    assert (call.done, call.refusal) == (True, None)


def test_an_error_before_the_pong_is_the_refusal_and_the_next_one_an_event(dialogue: Dialogue, feed: Feed) -> None:
    call = Call(CHAT)
    written = dialogue.ask(call)
    feed(encode_error(Reason.USER_NOT_ONLINE) + encode_error(Reason.NO_CHAT_STARTED) + b"".join(pongs(written)))
    assert (call.done, call.refusal) == (True, Reason.USER_NOT_ONLINE)
    assert taken(dialogue) == [ErrorReceived(Reason.NO_CHAT_STARTED)]


def test_errors_of_earlier_messages_come_before_the_barrier(dialogue: Dialogue, feed: Feed) -> None:
    assert [parse_text(body) for _, body in packets(dialogue.tell([b"one", b"two"]))] == [b"one", b"two"]
    call = Call(CHAT)
    written = dialogue.ask(call)
    assert types(written) == [PacketType.PING, PacketType.CHAT_INIT, PacketType.PING]
    before, after = pongs(written)
    feed(encode_error(Reason.USER_NOT_ONLINE) * 2)
    assert not call.done
    assert taken(dialogue) == [ErrorReceived(Reason.USER_NOT_ONLINE)] * 2
    feed(before + encode_error(Reason.USER_NOT_ONLINE) + after)
    assert (call.done, call.refusal) == (True, Reason.USER_NOT_ONLINE)
    assert not dialogue.events


def test_after_an_answer_no_barrier_is_needed(dialogue: Dialogue, feed: Feed) -> None:
    dialogue.tell([b"hi"])
    feed(*pongs(dialogue.ask(Call())))
    assert types(dialogue.ask(Call(CHAT))) == [PacketType.CHAT_INIT, PacketType.PING]
    feed(encode_error(Reason.USER_NOT_ONLINE))
    assert types(dialogue.ask(Call(LOGIN, "alice"))) == [PacketType.CONFIG]
    feed(LIST)
    assert types(dialogue.ask(Call(CHAT))) == [PacketType.CHAT_INIT, PacketType.PING]


def test_an_answer_settles_nothing_that_was_written_later(dialogue: Dialogue, feed: Feed) -> None:
    written = dialogue.ask(Call(CHAT))
    dialogue.tell([b"hi"])
    feed(*pongs(written))
    assert types(dialogue.ask(Call(CHAT)))[0] == PacketType.PING


def test_a_ping_has_no_refusal(dialogue: Dialogue, feed: Feed) -> None:
    for _ in range(2):
        call = Call()
        written = dialogue.ask(call)
        assert types(written) == [PacketType.PING]
        feed(encode_error(Reason.USER_NOT_ONLINE))
        assert not call.done
        feed(*pongs(written))
        assert (call.done, call.refusal) == (True, None)
        assert taken(dialogue) == [ErrorReceived(Reason.USER_NOT_ONLINE)]


def test_the_answer_to_an_abandoned_call_is_ignored(dialogue: Dialogue, feed: Feed) -> None:
    abandoned, call = Call(CHAT), Call(CHAT)
    first = dialogue.ask(abandoned)
    written = dialogue.ask(call)
    feed(encode_error(Reason.USER_NOT_ONLINE) + b"".join(pongs(first)))
    assert abandoned.refusal == Reason.USER_NOT_ONLINE
    assert not call.done
    feed(b"".join(pongs(written)))
    assert (call.done, call.refusal) == (True, None)
    assert not dialogue.events


def test_an_error_after_a_call_given_up_and_answered_is_about_a_message(dialogue: Dialogue, feed: Feed) -> None:
    feed(*pongs(dialogue.ask(Call(CHAT))))
    dialogue.tell([b"hi"])
    feed(encode_error(Reason.USER_NOT_ONLINE))
    assert taken(dialogue) == [ErrorReceived(Reason.USER_NOT_ONLINE)]


@pytest.mark.parametrize("unsent", [1, 2, 3])
def test_a_call_that_did_not_go_out_whole_has_no_answer(dialogue: Dialogue, feed: Feed, unsent: int) -> None:
    dialogue.tell([b"one"])
    written = split_packets(dialogue.ask(Call(CHAT)))
    dialogue.take_back(b"".join(written[-unsent:]))
    dialogue.tell([b"two"])
    feed(encode_error(Reason.USER_NOT_ONLINE) * 2)
    assert taken(dialogue) == [ErrorReceived(Reason.USER_NOT_ONLINE)] * 2
    call = Call(CHAT)
    feed(b"".join(pongs(dialogue.ask(call))))
    assert call.done


def test_a_call_that_had_no_answer_is_over_with_the_next_one(dialogue: Dialogue, feed: Feed) -> None:
    first, call = Call(LOGIN, "alice"), Call(CHAT)
    dialogue.ask(first)
    written = dialogue.ask(call)
    feed(b"".join(pongs(written)[:1]) + encode_error(Reason.USER_NOT_ONLINE))
    assert (first.done, call.done, call.refusal) == (False, True, Reason.USER_NOT_ONLINE)


def test_a_pong_for_nothing_is_ignored(dialogue: Dialogue, feed: Feed) -> None:
    call = Call(CHAT)
    dialogue.tell([b"hi"])
    dialogue.ask(call)
    feed(encode(PacketType.PONG, b"") + encode(PacketType.PONG, b"other") + encode_error(Reason.USER_NOT_ONLINE))
    assert not call.done
    assert dialogue.ending is None
    assert taken(dialogue) == [ErrorReceived(Reason.USER_NOT_ONLINE)]


class HonestServer:
    """Handles packets in order and names each refusal: a Message or Chat Init that it `refuses` to take."""

    def __init__(self) -> None:
        self.replies: deque[bytes] = deque()
        self._count = 0

    def take(self, written: bytes, refuses: bool) -> str:
        """The reason it gives, whether it has to or not."""
        self._count += 1
        reason = f"refusal {self._count}"
        for packet_type, body in packets(written):
            if packet_type == PacketType.PING:
                self.replies.append(encode(PacketType.PONG, body))
            elif refuses:
                self.replies.append(encode(PacketType.ERROR, encode_string(reason.encode())))
        return reason


Step = tuple[Literal["tell", "chat", "give up", "answer"], bool]
steps = st.lists(st.tuples(st.sampled_from(["tell", "chat", "give up", "answer"]), st.booleans()), max_size=30)


@given(steps)
def test_every_error_goes_to_its_call_or_is_an_event(steps: Iterable[Step]) -> None:
    """`chat` waits for its answer, `give up` is a chat that does not; meanwhile `answer` lets one reply arrive."""
    dialogue, server = Dialogue(), HonestServer()
    expected = []
    for kind, refuses in steps:
        if kind == "answer":
            dialogue.receive(server.replies.popleft() if server.replies else message("bob", "hi"))
            continue
        call = Call(CHAT)
        reason = server.take(dialogue.tell([b"hi"]) if kind == "tell" else dialogue.ask(call), refuses)
        if kind == "chat":
            while not call.done:
                dialogue.receive(server.replies.popleft())
            assert call.refusal == (reason if refuses else None)
        elif kind == "tell" and refuses:
            expected.append(reason)
    for reply in server.replies:
        dialogue.receive(reply)
    assert [event.reason for event in dialogue.events if isinstance(event, ErrorReceived)] == expected


# Pings of the server


def test_pings_are_answered_in_order(dialogue: Dialogue, feed: Feed) -> None:
    feed(encode(PacketType.PING, b"one") + message("bob", "hi") + encode(PacketType.PING, b""))
    assert dialogue.take_due() == encode(PacketType.PONG, b"one") + encode(PacketType.PONG, b"")
    assert dialogue.take_due() == dialogue.due == b""


# The ending


@pytest.mark.parametrize("reason", sorted(CLOSING))
def test_an_error_that_closes_is_an_event_and_no_answer(dialogue: Dialogue, feed: Feed, reason: Reason) -> None:
    call = Call(CHAT)
    written = dialogue.ask(call)
    feed(message("bob", "hi") + encode_error(reason) + message("bob", "never read") + b"".join(pongs(written)))
    dialogue.receive(b"")
    assert taken(dialogue) == [MessageReceived("bob", "hi"), ErrorReceived(reason)]
    assert dialogue.ending == (f"the server closed the connection ({reason})", reason)
    assert not call.done


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x03\xff",
        b"\x55\x00",
        encode(PacketType.CHAT_INIT, b"\x01"),
        encode(PacketType.MESSAGE, b"\x00\x05hi"),
        encode(PacketType.ERROR, b"\x00\x01\xff"),
        encode(PacketType.CONFIG, b"\x00\x01x"),
    ],
)
def test_a_breach_of_the_protocol_ends_it_after_the_packets_before(
    dialogue: Dialogue, feed: Feed, nonsense: bytes
) -> None:
    call = Call(CHAT)
    written = dialogue.ask(call)
    feed(message("bob", "hi") + nonsense + message("bob", "never read") + b"".join(pongs(written)))
    assert taken(dialogue) == [MessageReceived("bob", "hi")]
    assert dialogue.ending is not None
    assert dialogue.ending.text.startswith("the server broke the protocol (")
    assert dialogue.ending.reason is None
    assert not call.done


def test_a_server_that_closes_without_an_error_gives_no_reason(dialogue: Dialogue, feed: Feed) -> None:
    feed(message("bob", "hi"))
    dialogue.receive(b"")
    assert dialogue.ending == ("the server closed the connection", None)
    assert taken(dialogue) == [MessageReceived("bob", "hi")]


def test_the_first_ending_counts_and_nothing_is_taken_in_after_it(dialogue: Dialogue, feed: Feed) -> None:
    dialogue.end("this side closed the connection")
    feed(message("bob", "never read") + encode_error(Reason.TOO_SLOW))
    dialogue.receive(b"")
    assert dialogue.ending == ("this side closed the connection", None)
    assert not dialogue.events
