"""The control socket: how admin.py reaches a running server. It lies in the data folder; only its owner can open it.

A request is one line of JSON. The answer is any number of rows, one line each; the last line is {"done": true} or
{"failed": "why"}.
"""

import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import gevent
from gevent import Timeout
from gevent.server import StreamServer

from chatserver.people.accounts import Accounts, CannotDo
from storage import StorageError

SOCKET = "admin.sock"
MAX_REQUEST_BYTES = 4096
SOCKET_SECONDS = 10.0  # for a request to arrive, and for each piece of an answer to be read
STOP_SECONDS = 1.0  # at shutdown, for requests in progress
REQUESTS_AT_ONCE = 8
ROWS_AT_ONCE = 500  # of the list of users, between two turns of the loop

Kick = Callable[[int], bool]

log = logging.getLogger("chat")


class NoAnswer(Exception):
    """The server accepted the request but did not answer."""


def perform(accounts: Accounts, kick: Kick, request: object) -> Iterable[object]:
    """Execute an operator's request; returns the rows of the answer: for a change, one that says what was done.

    Raises CannotDo, StorageError.
    """
    match request:
        case {"do": "users"}:
            log.info("admin: listed the users")
            return accounts.rows()
        case {"do": "backup"}:
            log.info("admin: listed what to copy for a backup")
            return accounts.committed().items()
        case {"do": "add", "name": str(name), "password": str() | None as password}:
            done = accounts.add(name, password)
        case {"do": "passwd", "name": str(name), "password": str() | None as password}:
            done = accounts.change_password(name, password)
        case {"do": "remove", "name": str(name)}:
            done = accounts.remove(name, kick)
        case {"do": "kick", "name": str(name)}:
            done = accounts.kick(name, kick)
        case {"do": "ban", "name": str(name)}:
            done = accounts.ban(name, kick)
        case {"do": "unban", "name": str(name)}:
            done = accounts.unban(name)
        case _:
            raise CannotDo("the server does not understand this request; is it another version?")
    log.info("admin: %s", done)
    return [done]


# The server's side


@contextmanager
def control_socket(folder: Path, accounts: Accounts, kick: Kick) -> Iterator[None]:
    """Listen for operators. If the socket cannot be made, the server runs without it, and the log says so."""
    try:
        listener = _listen(folder)
    except OSError as error:
        log.warning("%s cannot be made: admin.py will not reach this server: %s", folder / SOCKET, error)
        yield
        return
    server = StreamServer(listener, partial(_serve, accounts, kick), spawn=REQUESTS_AT_ONCE)
    server.start()
    try:
        yield
    finally:
        (folder / SOCKET).unlink(missing_ok=True)
        server.stop(STOP_SECONDS)


def _listen(folder: Path) -> socket.socket:
    """Raises OSError. The folder's lock is held, so an existing socket is left over from a killed server."""
    (folder / SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        with _reachable(folder) as path:
            listener.bind(path)
        listener.listen()
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


@contextmanager
def _reachable(folder: Path) -> Iterator[str]:
    """A path short enough for bind and connect, which accept some 100 bytes: it goes through the opened folder where
    there is /proc.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        opened = Path(f"/proc/self/fd/{descriptor}")
        yield str((opened if opened.is_dir() else folder) / SOCKET)
    finally:
        os.close(descriptor)


def _serve(accounts: Accounts, kick: Kick, sock: socket.socket, _: object) -> None:
    """Serve one request."""
    sock.settimeout(SOCKET_SECONDS)
    try:
        rows = iter(_answer(accounts, kick, _receive_line(sock)))
        while piece := b"".join(islice(rows, ROWS_AT_ONCE)):
            sock.sendall(piece)
            gevent.sleep(0)
    except OSError as error:
        log.info("admin: left before the answer: %s", error)


def _receive_line(sock: socket.socket) -> bytes:
    """Raises OSError if no line arrives in time."""
    line = b""
    with Timeout(SOCKET_SECONDS, TimeoutError("no request came")):
        while not line.endswith(b"\n") and len(line) <= MAX_REQUEST_BYTES:
            data = sock.recv(MAX_REQUEST_BYTES)
            if not data:
                raise ConnectionError("no request came")
            line += data
    return line


def _answer(accounts: Accounts, kick: Kick, line: bytes) -> Iterator[bytes]:
    last: dict[str, object] = {"done": True}
    try:
        yield from map(_encode, perform(accounts, kick, json.loads(line)))
    except (CannotDo, StorageError) as error:
        log.log(logging.INFO if isinstance(error, CannotDo) else logging.ERROR, "admin: not done: %s", error)
        last = {"failed": str(error)}
    except (ValueError, RecursionError):
        last = {"failed": "the server cannot read this request"}
    yield _encode(last)


def _encode(row: object) -> bytes:
    return json.dumps(row).encode() + b"\n"


# The operator's side


def ask(folder: Path, request: dict[str, object], seconds: float) -> list[Any] | None:
    """The rows that a running server answers; None if no server listens. `seconds` bounds the wait for each piece.

    Raises CannotDo, NoAnswer, and OSError if the caller may not use the socket.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(seconds)
        try:
            with _reachable(folder) as path:
                sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        try:
            sock.sendall(_encode(request))
            with sock.makefile("rb") as answer:
                *rows, last = [json.loads(line) for line in answer] or [{}]
        except (OSError, ValueError) as error:
            raise NoAnswer(str(error)) from error
    match last:
        case {"done": True}:
            return rows
        case {"failed": reason}:
            raise CannotDo(reason)
    raise NoAnswer("the answer is cut off")
