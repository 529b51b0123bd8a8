"""TLS for clients: which authorities to trust, the handshake, and a socket that behaves like a plain one."""

import os
import select
import socket
import ssl
from contextlib import suppress
from time import monotonic

from chatclient.errors import ConnectionFailed, explain
from chatnet.address import format_address

RECORD_BYTES = 2**14  # of data in one record, at most
WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError)

NAME_DIFFERS = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
AUTHORITY_UNKNOWN = frozenset({2, 18, 19, 20, 21})  # X509_V_ERR_*: self-signed, or by an unknown authority
NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})


def tls_context(ca: str | os.PathLike[str] | None = None) -> ssl.SSLContext:
    """A context that trusts the authority in the PEM file `ca`, or, without it, those that the system trusts.

    Raises ValueError for a file without certificates.
    """
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except OSError as error:
        raise ValueError(f"no certificates in {os.fspath(ca or '')} ({explain(error)})") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class TlsSocket:
    """A non-blocking TLS connection with the interface of a plain socket, for one thread at a time.

    After a BlockingIOError the next send() must begin with the same data: up to RECORD_BYTES of it may be encrypted
    already.
    """

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, data: bytes | memoryview) -> int:
        """Send at most one record: of several it would be unknown which ones are encrypted."""
        try:
            return self._connection.write(data[:RECORD_BYTES])
        except WANTS:
            raise BlockingIOError from None

    def recv(self, size: int) -> bytes:
        """The data of one record. `size` must fit all of it: poll() does not see what stays buffered inside."""
        try:
            return self._connection.read(size)
        except WANTS:
            raise BlockingIOError from None

    def shutdown(self, how: int) -> None:
        """Send the closing alert if there is room, and do not wait for the answer."""
        with suppress(OSError, ValueError):  # no answer yet, or no room; ValueError: it was sent before
            self._connection.unwrap()
        self._connection.shutdown(how)

    def close(self) -> None:
        self._connection.close()


def start_tls(
    connection: socket.socket, context: ssl.SSLContext, host: str, port: int, deadline: float | None
) -> TlsSocket:
    """Do the handshake over a non-blocking connection. Raises ConnectionFailed."""
    with connection:  # closes it, unless the TLS socket takes it over
        try:
            encrypted = context.wrap_socket(connection, server_hostname=host, do_handshake_on_connect=False)
            try:
                _shake_hands(encrypted, deadline)
            except BaseException:
                encrypted.close()
                raise
        except OSError as error:
            raise ConnectionFailed(_why_not(error, format_address(host, port))) from error
    return TlsSocket(encrypted)


def _shake_hands(connection: ssl.SSLSocket, deadline: float | None) -> None:
    """One deadline for the whole handshake; under gevent, a socket's timeout would apply to each packet."""
    while True:
        try:
            return connection.do_handshake()
        except WANTS as wants:
            poll = select.poll()
            poll.register(connection, select.POLLIN if isinstance(wants, ssl.SSLWantReadError) else select.POLLOUT)
        if not poll.poll(None if deadline is None else max(0.0, deadline - monotonic()) * 1000):
            raise TimeoutError("timed out")


def _why_not(error: OSError, address: str) -> str:
    match error:
        case ssl.SSLCertVerificationError(verify_code=code, verify_message=reason) if code in NAME_DIFFERS:
            return f"the certificate of {address} is for another name ({reason})"
        case ssl.SSLCertVerificationError(verify_code=code, verify_message=reason) if code in AUTHORITY_UNKNOWN:
            return f"the certificate of {address} is not trusted ({reason}); --tls-ca FILE names an authority to trust"
        case ssl.SSLCertVerificationError(verify_message=reason):
            return f"the certificate of {address} is not valid ({reason})"
        case ssl.SSLError(reason=reason) if reason in NO_TLS:
            return f"{address} does not speak TLS ({explain(error)})"
        case TimeoutError():
            return f"{address} did not finish the TLS handshake in time"
    return f"the TLS handshake with {address} failed ({explain(error)})"
