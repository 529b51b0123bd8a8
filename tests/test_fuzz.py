"""Any bytes: the fuzzer's target agrees with the server, tells when the server is wrong, and libFuzzer finds where."""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import protocol
from chatserver.messages import delivery
from chatserver.messages.archive import LocalArchive, Mail
from chatserver.messages.batch import Batch
from chatserver.messages.delivery import LocalDelivery, UnrecordedRoute
from chatserver.people.accounts import Accounts
from chatserver.people.presence import LocalPresence, Member
from chatserver.session import PARSERS, Session, State
from chatserver.transport.marks import Fate
from chatserver.transport.outbox import Outbox
from chatserver.transport.receipts import Receipts
from chatstorage.chats import ChatRow
from protocol import FROM_CLIENT, Decoder, Envelope, Feature, Level, Login, PacketType, Reason, RemoteProtocolError, Run
from stress.fuzz import CANNOT, can_fuzz, fuzz
from stress.inputs import corpus, mutate
from stress.reading import Broken
from stress.target import run
from testkit.processes import DEADLINE, ROOT

FIXED = ("-seed=1", "-reload=0")  # else files of the corpus are read again, after so many seconds
needs_atheris = pytest.mark.skipif(not can_fuzz(), reason=CANNOT)


def run_all() -> None:
    for data in corpus():
        run(data)


def test_the_server_agrees_with_the_model_for_every_initial_input() -> None:
    run_all()


def raise_key_error(*_: object) -> None:
    raise KeyError(0)


def to_nobody(_: Outbox, run: Run, *__: object) -> int:
    return run.messages


def wrap_swapped(envelope: Envelope, text: bytes) -> bytes:
    return wrap(envelope, text[:-2] + text[:-3:-1])


def take_swapped(decoder: Decoder, envelope: Envelope) -> Run:
    packets, count = take_messages(decoder, envelope)
    return Run(packets[:-2] + packets[:-3:-1], count)


def take_invalid(decoder: Decoder, envelope: Envelope) -> Run:
    with patch("protocol._is_text", lambda _: True), patch("protocol.wrap_messages", protocol._wrap_messages):
        return take_messages(decoder, envelope)


def forget_rest(decoder: Decoder, data: bytes) -> None:
    decoder.forget()
    feed(decoder, data)


def take_one_swapped(decoder: Decoder, data: bytes, envelope: Envelope) -> bytes:
    packet = take_message(decoder, data, envelope)
    return packet[:-2] + packet[:-3:-1]


def take_out_of_turn(_: Decoder, data: bytes, envelope: Envelope) -> bytes:
    return take_message(Decoder(FROM_CLIENT), data, envelope)


def offer_and_refuse(route: UnrecordedRoute, packet: bytes, number: int) -> bool:
    offer(route, packet, number)
    return False


feed, take_message, take_messages, wrap = Decoder.feed, Decoder.message, Decoder.messages, Envelope.wrap
offer = UnrecordedRoute.offer


# What section 7 asks for


def forget_brief(body: bytes) -> Login:
    login = protocol.parse_login(body)
    return login._replace(features=login.features and login.features & ~Feature.BRIEF)


def refuse_unknown(body: bytes) -> Login:
    if body[-1] > 0x1F and not body.endswith(b"secret"):
        raise RemoteProtocolError(Reason.MALFORMED_PACKET)
    return protocol.parse_login(body)


def accept_always(decoder: Decoder, extra: dict[PacketType, Feature], _: Feature) -> None:
    decoder._accepts = decoder._accepts | set(extra)


def refuse_and_accept(session: Session, name: str, reason: Reason) -> None:
    accept_always(session._decoder, protocol.EXTRA_FROM_CLIENT, protocol.ALL_FEATURES)
    refuse_login(session, name, reason)


def refuse_unnumbered(session: Session, reason: Reason) -> None:
    session._counters.messages_accepted += 1
    session._refuse_message(reason)


def accept_for_ever(decoder: Decoder, extra: dict[PacketType, Feature], features: Feature) -> None:
    decoder._accepts = decoder._accepts | {one for one, feature in extra.items() if feature in features}


def watch_always(presence: LocalPresence, member: Member, _: bool) -> None:
    watch(presence, member, wanted=True)


def leave_in_silence(presence: LocalPresence, member: Member) -> None:
    presence.watch(member, wanted=False)
    del presence._online[member.user_id]


def settle_at_once(outbox: Outbox, packets: bytes, messages: int = 0, fate: Fate | None = None) -> None:
    queue(outbox, packets)
    if fate:
        fate.delivered(messages)


def store_at_once(archive: LocalArchive, batch: Batch) -> None:
    if batch.receipts:
        batch.receipts.reach(Level.STORED, batch.first, batch.first + batch.count - 1)
    add(archive, batch)


def reach_one_by_one(receipts: Receipts, level: Level, first: int, last: int) -> None:
    receipts._ranges[level] += [(number, number) for number in range(first, last + 1)]
    receipts._announce()


def receipt_to_any(delivery: LocalDelivery, row: ChatRow) -> Batch:
    batch, sender = batch_again(delivery, row), delivery._presence.find(row.sender)
    batch.receipts = sender.receipts if sender else None
    return batch


def receipt_to_nobody(delivery: LocalDelivery, row: ChatRow) -> Batch:
    batch = batch_again(delivery, row)
    batch.receipts = None
    return batch


def take_for_delivered(batch: Batch, count: int) -> None:
    batch.counters.messages_mailed += count
    batch.delivered_count += count
    batch._settle()


def settle_in_memory(archive: LocalArchive, batch: Batch) -> None:
    settled(archive, batch)
    if batch.written is not None:
        archive._queue._unwritten.pop(batch.id, None)


def take_newest_first(archive: LocalArchive, *arguments: Any) -> Sequence[Mail]:
    return [*take_mail(archive, *arguments)][::-1]


def take_too_many(archive: LocalArchive, *arguments: Any) -> None:
    make_archive(archive, *arguments)
    archive._mailbox_messages = 1000


def date_late(_: int, sender: int, id_width: int) -> bytes:
    return protocol.encode_dated(int(time.time()) + 100, sender, id_width)


queue = Outbox._queue
refuse_login = Session._refuse_login
watch = LocalPresence.watch
make_archive, add, last = LocalArchive.__init__, LocalArchive.add, LocalArchive.last
settled, take_mail = LocalArchive.settled, LocalArchive.take_mail
batch_again = LocalDelivery._batch_again

FAULTS: dict[str, tuple[object, str, object]] = {
    "an exception of a handler": (Session.HANDLERS[State.CHATTING], "8", raise_key_error),
    "a message to the wrong one": (LocalPresence, "find", lambda presence, _: presence._online[1]),
    "a message lost": (Outbox, "deliver", to_nobody),
    "a message lost that needs no waiting": (Outbox, "offer", lambda *_: True),
    "bytes of a long message swapped": (Envelope, "wrap", wrap_swapped),
    "bytes of a message swapped": (Decoder, "messages", take_swapped),
    "bytes of a lone message swapped": (Decoder, "message", take_one_swapped),
    "a lone message in spite of what is held": (Decoder, "message", take_out_of_turn),
    "a message twice": (UnrecordedRoute, "offer", offer_and_refuse),
    "a text that is none": (Decoder, "messages", take_invalid),
    "the beginning of a packet forgotten": (Decoder, "feed", forget_rest),
    "a user online twice": (Accounts, "_is_present", lambda *_: False),
    "a user who stays online": (Session, "end", lambda session: session._outbox.close()),
    "any password taken": (Accounts, "_matches", lambda *_: True),
    "a partner without asking": (LocalDelivery, "why_not", lambda *_: None),
    "a list for who asked for none": (PARSERS, "1", forget_brief),
    "a login refused for a feature that nobody knows": (PARSERS, "1", refuse_unknown),
    "a feature that was not asked for": (Decoder, "accept_extra", accept_always),
    "a feature that a refused login asked for": (Session, "_refuse_login", refuse_and_accept),
    "a feature that is not asked for any more": (Decoder, "accept_extra", accept_for_ever),
    "presence for who did not ask": (LocalPresence, "watch", watch_always),
    "presence of who goes forgotten": (LocalPresence, "leave", leave_in_silence),
    "a delivered receipt ahead of the truth": (Outbox, "_queue", settle_at_once),
    "a stored receipt ahead of the truth": (LocalArchive, "add", store_at_once),
    "a stored receipt forgotten": (Batch, "stored", lambda _: None),
    "a receipt for a number too low": (Session, "_refuse_next", refuse_unnumbered),
    "a receipt for each message": (Receipts, "reach", reach_one_by_one),
    "a receipt for another connection": (LocalDelivery, "_batch_again", receipt_to_any),
    "a receipt for mail forgotten": (LocalDelivery, "_batch_again", receipt_to_nobody),
    "mail of who was dropped lost": (Batch, "dropped", take_for_delivered),
    "mail delivered twice": (LocalArchive, "settled", settle_in_memory),
    "mail in the wrong order": (LocalArchive, "take_mail", take_newest_first),
    "mail for who does not exist": (LocalDelivery, "_may_mail", lambda _, sender, __: sender.mails),
    "more mail than may wait": (LocalArchive, "__init__", take_too_many),
    "a replay with something in between": (Outbox, "reserved", lambda _: nullcontext()),
    "a replay in the wrong order": (LocalArchive, "last", lambda *arguments: last(*arguments)[::-1]),
    "a replay one too short": (
        LocalArchive,
        "last",
        lambda archive, *pair_and_count: last(archive, *pair_and_count)[1:],
    ),
    "a replay of others": (LocalArchive, "last", lambda archive, _, __, count: last(archive, 1, 2, count)),
    "a replay with another date": (delivery, "encode_dated", date_late),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_target_detects_a_wrong_server(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, what, fault = FAULTS[name]
    if isinstance(place, dict):
        monkeypatch.setitem(place, int(what), fault)
    else:
        monkeypatch.setattr(place, what, fault)
    with pytest.raises((Broken, KeyError)):
        run_all()


def test_the_server_agrees_with_the_model_for_random_inputs() -> None:
    for seed in range(500):
        data = mutate(bytes(range(seed % 256)), seed)
        for _ in range(20):
            data = mutate(data, seed)
        run(data[:256])


@needs_atheris
def test_a_short_run_of_libfuzzer_from_a_fixed_seed_finds_nothing(tmp_path: Path) -> None:
    outcome = fuzz(tmp_path, *FIXED, "-runs=1000")
    assert outcome.crash is None, outcome.report
    assert outcome.runs == 1000
    assert outcome.coverage > 400
    assert outcome.corpus > 100


@needs_atheris
@pytest.mark.slow
def test_a_longer_run_of_libfuzzer_from_a_fixed_seed_finds_nothing(tmp_path: Path) -> None:
    outcome = fuzz(tmp_path, *FIXED, "-runs=6000")
    assert outcome.crash is None, outcome.report
    assert outcome.runs == 6000


FAULTY = """
import atheris
from stress.libfuzzer import start
from chatserver.session import Session, State

@atheris.instrument_func
def ping(session, body):
    if 0 < len(body) < 9:
        raise KeyError("short")
    honest(session, body)

honest = Session.HANDLERS[State.CHATTING][8]
Session.HANDLERS[State.CHATTING][8] = ping
start()
"""


@needs_atheris
def test_libfuzzer_finds_the_bytes_that_break_a_server_and_keeps_the_input(tmp_path: Path) -> None:
    outcome = fuzz(tmp_path, *FIXED, "-runs=20000", program=("-c", FAULTY))
    assert "KeyError: 'short'" in outcome.report
    assert outcome.crash is not None
    assert b"\x08" in outcome.crash.read_bytes()
    command = [sys.executable, "-c", FAULTY, str(outcome.crash)]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert "KeyError: 'short'" in again.stdout
    assert again.returncode != 0


@needs_atheris
@pytest.mark.slow
def test_the_program_ends_with_its_figures_and_status_0() -> None:
    command = [sys.executable, "-m", "stress.fuzz", "--seconds", "2", "--conversations", "60"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=6 * DEADLINE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ runs in \d+ s, \d+ branches reached, \d+ inputs kept$", done.stdout, re.MULTILINE)
    assert "60 conversations in" in done.stdout
    assert done.stdout.endswith("\n0 faults\n")
