"""Ports for servers that cannot be told to take any free one."""

import random
import socket
from contextlib import ExitStack, suppress

HOST = "127.0.0.1"
PORTS = range(20_000, 32_000)  # below those that the kernel gives to clients, and to servers that take any


def free_ports(count: int) -> list[int]:
    """So many ports of 127.0.0.1, each another, where nobody listens; only chance keeps others from choosing them."""
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < count:
            port = random.choice(PORTS)
            with suppress(OSError):  # somebody has it
                held.enter_context(socket.create_server((HOST, port)))
                ports.append(port)
    return ports


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]
