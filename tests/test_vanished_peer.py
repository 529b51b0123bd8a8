"""A peer that vanishes without a FIN or RST, as when a cable is pulled or a laptop goes to sleep."""

import ctypes
import os
import re
import select
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from client import ChatClient, ConnectionClosed
from protocol import Reason, encode_login
from testkit.flood import BIG, Flood
from testkit.processes import wait_for
from testkit.server import ServerProcess, StartServer
from testkit.wire import Wire

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ABOUT_A_MINUTE = 90.0  # seconds, generous
UNREACHABLE = "Connection timed out|No route to host"  # by keepalive or TCP_USER_TIMEOUT; no route if ARP fails too
CLONE_NEWNET = 0x40000000  # of <sched.h>


class FarHost:
    """A host of its own, at the other end of a cable: a network namespace and a pair of veth devices."""

    def __init__(self) -> None:
        number = os.getpid() % 2**14  # the number of a network of four addresses within 10.203.0.0/16
        net, first = f"10.203.{number >> 6}", (number & 63) * 4
        self.near, self.far = f"{net}.{first + 1}", f"{net}.{first + 2}"
        self._name = f"chat{os.getpid()}"
        self._plug, self._socket = f"{self._name}n", f"{self._name}f"

    def set_up(self) -> None:
        """Raises CalledProcessError if the machine does not allow it."""
        ip("netns", "add", self._name)
        ip("link", "add", self._plug, "type", "veth", "peer", "name", self._socket, "netns", self._name)
        ip("addr", "add", f"{self.near}/30", "dev", self._plug)
        ip("link", "set", self._plug, "up")
        ip("-n", self._name, "addr", "add", f"{self.far}/30", "dev", self._socket)
        ip("-n", self._name, "link", "set", self._socket, "up")

    def tear_down(self) -> None:
        """Remove everything, even after a partial setup."""
        swallow = ("route", "del", "blackhole", f"{self.far}/32")
        for command in (("link", "del", self._plug), ("netns", "del", self._name), swallow):
            subprocess.run(["ip", *command], check=False, capture_output=True)

    def connect(self, port: int) -> Wire:
        """A client there."""
        with self.there():
            return Wire(self.near, port)

    @contextmanager
    def there(self) -> Iterator[None]:
        """Sockets that are made within this block belong to that host, and stay there."""
        with Path("/proc/thread-self/ns/net").open("rb") as here, Path("/run/netns", self._name).open("rb") as there:
            enter(there.fileno())
            try:
                yield
            finally:
                enter(here.fileno())

    def pull_the_cable(self) -> None:
        """Let no packet through from now on, without notice to the clients there."""
        ip("-n", self._name, "link", "set", self._socket, "down")

    def swallow(self) -> None:
        """Send nothing more to that host, without notice to anybody."""
        ip("route", "add", "blackhole", f"{self.far}/32")

    def plug_it_in(self) -> None:
        ip("-n", self._name, "link", "set", self._socket, "up")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def enter(namespace: int) -> None:
    """The sockets that this thread makes from now on are in this network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def far_host() -> Iterator[FarHost]:
    host = FarHost()
    try:
        host.set_up()
    except (OSError, subprocess.CalledProcessError) as error:
        host.tear_down()
        reason = getattr(error, "stderr", "") or error
        pytest.skip(f"needs Linux, root and iproute2, to make a network namespace: {reason}")
    yield host
    host.tear_down()


def test_a_vanished_peer_is_offline_and_its_name_free_within_about_a_minute(
    far_host: FarHost, start_server: StartServer
) -> None:
    server = start_server("--host", far_host.near)
    server.host = far_host.near
    idle, written_to, flooded = (far_log_in(far_host, server, name) for name in ("idle", "written-to", "flooded"))
    nameless = far_host.connect(server.port)
    nameless.send(encode_login("nameless")[:5])
    writer, flooder = server.log_in("writer"), server.log_in("flooder")
    writer.chat_with(written_to.users["written-to"])
    flooder.chat_with(flooded.users["flooded"])
    far_host.pull_the_cable()
    writer.say("are you there?")
    Flood(flooder, BIG).until_stuck(1)
    flooder.expect_error(Reason.USER_NOT_ONLINE)
    flooder.close()
    ended = {
        "": Reason.LOGIN_TIMEOUT,
        "flooded": Reason.TOO_SLOW,
        "written-to": UNREACHABLE,
        "idle": UNREACHABLE,
    }
    for name, reason in ended.items():
        label = rf"{re.escape(far_host.far)}:\d+ {name}".rstrip()
        pattern = f"{label} disconnected: ({reason})$"
        wait_for(pattern, lambda: re.search(pattern, server.log, re.MULTILINE), ABOUT_A_MINUTE)  # noqa: B023
        server.log_in(name or "nameless").close()
    writer.expect_pong()
    assert not readable(idle, written_to, flooded, nameless), "nothing got through, so they cannot know"
    far_host.plug_it_in()
    with pytest.raises(ConnectionResetError):
        idle.expect_pong()


def test_a_client_notices_a_server_that_vanished_within_about_a_minute(
    far_host: FarHost, start_server: StartServer
) -> None:
    """Whether it has just written something, or only listens."""
    server = start_server("--host", far_host.near)
    with far_host.there():
        clients = [ChatClient(far_host.near, server.port) for _ in range(2)]
    for number, client in enumerate(clients):
        client.login(f"user{number}")
    clients[0].chat(1)
    far_host.swallow()
    clients[0].send("are you there?")
    for client in clients:
        with pytest.raises(ConnectionClosed, match=UNREACHABLE):
            client.receive(timeout=ABOUT_A_MINUTE)
        client.close()


def far_log_in(host: FarHost, server: ServerProcess, name: str) -> Wire:
    client = host.connect(server.port)
    client.send(encode_login(name))
    client.read_list(name)
    return client


def readable(*clients: Wire) -> Sequence[object]:
    return select.select([client.socket for client in clients], [], [], 0)[0]
