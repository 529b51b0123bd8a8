"""Initial packets: those of docs/PROTOCOL.md, sections 4 and 7, some of every type, and some with a fault."""

from protocol import (
    ALL_FEATURES,
    Feature,
    PacketType,
    encode,
    encode_chat_init,
    encode_history_request,
    encode_login,
    encode_message,
)

DOCUMENTED = [
    bytes.fromhex(text)
    for text in (
        "01 06 0004 55736572",
        "01 07 0004 55736572 01",
        "02 01 03",
        "03 07 0005 48656c6c6f",
        "03 0c 000a 557365723a48656c6c6f",
        "04 16 0014 5573657220416c7265616479204f6e6c696e6521",
        "01 08 0004 55736572 0001",
        "02 02 0003",
        "01 0e 0004 55736572 0006 736563726574",
        "01 09 0004 55736572 0000 01",
        "05 08 01 0004 55736572 03",
        "06 09 01 00000001 00000007",
        "07 02 14 03",
        "07 05 65000000 03",
        "07 00",
    )
]
LOGINS = [
    encode_login("zoë", "secret"),
    encode_login("vault"),
    encode_login("vault", "wrong"),
    encode_login("vault", "secret"),
    encode_login("alice"),
    encode_login("ALICE"),
    encode_login("mallory"),
    encode_login("mallory", "x" * 65),
    encode_login("no, no"),
    encode_login("n" * 32),
]
CHATS = [encode_chat_init(user_id) for user_id in (1, 2, 3, 4, 200, 2**32 - 1)]
MESSAGES = [encode_message(text) for text in (b"", b"hello", b"a:b,c\r\n\0", "ß€😀".encode() * 15, b"x" * 136)]
PINGS = [encode(kind, body) for kind in (PacketType.PING, PacketType.PONG) for body in (b"", b"\xff" * 138)]
FAULTS = [
    bytes.fromhex(text)
    for text in (
        "03 ff",
        "77 00",
        "01 00",
        "02 01 00",
        "03 03 0002 61",
        "03 03 0001 ff",
        "01 07 0001 61 0000 01 00",
        "07 01 14",
        "07 02 14 00",
        "07 06 01 0000000003",
    )
]

ASKED_FOR = (*Feature, Feature.RECEIPTS | Feature.MAILBOX, ALL_FEATURES)
ASKS = [encode_login("mallory", "", features) for features in ASKED_FOR]  # for the list, where she is online
NEVERMIND = bytes.fromhex("01 0c 0007 6d616c6c6f7279 0000 00")  # "mallory" asks for nothing any more
UNKNOWN = bytes.fromhex("01 0c 0007 6d616c6c6f7279 0000 e0")  # ... for what nobody knows
COMERS = [encode_login("zoë", "secret", features) for features in ASKED_FOR]
REFUSED = encode_login("alice", "", ALL_FEATURES)
REPLAYS = [encode_history_request(count, user_id) for count, user_id in ((20, 1), (255, 4), (3, 4), (0, 3), (9, 200))]
FEATURES = [*ASKS, NEVERMIND, UNKNOWN, *COMERS, REFUSED, *REPLAYS]

PACKETS = DOCUMENTED + LOGINS + CHATS + MESSAGES + PINGS + FAULTS + FEATURES
