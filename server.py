"""The chat server: `python server.py --help`.

This file starts and ends the process and wires together what is in chatserver/.
"""

from gevent import monkey

monkey.patch_all()

import logging
import os
import resource
import signal
import ssl
import sys
from argparse import Namespace
from contextlib import ExitStack

import gevent
from gevent.event import Event

from chatserver import __version__
from chatserver.accounts import Accounts
from chatserver.listener import ChatServer, Limits, ServerContext, format_address, listen
from chatserver.options import parse_options
from chatserver.relay import Relay
from chatserver.tls import server_context
from storage import CsvStorage, Storage, StorageError

OPEN_FILES_RESERVE = 64  # the listener, the database, the loop, the log, the interpreter's own

log = logging.getLogger("chat")


class CannotStart(Exception):
    """Why the server cannot start, in a line that an operator understands."""


def main() -> int:
    """Run until a signal says stop; returns the exit status."""
    options = parse_options()
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s", level=options.log_level.upper(), stream=sys.stderr
    )
    stop = Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(signum, _on_signal, signum, stop)
    with ExitStack() as stack:
        try:
            server = _start(options, stack)
        except (CannotStart, StorageError) as error:
            log.error("cannot start: %s", error)
            return 1
        stop.wait()
        log.info("shutting down: %s s at most for what is queued", options.drain)
        server.drain(options.drain)
    log.info("stopped")
    return 0


def _on_signal(signum: int, stop: Event) -> None:
    if stop.is_set():
        os._exit(128 + signum)  # the second one: all that was acknowledged is on disk already
    stop.set()


def _start(options: Namespace, stack: ExitStack) -> ChatServer:
    """Everything that can fail before the first client comes. Raises CannotStart, StorageError."""
    _allow_open_files(options.pool_size)
    tls = _encryption(options)
    try:
        listener = stack.enter_context(listen(options.host, options.port, options.backlog, options.write_timeout))
    except OSError as error:
        raise CannotStart(f"{options.host}:{options.port}: {error.strerror or error}") from error
    try:
        storage = stack.enter_context(CsvStorage(options.data_dir, options.max_users, options.max_id))
    except OSError as error:
        raise CannotStart(f"{options.data_dir}: {error.strerror or error}") from error
    context = _make_context(options, storage, tls)
    stack.callback(context.accounts.close)
    server = ChatServer(listener, context, options.pool_size)
    server.start()
    name = f"{__version__} with TLS" if tls else __version__
    log.info("chat server %s, listening on %s", name, format_address(listener.getsockname()))
    return server


def _encryption(options: Namespace) -> ssl.SSLContext | None:
    """What --tls-cert asks for. Raises CannotStart."""
    try:
        return server_context(options.tls_cert, options.tls_key) if options.tls_cert else None
    except ValueError as error:
        raise CannotStart(str(error)) from error


def _make_context(options: Namespace, storage: Storage, tls: ssl.SSLContext | None) -> ServerContext:
    relay = Relay()
    return ServerContext(
        relay=relay,
        accounts=Accounts(storage, relay, options.id_width, options.require_password),
        limits=Limits(options.outbox_bytes, options.write_timeout, options.login_timeout, options.idle_timeout),
        tls=tls,
    )


def _allow_open_files(pool_size: int) -> None:
    """Raise the soft limit of open files where the pool needs it. Raises CannotStart where the hard limit is below."""
    needed = 2 * pool_size + OPEN_FILES_RESERVE  # for each slot a client, and one that is being seen off
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise CannotStart(f"--pool-size {pool_size} needs {needed} open files, and the limit is {hard} (ulimit -Hn)")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (OSError, ValueError) as error:  # some systems have a limit below the hard one
        raise CannotStart(f"--pool-size {pool_size} needs {needed} open files: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
