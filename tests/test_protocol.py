"""The wire protocol as bytes: the vectors of docs/PROTOCOL.md, every error, and arbitrary bytes in arbitrary chunks."""

import ast
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocol
from protocol import (
    FROM_CLIENT,
    FROM_SERVER,
    Decoder,
    Envelope,
    Feature,
    LocalProtocolError,
    PacketType,
    Reason,
    RemoteProtocolError,
)

# name, bytes as in section 4, who sends it, (type, body)
VECTORS = [
    ("01 06 0004 55736572", FROM_CLIENT, PacketType.CONFIG, "000455736572"),
    ("01 07 0004 55736572 01", FROM_SERVER, PacketType.CONFIG, "00045573657201"),
    ("02 01 03", FROM_CLIENT, PacketType.CHAT_INIT, "03"),
    ("03 07 0005 48656c6c6f", FROM_CLIENT, PacketType.MESSAGE, "000548656c6c6f"),
    ("03 0c 000a 557365723a48656c6c6f", FROM_SERVER, PacketType.MESSAGE, "000a557365723a48656c6c6f"),
    ("04 16 0014 5573657220416c7265616479204f6e6c696e6521", FROM_SERVER, PacketType.ERROR, None),
    ("01 08 0004 55736572 0001", FROM_SERVER, PacketType.CONFIG, "0004557365720001"),
    ("02 02 0003", FROM_CLIENT, PacketType.CHAT_INIT, "0003"),
    ("01 0e 0004 55736572 0006 736563726574", FROM_CLIENT, PacketType.CONFIG, None),
    ("08 00", FROM_CLIENT, PacketType.PING, ""),
    ("09 02 beef", FROM_SERVER, PacketType.PONG, "beef"),
    ("03 8a 0088" + "61" * 136, FROM_CLIENT, PacketType.MESSAGE, "0088" + "61" * 136),
]
vectors = pytest.mark.parametrize(("wire", "accepts", "kind", "body"), VECTORS, ids=[row[0][:20] for row in VECTORS])


def decode(decoder: Decoder, *chunks: bytes) -> tuple[list[tuple[int, bytes]], Reason | None]:
    """All packets, and the reason of the error that ended the stream."""
    packets: list[tuple[int, bytes]] = []
    try:
        for chunk in chunks:
            packets.extend(decoder.packets(chunk))  # keeps those before an error
    except RemoteProtocolError as error:
        return packets, error.reason
    return packets, None


@vectors
def test_a_packet_decodes_the_same_whole_and_byte_by_byte(
    wire: str, accepts: frozenset[PacketType], kind: PacketType, body: str | None
) -> None:
    data = bytes.fromhex(wire)
    expected = ([(kind, data[2:] if body is None else bytes.fromhex(body))], None)
    assert decode(Decoder(accepts), data) == expected
    assert decode(Decoder(accepts), *(data[i : i + 1] for i in range(len(data)))) == expected


@vectors
def test_trailing_bytes_wait_for_the_rest_of_their_packet(
    wire: str, accepts: frozenset[PacketType], kind: PacketType, body: str | None
) -> None:
    data = bytes.fromhex(wire)
    decoder = Decoder(accepts)
    first = (kind, data[2:] if body is None else bytes.fromhex(body))
    assert decode(decoder, data + b"\x09\x03ab") == ([first], None)
    assert decode(decoder, b"c") == ([(PacketType.PONG, b"abc")], None)


def test_the_encoders_produce_the_vectors() -> None:
    assert protocol.encode_login("User") == bytes.fromhex("01 06 0004 55736572")
    assert protocol.encode_login("User", "secret") == bytes.fromhex("01 0e 0004 55736572 0006 736563726574")
    assert protocol.encode_user("User", 1, 1) == bytes.fromhex("01 07 0004 55736572 01")
    assert protocol.encode_user("User", 1, 2) == bytes.fromhex("01 08 0004 55736572 0001")
    assert protocol.encode_chat_init(3) == bytes.fromhex("02 01 03")
    assert protocol.encode_chat_init(300) == bytes.fromhex("02 02 012c")
    assert protocol.encode_message(b"Hello") == bytes.fromhex("03 07 0005 48656c6c6f")
    assert Envelope("User").wrap(b"Hello") == bytes.fromhex("03 0c 000a 557365723a48656c6c6f")
    assert protocol.encode_error(Reason.USER_ALREADY_ONLINE) == bytes.fromhex(VECTORS[5][0])


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        ("03 8b", Reason.PACKET_TOO_LONG),
        ("ff ff", Reason.PACKET_TOO_LONG),
        ("00 00", Reason.UNKNOWN_PACKET_TYPE),
        ("04 02", Reason.UNKNOWN_PACKET_TYPE),
        ("05 00", Reason.UNKNOWN_PACKET_TYPE),
        ("0a 00", Reason.UNKNOWN_PACKET_TYPE),
    ],
)
def test_an_invalid_header_is_refused_at_its_second_byte_after_the_packets_before_it(wire: str, reason: Reason) -> None:
    good = bytes.fromhex("08 01 61")
    decoder = Decoder(FROM_CLIENT)
    assert decode(decoder, good + bytes.fromhex(wire)) == ([(PacketType.PING, b"a")], reason)
    assert decode(decoder, good) == ([], reason), "a decoder that has failed stays failed"


@pytest.mark.parametrize("body", ["", "00", "0005 48656c6c", "0004 48656c6c6f", "0002 c328", "0001 80", "0003 eda080"])
def test_a_text_that_is_not_exactly_one_utf8_string_is_malformed(body: str) -> None:
    with pytest.raises(RemoteProtocolError, match=Reason.MALFORMED_PACKET):
        protocol.parse_text(bytes.fromhex(body))


@pytest.mark.parametrize("body", ["", "00", "0000", "00000000", "0000000001", "0100000000"])
def test_an_id_that_is_empty_zero_or_over_four_bytes_is_malformed(body: str) -> None:
    with pytest.raises(RemoteProtocolError, match=Reason.MALFORMED_PACKET):
        protocol.parse_user_id(bytes.fromhex(body))


@pytest.mark.parametrize(("body", "user_id"), [("01", 1), ("0001", 1), ("000001", 1), ("ffffffff", 2**32 - 1)])
def test_an_id_may_have_any_width_up_to_four_bytes(body: str, user_id: int) -> None:
    assert protocol.parse_user_id(bytes.fromhex(body)) == user_id


@pytest.mark.parametrize(
    ("body", "login"),
    [
        ("0001 61", ("a", "", None)),
        ("0000", ("", "", None)),
        ("0001 61 0000", ("a", "", None)),
        ("0001 61 0001 62", ("a", "b", None)),
        ("0001 61 0001 62 ff", ("a", "b", protocol.ALL_FEATURES)),
    ],
)
def test_a_login_has_a_name_and_may_have_a_password_and_features(
    body: str, login: tuple[str, str, Feature | None]
) -> None:
    assert protocol.parse_login(bytes.fromhex(body)) == login


@pytest.mark.parametrize("body", ["", "00", "0002 61", "0001 61 00", "0001 61 0002 62", "0001 61 0000 0000", "0001 ff"])
def test_a_login_that_does_not_parse_is_malformed(body: str) -> None:
    with pytest.raises(RemoteProtocolError, match=Reason.MALFORMED_PACKET):
        protocol.parse_login(bytes.fromhex(body))


@pytest.mark.parametrize("name", ["a", "Bob", "ä" * 16, "x" * 32, "名前", '"quoted"', "a'b", "😀"])
def test_a_printable_name_of_up_to_32_bytes_is_valid(name: str) -> None:
    assert protocol.is_valid_username(name)


@pytest.mark.parametrize(
    "name",
    ["", "x" * 33, "ä" * 17, "a b", "a\tb", "a\nb", "a:b", "a,b", "\x1b[2J", "\u202e", "a\u00a0b", "e\u0301", "\ud800"],
)
def test_a_name_that_could_confuse_is_invalid(name: str) -> None:
    assert not protocol.is_valid_username(name)


HIDES = [
    "alice\ufe0f",
    "al\u034fice",
    "\u17b4alice",
    "\u115f",
    "\u180balice",
    "\u3164",
    "\u2800",
    "\uffa0x",
    "x\U000e0100",
]


@pytest.mark.parametrize("name", ["1", "007", "\u0661\u0662", "#room", *HIDES])
def test_a_name_that_is_an_id_a_room_or_shows_nothing_cannot_be_signed_up(name: str) -> None:
    assert protocol.is_valid_username(name), "users who have it already keep it"
    assert not protocol.may_sign_up(name)


@pytest.mark.parametrize("name", ["1st", "a#", "名前", "😀", "²", "अनु"])
def test_any_other_valid_name_can_be_signed_up(name: str) -> None:
    assert protocol.is_valid_username(name)
    assert protocol.may_sign_up(name)


@pytest.mark.parametrize("user_id", [0, -1, 2**32])
def test_encoding_an_id_that_no_packet_can_carry_is_a_local_error(user_id: int) -> None:
    with pytest.raises(LocalProtocolError):
        protocol.encode_chat_init(user_id)


def test_encoding_a_text_over_136_bytes_is_a_local_error() -> None:
    with pytest.raises(LocalProtocolError):
        protocol.encode_message(b"x" * 137)


texts = st.text(st.characters(exclude_categories=["Cs"]))
names = texts.filter(protocol.is_valid_username)


packets_from_a_client = st.builds(protocol.encode, st.sampled_from(sorted(FROM_CLIENT)), st.binary(max_size=138))


@given(st.lists(st.one_of(packets_from_a_client, packets_from_a_client, st.binary(max_size=5))), st.data())
def test_any_bytes_give_the_same_packets_and_error_in_any_chunks(parts: list[bytes], chunks: st.DataObject) -> None:
    data = b"".join(parts)
    cuts = sorted(chunks.draw(st.lists(st.integers(0, len(data)), max_size=20)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    whole, pieced = Decoder(FROM_CLIENT), Decoder(FROM_CLIENT)
    assert decode(whole, data) == decode(pieced, *pieces)


@given(st.lists(st.tuples(st.sampled_from(sorted(FROM_CLIENT)), st.binary(max_size=138)), max_size=20))
def test_packets_decode_to_what_was_encoded(packets: list[tuple[PacketType, bytes]]) -> None:
    stream = b"".join(protocol.encode(kind, body) for kind, body in packets)
    assert decode(Decoder(FROM_CLIENT), stream) == (packets, None)


@given(st.binary(max_size=138))
def test_any_body_parses_or_is_malformed(body: bytes) -> None:
    for parse in (protocol.parse_login, protocol.parse_user, protocol.parse_user_id, protocol.parse_text):
        try:
            parse(body)
        except RemoteProtocolError as error:
            assert error.reason is Reason.MALFORMED_PACKET


@given(names, st.binary(max_size=136))
def test_a_relayed_text_fits_packets_and_arrives_unchanged(sender: str, text: bytes) -> None:
    text = text.decode(errors="ignore").encode()
    packets, error = decode(Decoder(FROM_SERVER), Envelope(sender).wrap(text))
    assert error is None
    prefix = f"{sender}:".encode()
    pieces = [protocol.parse_text(body) for _, body in packets]
    assert all(piece.startswith(prefix) for piece in pieces)
    assert b"".join(piece.removeprefix(prefix) for piece in pieces) == text


@given(names, texts.filter(lambda text: 0 < len(text.encode()) <= 64), st.integers(1, 2**32 - 1))
def test_logins_and_user_entries_survive_the_round_trip(name: str, password: str, user_id: int) -> None:
    assert protocol.parse_login(protocol.encode_login(name, password)[2:]) == (name, password, None)
    assert protocol.parse_user(protocol.encode_user(name, user_id, 4)[2:]) == (name, user_id)
    assert protocol.parse_user_id(protocol.encode_chat_init(user_id)[2:]) == user_id


@given(st.lists(st.binary(max_size=138), min_size=1, max_size=8), st.data())
def test_the_rest_of_a_partly_sent_packet_ends_at_the_next_boundary(bodies: list[bytes], data: st.DataObject) -> None:
    packets = [protocol.encode(PacketType.PING, body) for body in bodies]
    stream = b"".join(packets)
    sent = data.draw(st.integers(0, len(stream)))
    boundaries = [sum(map(len, packets[:count])) for count in range(len(packets) + 1)]
    end = min(boundary for boundary in boundaries if boundary >= sent)
    assert protocol.rest_of_packet(stream, sent) == stream[sent:end]


def test_the_protocol_is_pure() -> None:
    imported = set()
    for node in ast.walk(ast.parse(Path(protocol.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    pure = {"collections.abc", "contextlib", "enum", "functools", "typing", "unicodedata"}
    assert imported == {*pure, "_protocol", "os"}, "the environment is all that it needs of os"


plain = st.text(max_size=40).map(str.encode).map(protocol.encode_message)
odd = st.one_of(
    st.text(min_size=30, max_size=34).map(lambda text: protocol.encode_message(4 * text.encode()[:34])),  # split
    st.binary(max_size=138).map(lambda body: protocol.encode(PacketType.MESSAGE, body)),
    st.binary(max_size=3),
    st.just(protocol.encode(PacketType.PING, b"ping")),
)


@given(st.lists(st.one_of(plain, plain, plain, odd)).map(b"".join), st.lists(st.integers(0, 400)), st.integers(1, 32))
def test_messages_decoded_as_a_run_equal_those_decoded_one_by_one(
    stream: bytes, cuts: list[int], name_bytes: int
) -> None:
    together, one_by_one = Decoder(FROM_CLIENT), Decoder(FROM_CLIENT)
    envelope = Envelope("n" * name_bytes)
    edges = [0, *sorted(cuts), len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(edges)]
    packets, error = decode(one_by_one, *chunks)
    said: list[bytes] = []
    reason = None
    for kind, body in packets:
        try:
            said.append(envelope.wrap(protocol.parse_text(body)) if kind == PacketType.MESSAGE else body)
        except RemoteProtocolError as malformed:
            reason = malformed.reason
            break
    assert relay(together, envelope, chunks) == (said, reason or error)


def relay(decoder: Decoder, envelope: Envelope, chunks: list[bytes]) -> tuple[list[bytes], Reason | None]:
    """Decode as a server does: (what goes to the receiver and the bodies of other packets, the error at the end)."""
    said: list[bytes] = []
    try:
        for chunk in chunks:
            decoder.feed(chunk)
            while True:
                run = decoder.messages(envelope)
                said += protocol.each_message(run)
                if (packet := decoder.next()) is None:
                    break
                kind, body = packet
                said.append(envelope.wrap(protocol.parse_text(body)) if kind == PacketType.MESSAGE else body)
    except RemoteProtocolError as error:
        return said, error.reason
    return said, None


@given(st.lists(st.binary(max_size=50)))
def test_fewer_than_140_bytes_are_held_between_two_chunks(chunks: list[bytes]) -> None:
    decoder = Decoder(FROM_CLIENT)
    for chunk in chunks:
        _, error = decode(decoder, chunk)
        assert len(decoder.rest) < protocol.MAX_PACKET_BYTES
        if error:
            return
