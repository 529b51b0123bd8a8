"""TLS: the server's certificate, and a stream with the face of a non-blocking socket."""

import logging
import socket
import ssl
from contextlib import suppress
from pathlib import Path

RECORD_BYTES = 2**14  # of data in one record, at most
MAX_OWN_BYTES = 64 * 1024  # of OpenSSL's own that the client does not take: it asks for more than it reads
HANDSHAKE = b"\x16"  # how a TLS client begins
NO_TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"  # fatal, protocol_version: OpenSSL itself says nothing to such a client
MISMATCH = frozenset({"KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})  # the latter for a key of another kind

log = logging.getLogger("chat")


class _KeyIsEncrypted(Exception):
    """The key cannot be read without a password."""


def server_context(certificate: Path, key: Path | None = None) -> ssl.SSLContext:
    """TLS 1.2 and newer with this certificate and its chain, and its key, which may be in the same file (PEM).

    Raises ValueError with a line that names the file. A certificate that is out of date is logged: clients refuse it.
    """
    for path in (certificate, key or certificate):
        try:
            path.open("rb").close()  # OpenSSL does not say which file it could not open
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror or error}") from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.num_tickets = 0  # no client of ours resumes a session
    trust = _trust_in(certificate)
    _load(context, certificate, key or certificate)
    if complaint := _complaint(context, trust):
        log.warning("%s: clients will refuse this certificate: %s", certificate, complaint)
    return context


def _trust_in(certificate: Path) -> ssl.SSLContext:
    """A client that trusts this certificate itself. Raises ValueError where the file holds none."""
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.check_hostname = False
    trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        trust.load_verify_locations(certificate)
    except ssl.SSLError as error:
        what = "no certificate" if error.reason == "NO_CERTIFICATE_OR_CRL_FOUND" else "something damaged"
        raise ValueError(f"{certificate}: {what} in PEM format") from None
    return trust


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except _KeyIsEncrypted:
        raise ValueError(f"{key}: the key is encrypted, and nobody is there to type its password") from None
    except ssl.SSLError as error:
        if error.reason in MISMATCH:
            raise ValueError(f"{key}: this is not the key of the certificate in {certificate}") from None
        if error.reason:
            raise ValueError(f"{certificate}: the certificate cannot be used ({explain(error)})") from None
        raise ValueError(f"{key}: no private key in PEM format") from None


def _no_password() -> str:
    raise _KeyIsEncrypted  # without this OpenSSL asks at the terminal, and the start hangs


def _complaint(context: ssl.SSLContext, trust: ssl.SSLContext) -> str:
    """Why clients refuse our certificate, whoever signed it. The `ssl` module tells its dates in a handshake alone, so
    we shake hands with ourselves, in memory.
    """
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = trust.wrap_bio(to_client, to_server)
    for end in (client, server, client):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return ""


class TlsStream:
    """One client's end of TLS, over a socket that does not block; for one Connection.

    What OpenSSL has to send of its own goes out with the next call that the socket has room for.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.encrypted = 0  # bytes of the data that send() is given again which cannot be taken back
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._begun = False
        self._unsent = b""  # of what OpenSSL has written
        self._failure: OSError | None = None
        self._over = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def recv(self, size: int) -> bytes:
        """All the data in one chunk of input, so that nothing stays inside, where no watcher sees it; b"" at the end.

        The handshake happens here. Raises BlockingIOError where there is no data yet, OSError where TLS is broken.
        """
        if self._failure and not self._over:
            raise self._failure
        chunk = self._sock.recv(size)
        if self._over or not chunk:
            return chunk
        data, is_last = self._decrypt(chunk)
        with suppress(OSError):  # no room, or the peer is gone; what it sent before counts all the same
            self._flush()
        if len(self._unsent) > MAX_OWN_BYTES + RECORD_BYTES:
            self._failure = self._failure or OSError("takes none of the TLS messages that it asks for")
        if data and (is_last or self._failure):
            self._wake_once_more()
        elif self._failure:
            raise self._failure
        elif not data and not is_last:
            raise BlockingIOError
        return data

    def send(self, data: bytes | memoryview) -> int:
        """Encrypt one record and send it; how much of `data` it holds. Raises OSError before the handshake is done.

        After a BlockingIOError the next call has to begin with the same data: `encrypted` bytes of it are on their way.
        """
        if not self.encrypted:
            if not self._tls.version():
                raise OSError("no TLS handshake yet")
            self.encrypted = self._tls.write(data[:RECORD_BYTES])
        try:
            self._flush()
        except BlockingIOError:
            raise
        except OSError:
            self.encrypted = 0  # the caller gives it up
            raise
        count, self.encrypted = self.encrypted, 0
        return count

    def shutdown(self, how: int) -> None:
        """Say goodbye, if there is room, and wait for no answer: what still comes in is not decrypted any more."""
        self._over = True
        with suppress(ssl.SSLError):  # there is no answer yet, or never was a handshake
            self._tls.unwrap()
        with suppress(BlockingIOError):
            self._flush()
        self._sock.shutdown(how)

    def _decrypt(self, chunk: bytes) -> tuple[bytes, bool]:
        """The data in it, and whether it is the last; `_failure` where TLS is broken, after this data."""
        if not self._begun and not chunk.startswith(HANDSHAKE):
            self._unsent = NO_TLS_ALERT
            self._failure = OSError("speaks no TLS")
            return b"", False
        self._begun = True
        self._incoming.write(chunk)
        data = []
        try:
            while piece := self._tls.read(RECORD_BYTES):
                data.append(piece)
        except ssl.SSLWantReadError:
            return b"".join(data), False
        except ssl.SSLError as error:
            self._failure = OSError(f"TLS failed: {explain(error)}")
            return b"".join(data), False
        return b"".join(data), True

    def _wake_once_more(self) -> None:
        """Nothing more may come in, but whoever waits for input has to hear of the end."""
        with suppress(OSError):  # not connected any more: then it is readable as well
            self._sock.shutdown(socket.SHUT_RD)

    def _flush(self) -> None:
        """Send what OpenSSL has written. Raises BlockingIOError while some is left."""
        self._unsent += self._outgoing.read()
        while self._unsent:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]


def explain(error: ssl.SSLError) -> str:
    """What OpenSSL says has gone wrong, in words alone."""
    return (error.reason or str(error)).replace("_", " ").lower()
