"""protocol.wrap_messages in Python and in C: the same result for any bytes."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocol
from protocol import FROM_CLIENT, Decoder, Envelope, PacketType, encode_message
from testkit.processes import DEADLINE, ROOT

Wrap = Callable[[bytes, int, Envelope, bool], tuple[bytes, int, int]]

needs_compiler = pytest.mark.skipif(
    not protocol.IS_COMPILED,
    reason="no compiled protocol: there is no C compiler or no Python.h, or CHAT_PURE_PYTHON is set",
)
TWINS = [
    pytest.param(protocol._wrap_messages, id="Python"),
    pytest.param(protocol.wrap_messages, id="C", marks=needs_compiler),
]
ANN = Envelope("ann")
MESSAGE, PING = encode_message(b"hello"), b"\x08\x00"


@pytest.mark.parametrize("wrap", TWINS)
class TestWrapMessages:
    def test_plain_messages_become_one_run(self, wrap: Wrap) -> None:
        texts = [b"one", b"", "drei \N{SNOWMAN}".encode(), b"x" * 132]
        stream = b"".join(map(encode_message, texts))
        assert wrap(stream, 0, ANN, False) == (b"".join(map(ANN.wrap, texts)), 4, len(stream))

    def test_it_begins_at_a_position_and_ends_behind_the_last_plain_message(self, wrap: Wrap) -> None:
        stream = PING + MESSAGE * 2 + PING + MESSAGE
        assert wrap(stream, len(PING), ANN, True) == (ANN.wrap(b"hello") * 2, 2, len(PING + MESSAGE * 2))

    @pytest.mark.parametrize(
        "end",
        [
            pytest.param(b"", id="the end"),
            pytest.param(MESSAGE[:1], id="part of a header"),
            pytest.param(MESSAGE[:-1], id="an incomplete Message"),
            pytest.param(PING, id="another packet"),
            pytest.param(bytes.fromhex("03 03 0002 61"), id="a text shorter than it says"),
            pytest.param(bytes.fromhex("03 04 0001 6161"), id="a text longer than it says"),
            pytest.param(bytes.fromhex("03 03 0101 61"), id="a length of two bytes"),
            pytest.param(encode_message(b"\xff"), id="no UTF-8"),
            pytest.param(encode_message(b"x" * 133), id="a text that will be two packets"),
            pytest.param(b"\x03\xff\x00\xfd" + b"x" * 253, id="a packet that is too long"),
        ],
    )
    def test_whatever_else_comes_ends_the_run(self, wrap: Wrap, end: bytes) -> None:
        assert wrap(MESSAGE + end + MESSAGE, 0, ANN, end.isascii())[1:] in {(1, len(MESSAGE)), (2, 2 * len(MESSAGE))}
        assert wrap(MESSAGE + end, 0, ANN, end.isascii()) == (ANN.wrap(b"hello"), 1, len(MESSAGE))

    def test_nothing_is_read_beyond_the_end(self, wrap: Wrap) -> None:
        assert wrap(MESSAGE, len(MESSAGE), ANN, True) == (b"", 0, len(MESSAGE))
        assert wrap(b"", 0, ANN, True) == (b"", 0, 0)

    def test_the_longest_name_leaves_room_for_the_rest(self, wrap: Wrap) -> None:
        long = Envelope("n" * 32)
        fits, splits = encode_message(b"x" * 103), encode_message(b"x" * 104)
        assert wrap(fits + splits, 0, long, True) == (long.wrap(b"x" * 103), 1, len(fits))

    def test_a_decoder_hands_out_runs(self, wrap: Wrap, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(protocol, "wrap_messages", wrap)
        decoder = Decoder(FROM_CLIENT)
        decoder.feed(MESSAGE * 3 + PING + MESSAGE)
        assert decoder.messages(ANN) == (ANN.wrap(b"hello") * 3, 3)
        assert decoder.messages(ANN) == (b"", 0)
        assert decoder.next() == (PacketType.PING, b"")
        assert decoder.messages(ANN) == (ANN.wrap(b"hello"), 1)
        assert decoder.next() is None


texts = st.one_of(st.binary(max_size=140), st.text(max_size=40).map(str.encode), st.just(b"hello"))
packets = st.one_of(
    texts.map(lambda text: b"\x03" + bytes((min(len(text) + 2, 255), 0, len(text))) + text), st.binary(max_size=8)
)


@needs_compiler
@given(st.lists(packets).map(b"".join), st.integers(0, 600), st.integers(1, 32))
def test_both_agree_byte_for_byte(stream: bytes, at: int, name_bytes: int) -> None:
    envelope = Envelope("n" * name_bytes)
    for is_ascii in {False, stream.isascii()}:
        arguments = stream, min(at, len(stream)), envelope, is_ascii
        assert protocol.wrap_messages(*arguments) == protocol._wrap_messages(*arguments)


@needs_compiler
def test_wrong_arguments_are_errors() -> None:
    for arguments in ((), ("text", 0, ANN, True), (b"", "0", ANN, True), (b"", 0, object(), True)):
        with pytest.raises((TypeError, AttributeError)):
            protocol.wrap_messages(*arguments)


@pytest.mark.slow
def test_without_a_compiler_the_build_goes_on_and_says_nothing(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "_protocol.c", "README.md", "LICENSE", "chatserver"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    build = "import setuptools; setuptools.setup(packages=[], py_modules=[])"
    done = subprocess.run(
        [sys.executable, "-c", build, "--quiet", "build_ext", "--inplace"],
        cwd=tmp_path,
        env={"CC": "/no/compiler", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("*.so"))
