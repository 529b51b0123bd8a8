"""A flood leaves other senders their part of a receiver, and a client that has left keeps no place."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import DEVNULL, run
from threading import Event, Thread

import pytest

from protocol import PacketType, Reason, encode, encode_chat_init, encode_error, encode_login, encode_message
from testkit.processes import DEADLINE, ROOT
from testkit.server import ServerProcess, StartServer
from testkit.wire import Wire

pytestmark = pytest.mark.measured

PING, PONG = encode(PacketType.PING, b"?"), (PacketType.PONG, b"?")
TINY = encode_message(b"") * 4096  # a flood that grows tenfold: each comes with its sender's name


@contextmanager
def read_steadily(wire: Wire, bytes_a_second: int) -> Iterator[None]:
    """Read so much, and what is sent beyond that later."""
    over = Event()

    def read() -> None:
        began, total = time.monotonic(), 0
        while not over.wait(0.02):
            due = int((time.monotonic() - began) * bytes_a_second) - total
            if due > 0 and not (data := wire.socket.recv(min(due, 4096))):
                return
            total += len(data) if due > 0 else 0

    reader = Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        over.set()
        reader.join()


def flood(wire: Wire) -> None:
    """Send to user 1 until nothing more is taken."""
    wire.send(encode_chat_init(1))
    wire.socket.settimeout(0.5)
    try:
        while True:
            wire.socket.sendall(TINY)
    except TimeoutError:
        return


def log_in_with_long_name(server: ServerProcess, number: int) -> Wire:
    return server.log_in(f"flooder{number}".ljust(32, "x"))


@pytest.mark.slow
def test_places_of_flooders_who_have_left_are_free_when_others_wait(start_server: StartServer) -> None:
    """Their kernels go on sending, so that nobody can tell that they have left."""
    server = start_server("--pool-size", 4, "--write-timeout", 60, "--yield-after", 2)
    reader = server.log_in("reader")
    with read_steadily(reader, 10_000):
        for number in range(3):
            flooder = log_in_with_long_name(server, number)
            flood(flooder)
            flooder.close()
        began = time.monotonic()
        with server.connect() as newcomer:
            newcomer.send(encode_login("newcomer"))
            newcomer.read_list("newcomer")
        assert time.monotonic() - began < DEADLINE


def test_a_silent_client_gives_up_its_place_when_others_wait(start_server: StartServer) -> None:
    server = start_server("--pool-size", 2, "--yield-after", 2)
    chatting, silent = server.log_in("chatting"), server.log_in("silent")
    with server.connect() as newcomer:
        newcomer.send(encode_login("newcomer"))
        packet = None
        while packet in (None, PONG):
            chatting.send(encode_login("chatting"))
            chatting.read_list("chatting")
            silent.send(PING)  # no sign of a chat
            packet = silent.read()
            time.sleep(0.1)
        assert packet == (PacketType.ERROR, encode_error(Reason.PLACE_NEEDED)[2:])
        silent.expect_end()
        silent.close()
        newcomer.read_list("newcomer")
        chatting.expect_pong()
    server.log_in("silent").close()


def test_who_is_written_to_keeps_the_place_and_so_does_everybody_while_nobody_waits(start_server: StartServer) -> None:
    server = start_server("--pool-size", 2, "--yield-after", 1.5)
    reader, writer = server.log_in("reader"), server.log_in("writer")
    time.sleep(4)
    writer.chat_with(1)
    with server.connect():
        for number in range(30):
            writer.say(str(number))
            reader.expect_message(f"writer:{number}")
            time.sleep(0.1)
        assert "disconnected" not in server.log


@pytest.mark.slow
def test_a_kicked_user_who_waits_for_a_slow_reader_frees_the_place_and_the_name(start_server: StartServer) -> None:
    server = start_server("--pool-size", 2, "--write-timeout", 60)
    reader = server.log_in("reader")
    with read_steadily(reader, 5_000), log_in_with_long_name(server, 0) as flooder:
        flood(flooder)
        kick = [sys.executable, "admin.py", "--data-dir", str(server.data_dir), "kick", "flooder0".ljust(32, "x")]
        run(kick, cwd=ROOT, check=True, stdout=DEVNULL)
        log_in_with_long_name(server, 0).close()


@pytest.mark.slow
def test_a_reader_that_is_slow_and_steady_is_not_too_slow(start_server: StartServer) -> None:
    server = start_server()
    reader = server.log_in("reader")
    with read_steadily(reader, 10_000), log_in_with_long_name(server, 0) as flooder:
        flooder.send(encode_chat_init(1))
        end = time.monotonic() + 50
        flooder.socket.settimeout(1)
        while time.monotonic() < end:
            try:
                flooder.socket.sendall(TINY)
            except TimeoutError:
                continue
        assert "reader disconnected" not in server.log


def test_the_servers_own_pause_ends_nobodys_time(start_server: StartServer) -> None:
    """What has arrived meanwhile is read before a deadline is judged."""
    server = start_server("--login-timeout", 2, "--idle-timeout", 2)
    idle, newcomer = server.log_in("idle"), server.connect()
    server.process.send_signal(signal.SIGSTOP)
    idle.send(PING)
    newcomer.send(encode_login("newcomer"))
    time.sleep(3)
    server.process.send_signal(signal.SIGCONT)
    newcomer.read_list("newcomer")
    assert idle.read() == PONG
