"""Any bytes: the fuzzer's target agrees with the server, tells when the server is wrong, and libFuzzer finds where."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import protocol
from chatserver.accounts import Accounts
from chatserver.relay import Relay
from chatserver.session import HANDLERS, Session, State
from protocol import Decoder, Envelope
from stress.fuzz import CANNOT, can_fuzz, fuzz
from stress.inputs import corpus, mutate
from stress.target import Broken, run
from tests.processes import DEADLINE, ROOT

needs_atheris = pytest.mark.skipif(not can_fuzz(), reason=CANNOT)


def run_all() -> None:
    for data in corpus():
        run(data)


def test_the_server_does_what_the_model_says_with_every_input_to_begin_with() -> None:
    run_all()


def raise_key_error(*_: object) -> None:
    raise KeyError(0)


def to_alice(relay: Relay, _: int, messages: list[bytes]) -> int:
    return relay._online[1].outbox.put_each(messages)


def to_nobody(_: Relay, __: int, messages: list[bytes]) -> int:
    return len(messages)


def wrap_swapped(_: Envelope, text: bytes) -> bytes:
    return protocol.encode_message(b"alice:" + text[::-1])


def forget_rest(decoder: Decoder, data: bytes) -> Any:
    decoder._rest = b""
    yield from whole_packets(decoder, data)


whole_packets = Decoder.packets


FAULTS: dict[str, tuple[object, str, object]] = {
    "an exception of a handler": (HANDLERS[State.CHATTING], "8", raise_key_error),
    "a message to the wrong one": (Relay, "deliver", to_alice),
    "a message lost": (Relay, "deliver", to_nobody),
    "bytes of a message swapped": (Envelope, "wrap", wrap_swapped),
    "the beginning of a packet forgotten": (Decoder, "packets", forget_rest),
    "a user online twice": (Accounts, "_is_present", lambda *_: False),
    "a user who stays online": (Session, "end", lambda session: session._outbox.close()),
    "any password taken": (Accounts, "_matches", lambda *_: True),
    "a partner without asking": (Relay, "is_online", lambda *_: True),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_target_tells_a_server_that_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, what, fault = FAULTS[name]
    if isinstance(place, dict):
        monkeypatch.setitem(place, int(what), fault)
    else:
        monkeypatch.setattr(place, what, fault)
    with pytest.raises((Broken, KeyError)):
        run_all()


def test_the_server_does_what_the_model_says_with_random_inputs_too() -> None:
    for seed in range(500):
        data = mutate(bytes(range(seed % 256)), seed)
        for _ in range(20):
            data = mutate(data, seed)
        run(data[:256])


@needs_atheris
def test_a_short_run_of_libfuzzer_from_a_fixed_seed_finds_nothing(tmp_path: Path) -> None:
    outcome = fuzz(tmp_path, "-seed=1", "-runs=1000")
    assert outcome.crash is None, outcome.told
    assert outcome.runs == 1000
    assert outcome.coverage > 150
    assert outcome.corpus > 50


@needs_atheris
@pytest.mark.slow
def test_a_longer_run_of_libfuzzer_from_a_fixed_seed_finds_nothing(tmp_path: Path) -> None:
    outcome = fuzz(tmp_path, "-seed=1", "-runs=10000")
    assert outcome.crash is None, outcome.told
    assert outcome.runs == 10000


FAULTY = """
import atheris
from stress.libfuzzer import start
from chatserver.session import HANDLERS, State

@atheris.instrument_func
def ping(session, body):
    if 0 < len(body) < 9:
        raise KeyError("short")
    honest(session, body)

honest = HANDLERS[State.CHATTING][8]
HANDLERS[State.CHATTING][8] = ping
start()
"""


@needs_atheris
def test_libfuzzer_finds_the_bytes_that_break_a_server_and_keeps_the_input(tmp_path: Path) -> None:
    outcome = fuzz(tmp_path, "-seed=1", "-runs=20000", program=("-c", FAULTY))
    assert "KeyError: 'short'" in outcome.told
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
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3 * DEADLINE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ runs in \d+ s, \d+ branches reached, \d+ inputs kept$", done.stdout, re.MULTILINE)
    assert "60 conversations in" in done.stdout
    assert done.stdout.endswith("\n0 faults\n")
