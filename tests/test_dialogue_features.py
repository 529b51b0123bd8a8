"""Dialogue and the protocol's extensions, without a socket: features, presence and receipts, whole and byte by byte."""

import pytest

from chatclient.dialogue import (
    Call,
    Dialogue,
    MessageReceived,
    PresenceChanged,
    ReceiptReceived,
)
from protocol import (
    ALL_FEATURES,
    EXTRA_FROM_SERVER,
    FROM_SERVER,
    HISTORY_END,
    NO_FEATURES,
    Feature,
    Level,
    PacketType,
    Reason,
    encode,
    encode_chat_init,
    encode_error,
    encode_login,
    encode_presence,
    encode_receipt,
    encode_string,
    encode_user,
)
from testkit.scripted_server import message
from tests.test_dialogue import LIST, LOGIN, Feed, pongs, taken

CHAT = encode_chat_init(1)
CAROL_CAME = encode_presence(True, "carol", 3, 1)
CAROL_LEFT = encode_presence(False, "carol", 3, 1)
PACKETS = {
    Feature.PRESENCE: CAROL_CAME,
    Feature.RECEIPTS: encode_receipt(Level.STORED, 1, 1),
    Feature.HISTORY: HISTORY_END,
}


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


def login(features: Feature = ALL_FEATURES) -> Call:
    return Call(encode_login("alice", features=features), "alice", features)


def log_in(dialogue: Dialogue, features: Feature = ALL_FEATURES) -> None:
    """As alice (2), with bob (1) there."""
    dialogue.ask(login(features))
    dialogue.receive(LIST)


def is_a_breach(dialogue: Dialogue, packet: bytes) -> bool:
    dialogue.receive(packet)
    return dialogue.ending is not None


def test_every_packet_that_a_server_may_send_has_a_handler() -> None:
    assert Dialogue._HANDLERS.keys() == FROM_SERVER | EXTRA_FROM_SERVER.keys()


# Which packets a server may send


@pytest.mark.parametrize("feature", PACKETS)
def test_a_packet_is_a_breach_unless_its_feature_was_asked_for(feature: Feature) -> None:
    for features in (NO_FEATURES, ALL_FEATURES & ~feature):
        dialogue = Dialogue()
        log_in(dialogue, features)
        assert is_a_breach(dialogue, PACKETS[feature])
    dialogue = Dialogue()
    log_in(dialogue, feature)
    assert not is_a_breach(dialogue, PACKETS[feature])


def test_packets_right_after_the_list_are_events(dialogue: Dialogue, feed: Feed) -> None:
    call = login()
    dialogue.ask(call)
    feed(LIST + message("bob", "while you were away") + CAROL_CAME)
    assert call.users == {"bob": 1, "alice": 2}
    assert taken(dialogue) == [MessageReceived("bob", "while you were away"), PresenceChanged("carol", 3, True)]


@pytest.mark.parametrize("feature", PACKETS)
def test_a_refused_login_brings_no_features(feature: Feature) -> None:
    dialogue = Dialogue()
    dialogue.ask(login(feature))
    dialogue.receive(encode_error(Reason.PASSWORD_REQUIRED))
    dialogue.ask(login(NO_FEATURES))
    assert is_a_breach(dialogue, PACKETS[feature])


@pytest.mark.parametrize("feature", PACKETS)
def test_a_login_given_up_may_bring_its_features_yet(feature: Feature) -> None:
    dialogue = Dialogue()
    dialogue.ask(login(feature))
    assert not is_a_breach(dialogue, LIST + PACKETS[feature])
    dialogue.receive(*pongs(dialogue.ask(Call())))
    assert not is_a_breach(dialogue, PACKETS[feature])


@pytest.mark.parametrize("feature", PACKETS)
def test_only_another_login_that_asks_for_features_replaces_them(feature: Feature) -> None:
    dialogue = Dialogue()
    log_in(dialogue, feature)
    log_in(dialogue, NO_FEATURES)
    assert not is_a_breach(dialogue, PACKETS[feature])
    log_in(dialogue, ALL_FEATURES & ~feature)
    assert is_a_breach(dialogue, PACKETS[feature])


@pytest.mark.parametrize(
    "nonsense",
    [
        encode(PacketType.PRESENCE, b"\x02\x00\x01x\x01"),
        encode(PacketType.PRESENCE, b"\x01\x00\x01x"),
        encode(PacketType.RECEIPT, b"\x03" + bytes([0, 0, 0, 1] * 2)),
        encode(PacketType.RECEIPT, b"\x01" + bytes(8)),
        encode(PacketType.HISTORY, b"\x00\x00\x00\x01"),
    ],
)
def test_a_body_that_does_not_parse_is_a_breach(dialogue: Dialogue, feed: Feed, nonsense: bytes) -> None:
    log_in(dialogue)
    feed(CAROL_CAME + nonsense + CAROL_LEFT)
    assert taken(dialogue) == [PresenceChanged("carol", 3, True)]
    assert dialogue.ending == ("the server broke the protocol (Malformed Packet)", None)


# Presence


def test_the_list_follows_presence_in_ascending_id_order(dialogue: Dialogue, feed: Feed) -> None:
    assert dialogue.online == {}
    dialogue.ask(login())
    feed(encode_user("dave", 4, 1) + encode_user("alice", 2, 1))
    before = dialogue.online
    feed(CAROL_CAME + encode_presence(True, "bob", 1, 1) + encode_presence(False, "dave", 4, 1))
    assert list(dialogue.online.items()) == [("bob", 1), ("alice", 2), ("carol", 3)]
    assert list(before.items()) == [("alice", 2), ("dave", 4)]
    assert taken(dialogue) == [
        PresenceChanged("carol", 3, True),
        PresenceChanged("bob", 1, True),
        PresenceChanged("dave", 4, False),
    ]


def test_a_list_replaces_earlier_presence(dialogue: Dialogue, feed: Feed) -> None:
    log_in(dialogue)
    feed(CAROL_CAME)
    dialogue.ask(Call(LOGIN, "alice"))
    feed(LIST)
    assert dialogue.online == {"bob": 1, "alice": 2}


def test_presence_between_the_entries_of_a_list_counts_more_than_they(dialogue: Dialogue, feed: Feed) -> None:
    """The list says who was online when it was asked for, and may be sent little by little."""
    log_in(dialogue)
    dialogue.ask(Call(LOGIN, "alice"))
    feed(CAROL_LEFT + encode_presence(True, "dave", 4, 1) + encode_user("bob", 1, 1) + encode_user("carol", 3, 1))
    feed(encode_presence(False, "bob", 1, 1) + encode_user("alice", 2, 1))
    assert dialogue.online == {"alice": 2, "dave": 4}


def test_a_presence_during_another_call_is_no_part_of_its_answer(dialogue: Dialogue, feed: Feed) -> None:
    log_in(dialogue)
    call = Call(CHAT)
    written = dialogue.ask(call)
    feed(CAROL_CAME + b"".join(pongs(written)))
    assert (call.done, call.refusal) == (True, None)
    assert dialogue.online == {"bob": 1, "alice": 2, "carol": 3}


def test_a_user_seen_once_stays_known(dialogue: Dialogue, feed: Feed) -> None:
    log_in(dialogue)
    feed(CAROL_LEFT)
    dialogue.ask(login())
    feed(encode_user("alice", 2, 1))
    assert dialogue.online == {"alice": 2}
    assert dialogue.known == {"alice": 2, "bob": 1, "carol": 3}


# Receipts, and the numbers they speak of


def test_receipts_are_events(dialogue: Dialogue, feed: Feed) -> None:
    log_in(dialogue)
    feed(encode_receipt(Level.DELIVERED, 1, 70_000) + encode_receipt(Level.STORED, 2**32 - 1, 2**32 - 1))
    assert taken(dialogue) == [
        ReceiptReceived(Level.DELIVERED, 1, 70_000),
        ReceiptReceived(Level.STORED, 2**32 - 1, 2**32 - 1),
    ]


def test_messages_are_counted_and_nothing_else(dialogue: Dialogue) -> None:
    log_in(dialogue)
    assert dialogue.sent == 0
    dialogue.tell([b"1", b"2"])
    dialogue.ask(Call(CHAT))
    dialogue.tell([b"3"])
    dialogue.tell([])
    assert dialogue.sent == 3


def test_a_message_that_was_not_sent_does_not_count(dialogue: Dialogue) -> None:
    first, second, third = (encode(PacketType.MESSAGE, encode_string(text)) for text in (b"1", b"", b"3" * 136))
    assert dialogue.tell([b"1", b"", b"3" * 136]) == first + second + third
    dialogue.take_back(second + third)
    assert dialogue.sent == 1
    dialogue.take_back(dialogue.ask(Call(CHAT)))
    dialogue.take_back(b"")
    assert dialogue.sent == 1
