"""Dialogue and replays of past messages, without a socket: what is an answer, and what an event."""

from collections.abc import Iterable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatclient.dialogue import (
    Call,
    Dialogue,
    ErrorReceived,
    Event,
    MessageReceived,
    PastMessage,
    PresenceChanged,
    ReceiptReceived,
)
from protocol import (
    ALL_FEATURES,
    HISTORY_END,
    Level,
    PacketType,
    Reason,
    encode,
    encode_chat_init,
    encode_dated,
    encode_error,
    encode_history_request,
    encode_login,
    encode_presence,
    encode_receipt,
    encode_string,
)
from testkit.scripted_server import message, past
from tests.test_dialogue import LIST, Feed, packets, pongs, taken, types

CHAT = encode_chat_init(1)
HISTORY = encode_history_request(20, 1)


def logged_in() -> Dialogue:
    """As alice (2), with bob (1) there."""
    dialogue = Dialogue()
    dialogue.ask(Call(encode_login("alice", features=ALL_FEATURES), "alice", ALL_FEATURES))
    dialogue.receive(LIST)
    return dialogue


@pytest.fixture
def dialogue() -> Dialogue:
    return logged_in()


@pytest.fixture(params=["whole", "byte by byte"])
def feed(dialogue: Dialogue, request: pytest.FixtureRequest) -> Feed:
    """Lets the server say something."""

    def bytewise(data: bytes) -> None:
        for byte in data:
            dialogue.receive(bytes([byte]))

    return dialogue.receive if request.param == "whole" else bytewise


def test_a_replay_is_past_messages_and_no_events(dialogue: Dialogue, feed: Feed) -> None:
    call = Call(HISTORY, replays=True)
    assert dialogue.ask(call) == HISTORY
    feed(message("bob", "before"))
    feed(past(1_700_000_000, 1, message("bob", "a:b")) + past(2**32 - 1, 2, message("alice", "")))
    assert not call.done
    feed(HISTORY_END + message("bob", "after"))
    assert (call.done, call.refusal) == (True, None)
    assert call.past == [PastMessage(1_700_000_000, 1, "bob", "a:b"), PastMessage(2**32 - 1, 2, "alice", "")]
    assert taken(dialogue) == [MessageReceived("bob", "before"), MessageReceived("bob", "after")]


def test_a_text_that_took_several_packets_is_whole_again(dialogue: Dialogue, feed: Feed) -> None:
    call = Call(HISTORY, replays=True)
    dialogue.ask(call)
    pieces = [message("bob", text) for text in ("grü", "ß", "e: ", "bob:")]
    feed(past(1, 1, *pieces) + encode_dated(1, 300, 2) + pieces[0] + HISTORY_END)
    assert call.past == [PastMessage(1, 1, "bob", "grüße: bob:"), PastMessage(1, 300, "bob", "grü")]


def test_an_empty_replay(dialogue: Dialogue, feed: Feed) -> None:
    call = Call(HISTORY, replays=True)
    dialogue.ask(call)
    feed(HISTORY_END)
    assert (call.done, call.refusal, call.past) == (True, None, [])


def test_a_replay_may_be_refused(dialogue: Dialogue, feed: Feed) -> None:
    dialogue.tell([b"lost"])
    call = Call(HISTORY, replays=True)
    written = dialogue.ask(call)
    assert types(written) == [PacketType.PING, PacketType.HISTORY]
    feed(encode_error(Reason.NO_CHAT_STARTED))
    assert not call.done
    feed(b"".join(pongs(written)) + encode_error(Reason.USER_NOT_ONLINE))
    assert (call.done, call.refusal) == (True, Reason.USER_NOT_ONLINE)
    assert taken(dialogue) == [ErrorReceived(Reason.NO_CHAT_STARTED)]


def test_after_a_replay_no_barrier_is_needed(dialogue: Dialogue, feed: Feed) -> None:
    for _ in range(2):
        call = Call(HISTORY, replays=True)
        assert dialogue.ask(call) == HISTORY
        feed(past(1, 1, message("bob", "hi")) + HISTORY_END)
        assert call.past == [PastMessage(1, 1, "bob", "hi")]


@pytest.mark.parametrize("begun", ["", "1", "12"])
def test_a_replay_given_up_is_no_event_and_no_answer(dialogue: Dialogue, feed: Feed, begun: str) -> None:
    abandoned, call = Call(HISTORY, replays=True), Call(HISTORY, replays=True)
    dialogue.ask(abandoned)
    for text in begun:
        feed(past(1, 1, message("bob", text)))
    written = dialogue.ask(call)
    assert types(written) == [PacketType.PING, PacketType.HISTORY]
    feed(past(1, 1, message("bob", "3"), message("bob", "4")) + HISTORY_END)
    assert [one.text for one in abandoned.past] == [*begun, "34"]
    assert not call.done
    feed(message("bob", "live") + b"".join(pongs(written)))
    feed(past(2, 2, message("alice", "5")) + HISTORY_END)
    assert call.past == [PastMessage(2, 2, "alice", "5")]
    assert taken(dialogue) == [MessageReceived("bob", "live")]


def test_a_replay_given_up_does_not_end_another_call(dialogue: Dialogue, feed: Feed) -> None:
    dialogue.ask(Call(HISTORY, replays=True))
    call = Call(CHAT)
    written = dialogue.ask(call)
    feed(past(1, 1, message("bob", "hi")) + HISTORY_END)
    assert not call.done
    feed(b"".join(pongs(written)))
    assert (call.done, call.past) == (True, [])
    assert not dialogue.events


def test_a_replay_that_nobody_asked_for_is_ignored(dialogue: Dialogue, feed: Feed) -> None:
    call = Call(CHAT)
    dialogue.ask(call)
    feed(past(1, 1, message("bob", "hi")) + HISTORY_END)
    assert not call.done
    assert not dialogue.events


def test_an_error_that_closes_ends_a_replay(dialogue: Dialogue, feed: Feed) -> None:
    call = Call(HISTORY, replays=True)
    dialogue.ask(call)
    feed(past(1, 1, message("bob", "hi")) + encode_error(Reason.SERVER_SHUTTING_DOWN) + HISTORY_END)
    assert not call.done
    assert taken(dialogue) == [ErrorReceived(Reason.SERVER_SHUTTING_DOWN)]


class HonestServer:
    """Says what a server has to say, in order, in one stream; `expected` are the events that a client makes of it."""

    def __init__(self) -> None:
        self.stream = b""
        self.expected: list[Event] = []
        self._count = 0

    def speak(self) -> None:
        """Let others come, and write."""
        self._count += 1
        self.stream += message("bob", str(self._count)) + encode_presence(True, "carol", self._count, 4)
        self.stream += encode_receipt(Level.STORED, self._count, self._count)
        self.expected += [MessageReceived("bob", str(self._count)), PresenceChanged("carol", self._count, True)]
        self.expected += [ReceiptReceived(Level.STORED, self._count, self._count)]

    def take(self, written: bytes, length: int | None) -> tuple[str | None, list[PastMessage]]:
        """The refusal or the replay of `length` messages with which it answers; None refuses."""
        self._count += 1
        reason = f"refusal {self._count}"
        replay = [
            PastMessage(self._count, number + 1, "bob", f"{number}, {self._count}") for number in range(length or 0)
        ]
        for packet_type, body in packets(written):
            if packet_type == PacketType.PING:
                self.stream += encode(PacketType.PONG, body)
            elif length is None:
                self.stream += encode(PacketType.ERROR, encode_string(reason.encode()))
                self.expected += [ErrorReceived(reason)] if packet_type == PacketType.MESSAGE else []
            elif packet_type == PacketType.HISTORY:
                for one in replay:
                    halves = [message("bob", half) for half in (one.text[:2], one.text[2:])]
                    self.stream += past(one.time, one.sender_id, *halves)
                self.stream += HISTORY_END
        return (reason, []) if length is None else (None, replay)

    def give(self, size: int) -> bytes:
        given, self.stream = self.stream[:size], self.stream[size:]
        return given


Kind = Literal["tell", "chat", "history", "give up chat", "give up history", "speak", "read"]
kinds: list[Kind] = ["tell", "chat", "history", "give up chat", "give up history", "speak", "read"]
steps = st.lists(st.tuples(st.sampled_from(kinds), st.none() | st.integers(0, 3), st.integers(1, 40)), max_size=30)


@given(steps)
def test_every_packet_goes_to_its_call_or_is_an_event(steps: Iterable[tuple[Kind, int | None, int]]) -> None:
    """A step is what is done, with how many messages a call is answered, and how many bytes are read at once."""
    dialogue, server = logged_in(), HonestServer()
    for kind, length, size in steps:
        if kind == "speak":
            server.speak()
        elif kind == "read" and server.stream:
            dialogue.receive(server.give(size))
        elif kind == "tell":
            server.take(dialogue.tell([b"hi"]), length)
        elif kind != "read":
            call = Call(HISTORY, replays=True) if "history" in kind else Call(CHAT)
            is_waited_for = "give up" not in kind
            refusal, replay = server.take(dialogue.ask(call), length)
            while is_waited_for and not call.done:
                assert server.stream
                dialogue.receive(server.give(size))
            assert (call.refusal, call.past) == ((refusal, replay * call.replays) if is_waited_for else (None, []))
    dialogue.receive(server.stream + message("bob", "the end"))
    assert dialogue.ending is None
    assert list(dialogue.events) == [*server.expected, MessageReceived("bob", "the end")]
