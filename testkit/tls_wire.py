"""A TLS client whose records a test can cut, join and hold back, and one that abuses TLS itself."""

import ctypes
import ctypes.util
import os
import socket
import ssl
import struct
from contextlib import suppress
from typing import Any, cast

from testkit import HarnessError
from testkit.processes import DEADLINE
from testkit.wire import Wire

RECORD_BYTES = 2**14  # of data in one record, at most
SSL_KEY_UPDATE_REQUESTED = 1


class TracedTlsSocket(socket.socket):
    """Takes over a connected socket. `send` writes one record, and accepts no more until that one has been sent."""

    def __init__(self, plain: socket.socket, trust: ssl.SSLContext) -> None:
        super().__init__(plain.family, plain.type, plain.proto, plain.detach())
        self.settimeout(DEADLINE)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = trust.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")
        self._unsent = b""

    def shake_hands(self, step: int = 65536) -> None:
        """Complete the handshake, sending `step` bytes at a time."""
        while True:
            try:
                return self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.send_records(step)
                self._take_in()
            finally:
                self.send_records(step)

    def hello(self) -> bytes:
        """The first record of a handshake, without sending it."""
        with suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._outgoing.read()

    def send_records(self, step: int = 65536, and_then: bytes = b"") -> None:
        self._unsent += self._outgoing.read() + and_then
        while self._unsent:
            self._unsent = self._unsent[super().send(self._unsent[:step]) :]

    def send(self, data: Any, flags: int = 0, /) -> int:  # noqa: ARG002
        self.send_records()
        taken = self.tls.write(bytes(data[:RECORD_BYTES]))
        with suppress(TimeoutError, BlockingIOError):
            self.send_records()
        return taken

    def sendall(self, data: Any, flags: int = 0, /) -> None:  # noqa: ARG002
        while data:
            data = data[self.send(data) :]
        self.send_records()

    def recv(self, size: int, flags: int = 0, /) -> bytes:  # noqa: ARG002
        """Data; b"" after the server's close_notify. Raises EOFError if the connection ends without one."""
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLWantReadError:
                self._take_in()
            except ssl.SSLZeroReturnError:  # both sides have sent close_notify
                return b""

    def say_goodbye(self) -> None:
        """Prepare a close_notify record, which the test sends."""
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()

    def _take_in(self) -> None:
        chunk = super().recv(65536)
        if not chunk:
            raise EOFError("the server closed without close_notify")
        self._incoming.write(chunk)


class TlsWire(Wire):
    """A Wire over TLS."""

    def __init__(
        self, host: str, port: int, trust: ssl.SSLContext, receive_buffer: int | None = None, step: int = 65536
    ) -> None:
        super().__init__(host, port, receive_buffer)
        self.tls = TracedTlsSocket(self.socket, trust)
        self.socket = self.tls
        self.tls.shake_hands(step)


def libssl() -> ctypes.CDLL | None:
    """OpenSSL itself, for what Python's `ssl` does not offer; None if it cannot be found."""
    name = ctypes.util.find_library("ssl")
    if name is None:
        return None
    library = ctypes.CDLL(name)
    for function, takes in {"TLS_client_method": 0, "SSL_CTX_new": 1, "SSL_new": 1}.items():
        getattr(library, function).restype = ctypes.c_void_p
        getattr(library, function).argtypes = [ctypes.c_void_p] * takes
    for function in ("SSL_connect", "SSL_do_handshake", "SSL_free", "SSL_CTX_free"):
        getattr(library, function).argtypes = [ctypes.c_void_p]
    for function in ("SSL_set_fd", "SSL_key_update"):
        getattr(library, function).argtypes = [ctypes.c_void_p, ctypes.c_int]
    return library


class KeyUpdater:
    """A client that requests new keys over and over and reads none of the answers (TLS 1.3, RFC 8446 section 4.6.3)."""

    def __init__(self, library: ctypes.CDLL, plain: socket.socket) -> None:
        self._library = library
        self._plain = plain
        self._context = library.SSL_CTX_new(library.TLS_client_method())
        self._connection = library.SSL_new(self._context)
        os.set_blocking(plain.fileno(), True)  # gevent's sockets never block
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(DEADLINE), 0))
        library.SSL_set_fd(self._connection, plain.fileno())
        if library.SSL_connect(self._connection) != 1:
            raise HarnessError("the TLS handshake failed")

    def ask(self) -> bool:
        """Request new keys once more; False when the server takes no more."""
        if self._library.SSL_key_update(self._connection, SSL_KEY_UPDATE_REQUESTED) != 1:
            raise HarnessError("OpenSSL refuses to update the keys")
        return cast("int", self._library.SSL_do_handshake(self._connection)) == 1

    def close(self) -> None:
        self._plain.close()
        self._library.SSL_free(self._connection)
        self._library.SSL_CTX_free(self._context)
