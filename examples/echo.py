"""A minimal load test of your own protocol: lines over TCP, and a server that sends each line back.

    python -m examples.echo &
    locust -f examples/echo.py --headless -u 10 -r 10 -t 10s

Replace what is marked with (1) to (4); docs/LOADTEST.md explains it. Everything else is the load tester as it is.
"""

import os
import socket
import sys
from contextlib import suppress

from gevent.server import StreamServer
from locust import task
from locust.exception import StopUser

from loadtest.locust import PacedUser

PORT = 9036


class EchoUser(PacedUser):
    """Sends lines at the pace of the run, and reports what comes back to the ledger."""

    host = f"127.0.0.1:{PORT}"
    protocol = "echo"
    max_message_bytes = 1000

    connection: socket.socket

    def enter(self) -> None:
        host, _, port = self.host.rpartition(":")
        with self.connecting():  # (1) how a connection is made
            self.connection = socket.create_connection((host, int(port)), timeout=10)
        self.go_online()
        self.spawn(self.listen)

    @task
    def write(self) -> None:
        if not self.is_online:  # the server closed the connection, and this example does not reconnect
            raise StopUser
        if due := self.take_due():
            self.send_message(self.name, due, self.send)

    def send(self, text: str) -> None:  # (2) how a text is sent; here each user writes to itself
        self.connection.sendall(f"{text}\n".encode())

    def listen(self) -> None:  # (3) how texts arrive, and from whom
        self.connection.settimeout(None)
        with suppress(OSError):  # the connection has ended
            for line in self.connection.makefile():
                self.receive_message(self.name, line.rstrip("\n"))
        self.connection_lost(ConnectionError("the server has closed the connection"))

    def leave(self) -> None:  # (4) how a connection ends
        self.drain()
        self.go_offline()
        self.connection.shutdown(socket.SHUT_RDWR)


def echo(connection: socket.socket, _: object) -> None:
    """The server under test: sends back whatever arrives."""
    while data := connection.recv(65536):
        connection.sendall(data)


if __name__ == "__main__":
    port = int(sys.argv[1]) if sys.argv[1:] else PORT
    try:
        StreamServer(("127.0.0.1", port), echo).serve_forever()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"echo: port {port}: {os.strerror(error.errno or 0)}")
