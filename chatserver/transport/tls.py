"""TLS: the server's certificate, and a stream that is used like a non-blocking socket."""

import logging
import socket
import ssl
from contextlib import suppress
from pathlib import Path

RECORD_BYTES = 2**14  # the most data that one record holds
MAX_OWN_BYTES = 64 * 1024  # of unsent replies by OpenSSL itself, to a client that asks for more than it reads
HANDSHAKE = b"\x16"  # a TLS client's first byte
NO_TLS_ALERT = (
    b"\x15\x03\x01\x00\x02\x02\x46"  # fatal, protocol_version; OpenSSL itself sends none to a client without TLS
)
MISMATCH = frozenset({"KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})  # the latter for a key of another type

log = logging.getLogger("chat")


class _KeyIsEncrypted(Exception):
    """The private key is encrypted with a password."""


def server_context(certificate: Path, key: Path | None = None) -> ssl.SSLContext:
    """TLS 1.2 and newer with this certificate chain and its key (PEM); without `key` the same file holds both.

    Raises ValueError, one line that names the file. Logs a warning if clients will refuse the certificate.
    """
    for path in (certificate, key or certificate):
        try:
            path.open("rb").close()  # OpenSSL does not say which file it could not open
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror or error}") from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.num_tickets = 0  # our clients never resume a session
    trust = _trust_in(certificate)
    _load(context, certificate, key or certificate)
    if problem := _problem(context, trust):
        log.warning("%s: clients will refuse this certificate: %s", certificate, problem)
    return context


def load_again(context: ssl.SSLContext, certificate: Path, key: Path | None = None) -> None:
    """Use these files, as in server_context(), for connections that come from now on. After a ValueError all is as it
    was.
    """
    server_context(certificate, key)
    _load(context, certificate, key or certificate)


def _trust_in(certificate: Path) -> ssl.SSLContext:
    """A client context that trusts this certificate itself. Raises ValueError if the file holds none."""
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.check_hostname = False
    trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        trust.load_verify_locations(certificate)
    except ssl.SSLError as error:
        missing = error.reason == "NO_CERTIFICATE_OR_CRL_FOUND"
        raise ValueError(f"{certificate}: {'no' if missing else 'a damaged'} certificate in PEM format") from None
    return trust


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except _KeyIsEncrypted:
        raise ValueError(f"{key}: the key is encrypted; the server needs one without a password") from None
    except ssl.SSLError as error:
        if error.reason in MISMATCH:
            raise ValueError(f"{key}: this is not the key of the certificate in {certificate}") from None
        if error.reason:
            raise ValueError(f"{certificate}: the certificate cannot be used ({explain(error)})") from None
        raise ValueError(f"{key}: no private key in PEM format") from None


def _no_password() -> str:
    raise _KeyIsEncrypted  # without this OpenSSL asks at the terminal, and the start hangs


def _problem(context: ssl.SSLContext, trust: ssl.SSLContext) -> str:
    """Why clients will refuse our certificate even if they trust its issuer; "" if they will not.

    The `ssl` module checks the dates only in a handshake, so this does one in memory.
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
    """The server's end of one TLS connection over a non-blocking socket; used by one Connection.

    What OpenSSL itself has to send goes out with the next call for which the socket has room.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.encrypted = 0  # bytes that send() has encrypted but not sent; the next call must begin with them
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._begun = False  # some input has come
        self._unsent = b""  # what OpenSSL has written and the socket has not taken
        self._failure: OSError | None = None
        self._over = False  # shutdown() was called

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def version(self) -> str | None:
        """The TLS version; None before the handshake is done."""
        return self._tls.version()

    def getsockopt(self, level: int, option: int, length: int) -> bytes:
        """As socket.getsockopt."""
        return self._sock.getsockopt(level, option, length)

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """As socket.setsockopt."""
        self._sock.setsockopt(level, option, value)

    def close(self) -> None:
        """Close the socket, without a TLS goodbye."""
        self._sock.close()

    def recv(self, size: int) -> bytes:
        """Read a chunk of at most `size` bytes and return all data in it; b"" at the end.

        Nothing may stay inside, where no watcher would see it. The handshake happens here. Raises BlockingIOError while
        there is no data yet, and OSError when TLS is broken.
        """
        if self._failure and not self._over:
            raise self._failure
        chunk = self._sock.recv(size)
        if self._over or not chunk:
            return chunk
        data, is_last = self._decrypt(chunk)
        with suppress(OSError):  # no room, or the peer is gone; its data counts all the same
            self._flush()
        if len(self._unsent) > MAX_OWN_BYTES + RECORD_BYTES:
            self._failure = self._failure or OSError("asks for TLS messages without reading them")
        if data and (is_last or self._failure):
            self._shut_input()
        elif self._failure:
            raise self._failure
        elif not data and not is_last:
            raise BlockingIOError
        return data

    def send(self, data: bytes | memoryview) -> int:
        """Encrypt and send one record; return how many bytes of `data` it holds. Raises OSError before the handshake.

        After a BlockingIOError the next call must begin with the same data: `encrypted` bytes of it are in flight.
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
            self.encrypted = 0  # the caller drops the data
            raise
        count, self.encrypted = self.encrypted, 0
        return count

    def shutdown(self, how: int) -> None:
        """Send the TLS goodbye, if there is room. Input that still arrives is not decrypted any more."""
        self._over = True
        with suppress(ssl.SSLError):  # there is no answer yet, or there was no handshake
            self._tls.unwrap()
        with suppress(BlockingIOError):
            self._flush()
        self._sock.shutdown(how)

    def _decrypt(self, chunk: bytes) -> tuple[bytes, bool]:
        """The data in `chunk`, and whether it is the last. Sets `_failure` if TLS broke after this data."""
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

    def _shut_input(self) -> None:
        """Make the socket readable, so that the next recv() reports the end even if nothing more arrives."""
        with suppress(OSError):  # no longer connected, and so readable anyway
            self._sock.shutdown(socket.SHUT_RD)

    def _flush(self) -> None:
        """Send what OpenSSL has written. Raises BlockingIOError while some of it is left."""
        self._unsent += self._outgoing.read()
        while self._unsent:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]


def explain(error: ssl.SSLError) -> str:
    """OpenSSL's reason for an error, in plain words."""
    return (error.reason or str(error)).replace("_", " ").lower()
