"""How an operator reaches a server that runs: a Unix socket in the data folder, which only its owner can open.

One line of JSON asks, any number of rows answer, a line each; the last one is {"done": true} or {"failed": "why"}.
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
SOCKET_SECONDS = 10.0  # for a request to arrive, and for each piece of an answer to be taken
STOP_SECONDS = 1.0  # at shutdown, for the requests under way
REQUESTS_AT_ONCE = 8
ROWS_AT_ONCE = 500  # of the list of users, between two turns of the loop

Kick = Callable[[int], bool]

log = logging.getLogger("chat")


class NoAnswer(Exception):
    """The server was reached, and then did not answer."""


def perform(accounts: Accounts, kick: Kick, request: object) -> Iterable[object]:
    """Do what an operator asks for; the rows of the answer. Raises CannotDo, StorageError."""
    match request:
        case {"do": "users"}:
            log.info("admin: listed the users")
            return accounts.rows()
        case {"do": "passwd", "name": str(name), "password": str() | None as password}:
            accounts.change_password(name, password)
        case {"do": "remove", "name": str(name)}:
            accounts.remove(name, kick)
        case {"do": "kick", "name": str(name)}:
            user = accounts.find(name)
            if not kick(user.id):
                raise CannotDo(f"{name} is not online")
            log.info("admin: ended the connection of %s, id %d", name, user.id)
        case {"do": "backup"}:
            log.info("admin: told what to copy for a backup")
            return accounts.committed().items()
        case _:
            raise CannotDo("the server does not understand this; is it of another version?")
    return ()


# The server's side


@contextmanager
def control_socket(folder: Path, accounts: Accounts, kick: Kick) -> Iterator[None]:
    """Listen for operators. Without a socket the server runs all the same, and the log says so."""
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
    """Raises OSError. The lock on the folder is held: a socket that is there already is of a server that was killed."""
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
    """A path of the socket that bind and connect take: it may have some 100 bytes, so it goes through the opened folder
    where there is /proc.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        opened = Path(f"/proc/self/fd/{descriptor}")
        yield str((opened if opened.is_dir() else folder) / SOCKET)
    finally:
        os.close(descriptor)


def _serve(accounts: Accounts, kick: Kick, sock: socket.socket, _: object) -> None:
    """One request."""
    sock.settimeout(SOCKET_SECONDS)
    try:
        rows = iter(_answer(accounts, kick, _receive_line(sock)))
        while piece := b"".join(islice(rows, ROWS_AT_ONCE)):
            sock.sendall(piece)
            gevent.sleep(0)
    except OSError as error:
        log.info("admin: gone before the answer: %s", error)


def _receive_line(sock: socket.socket) -> bytes:
    """Raises OSError where none comes in time."""
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
        last = {"failed": "the server cannot read this"}
    yield _encode(last)


def _encode(row: object) -> bytes:
    return json.dumps(row).encode() + b"\n"


# The operator's side


def ask(folder: Path, request: dict[str, object], seconds: float) -> list[Any] | None:
    """The rows that a running server answers; None where none listens. `seconds` for each piece of the answer.

    Raises CannotDo, NoAnswer, and OSError where one may not ask.
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
