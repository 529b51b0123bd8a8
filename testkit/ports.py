"""Ports for servers that cannot choose a free one themselves."""

import random
import socket
from contextlib import ExitStack, suppress

HOST = "127.0.0.1"
PORTS = range(20_000, 32_000)  # below the range from which the kernel gives ports to clients and to servers on port 0


def free_ports(count: int) -> list[int]:
    """This many different ports of 127.0.0.1 where nobody listens. Nothing but chance keeps other programs off them."""
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < count:
            port = random.choice(PORTS)
            with suppress(OSError):  # in use
                held.enter_context(socket.create_server((HOST, port)))
                ports.append(port)
    return ports


def free_port() -> int:
    """One such port."""
    return free_ports(1)[0]


def answers(port: int) -> bool:
    """Whether somebody listens on this port of 127.0.0.1."""
    with socket.socket() as client:
        return client.connect_ex((HOST, port)) == 0
