"""The extensions' packets as bytes (section 7), and how streams of packets are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocol
from protocol import (
    ALL_FEATURES,
    EXTRA_FROM_CLIENT,
    EXTRA_FROM_SERVER,
    FROM_CLIENT,
    FROM_SERVER,
    NO_FEATURES,
    Decoder,
    Envelope,
    Feature,
    Level,
    LocalProtocolError,
    PacketType,
    Reason,
    RemoteProtocolError,
    Run,
)

bodies = st.lists(st.binary(max_size=138), max_size=8)
texts = st.text(max_size=136).map(lambda text: text.encode()[:136].decode(errors="ignore").encode())


def test_the_encoders_produce_the_documented_bytes() -> None:
    assert protocol.encode_login("User", features=Feature.PRESENCE) == bytes.fromhex("01 09 0004 55736572 0000 01")
    assert protocol.encode_login("User", "pw", ALL_FEATURES) == bytes.fromhex("01 0b 0004 55736572 0002 7077 1f")
    assert protocol.encode_presence(True, "User", 3, 1) == bytes.fromhex("05 08 01 0004 55736572 03")
    assert protocol.encode_presence(False, "User", 3, 2) == bytes.fromhex("05 09 00 0004 55736572 0003")
    assert protocol.encode_receipt(Level.STORED, 1, 258) == bytes.fromhex("06 09 01 00000001 00000102")
    assert protocol.encode_receipt(Level.DELIVERED, 7, 7) == bytes.fromhex("06 09 02 00000007 00000007")
    assert protocol.encode_history_request(20, 3) == bytes.fromhex("07 02 14 03")
    assert protocol.encode_dated(0x01020304, 3, 1) == bytes.fromhex("07 05 01020304 03")
    assert bytes.fromhex("07 00") == protocol.HISTORY_END


def test_a_login_may_list_features_or_leave_them_out() -> None:
    assert protocol.parse_login(protocol.encode_login("User")[2:]) == ("User", "", None)
    assert protocol.parse_login(bytes.fromhex("0004 55736572 0000 00")) == ("User", "", NO_FEATURES)
    assert protocol.parse_login(bytes.fromhex("0004 55736572 0002 7077 09")) == (
        "User",
        "pw",
        Feature.PRESENCE | Feature.MAILBOX,
    )


def test_an_unknown_feature_is_ignored() -> None:
    assert protocol.parse_login(bytes.fromhex("0004 55736572 0000 ff")).features == ALL_FEATURES
    assert protocol.parse_login(bytes.fromhex("0004 55736572 0000 e0")).features == NO_FEATURES


@given(st.booleans(), st.integers(1, 2**32 - 1), st.sampled_from(Level), st.integers(1, 2**32 - 1))
def test_server_packets_survive_the_round_trip(is_online: bool, number: int, level: Level, last: int) -> None:
    assert protocol.parse_presence(protocol.encode_presence(is_online, "User", number, 4)[2:]) == (
        is_online,
        "User",
        number,
    )
    first = min(number, last)
    assert protocol.parse_receipt(protocol.encode_receipt(level, first, last)[2:]) == (level, first, last)
    assert protocol.parse_dated(protocol.encode_dated(last, number, 4)[2:]) == (last, number)
    assert protocol.parse_history_request(protocol.encode_history_request(last % 256, number)[2:]) == (
        last % 256,
        number,
    )
    assert protocol.parse_dated(b"") is None


@pytest.mark.parametrize(
    ("parse", "body"),
    [
        (protocol.parse_presence, ""),
        (protocol.parse_presence, "02 0004 55736572 03"),
        (protocol.parse_presence, "01 0004 55736572"),
        (protocol.parse_presence, "01 0004 55736572 00"),
        (protocol.parse_receipt, ""),
        (protocol.parse_receipt, "00 00000001 00000001"),
        (protocol.parse_receipt, "03 00000001 00000001"),
        (protocol.parse_receipt, "01 00000000 00000001"),
        (protocol.parse_receipt, "01 00000002 00000001"),
        (protocol.parse_receipt, "01 00000001 0000000002"),
        (protocol.parse_receipt, "01 00000001 000002"),
        (protocol.parse_history_request, ""),
        (protocol.parse_history_request, "05"),
        (protocol.parse_history_request, "05 00"),
        (protocol.parse_history_request, "05 0000000001"),
        (protocol.parse_dated, "00000001"),
        (protocol.parse_dated, "0000000100"),
    ],
)
def test_a_body_that_does_not_parse_is_malformed(parse: object, body: str) -> None:
    assert callable(parse)
    with pytest.raises(RemoteProtocolError, match="Malformed Packet"):
        parse(bytes.fromhex(body))


@pytest.mark.parametrize("count", [-1, 256])
def test_a_history_request_is_limited_to_one_byte_of_messages(count: int) -> None:
    with pytest.raises(LocalProtocolError, match="0 to 255"):
        protocol.encode_history_request(count, 1)


@pytest.mark.parametrize(
    ("accepts", "extra"), [(FROM_CLIENT, EXTRA_FROM_CLIENT), (FROM_SERVER, EXTRA_FROM_SERVER)], ids=["server", "client"]
)
def test_a_feature_s_packet_is_unknown_unless_the_feature_is_on(
    accepts: frozenset[PacketType], extra: dict[PacketType, Feature]
) -> None:
    for packet_type, feature in extra.items():
        packet = bytes((packet_type, 0))
        decoder = Decoder(accepts)
        decoder.accept_extra(extra, ALL_FEATURES & ~feature)
        with pytest.raises(RemoteProtocolError, match="Unknown Packet Type"):
            list(decoder.packets(packet))
        decoder = Decoder(accepts)
        ping = bytes((PacketType.PING, 0))
        packets = decoder.packets(ping + packet + packet + ping)
        assert next(packets) == (PacketType.PING, b"")
        decoder.accept_extra(extra, feature)  # in the middle of a chunk
        assert next(packets) == (packet_type, b"")
        decoder.accept_extra(extra, NO_FEATURES)
        with pytest.raises(RemoteProtocolError) as caught:
            next(packets)
        assert caught.value.reason is Reason.UNKNOWN_PACKET_TYPE


# Streams of packets


@given(bodies, st.data())
def test_the_whole_packets_of_a_cut_stream_are_counted(found: list[bytes], data: st.DataObject) -> None:
    packets = [protocol.encode(PacketType.MESSAGE, body) for body in found]
    stream = b"".join(packets)
    end = data.draw(st.integers(0, len(stream)))
    boundaries = [sum(map(len, packets[:count])) for count in range(len(packets) + 1)]
    whole = max(boundary for boundary in boundaries if boundary <= end)
    assert protocol.whole_packets(stream[:end]) == (boundaries.index(whole), whole)


@given(bodies)
def test_a_stream_is_split_into_its_packets(found: list[bytes]) -> None:
    packets = [protocol.encode(PacketType.MESSAGE, body) for body in found]
    assert protocol.split_packets(b"".join(packets)) == packets


@given(st.lists(texts, min_size=1, max_size=12), st.integers(1, 12))
def test_the_first_messages_of_a_run_are_unchanged(said: list[bytes], count: int) -> None:
    wrapped = [Envelope("s").wrap(text) for text in said]
    packets = [packet for message in wrapped for packet in protocol.split_packets(message)]
    several, one = Run(b"".join(packets), len(packets)), Run(wrapped[0], 1)
    assert protocol.each_message(several) == packets
    assert protocol.each_message(protocol.first_messages(several, count)) == packets[:count]
    assert protocol.each_message(one) == [wrapped[0]]
    assert protocol.first_messages(one, count) == one
