"""The chat server: `python server.py --help`.

This file starts and ends the process and wires together what is in chatserver/.
"""

from streams import open_missing_streams

open_missing_streams()

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

gevent.config.track_greenlet_tree = False  # who started whom, with stacks: a kilobyte for each client

from chatnet.address import format_address
from chatserver import __version__
from chatserver.backend import Backend, open_folder
from chatserver.listener import ChatServer, ServerContext, listen
from chatserver.operations import memory
from chatserver.operations.control import control_socket
from chatserver.operations.lag import LoopLag
from chatserver.operations.logs import start_log
from chatserver.operations.metrics import ServerCollector, serve_metrics
from chatserver.operations.options import parse_options, unknown_variables
from chatserver.people.accounts import Accounts
from chatserver.transport.limits import Limits
from chatserver.transport.tls import load_again, server_context
from storage import StorageError

OPEN_FILES_RESERVE = 64  # the listener, the database, the loop, the log, the interpreter's own
COMMIT_SECONDS = {"interval": 0.05, "always": 0.0}  # that a message waits for others to be committed with it

log = logging.getLogger("chat")


class CannotStart(Exception):
    """The server cannot start; the text tells the operator why, in one line."""


def main() -> int:
    """Run until a signal stops the server; returns the exit status."""
    options = parse_options()
    start_log(options.log_level)
    for problem in unknown_variables(os.environ):
        log.warning("%s", problem)
    stop = Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(signum, _on_signal, signum, stop)
    with ExitStack() as stack:
        try:
            server = _start(options, stack, stop)
        except (CannotStart, StorageError) as error:
            if stop.is_set():
                log.info("stopped before it had started")
                return 0
            log.error("cannot start: %s", error)
            return 1
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            gevent.signal_handler(signal.SIGHUP, _reload_certificate, options, server.context.tls)
        if options.redis:  # admin.py asks Redis
            stop.wait()
        else:
            with control_socket(options.data_dir, server.context.accounts, server.kick):
                stop.wait()
        log.info("shutting down: %s s at most for what is queued", options.drain)
        server.drain(options.drain)
    log.info("stopped")
    return 0


def _on_signal(signum: int, stop: Event) -> None:
    if stop.is_set():
        os._exit(128 + signum)  # the second signal: everything that was confirmed is on disk already
    stop.set()


def _reload_certificate(options: Namespace, tls: ssl.SSLContext | None) -> None:
    """Read the certificate again, for connections that come from now on. One that cannot be used changes nothing."""
    if tls is None:
        log.info("SIGHUP: there is no certificate to read again")
        return
    try:
        load_again(tls, options.tls_cert, options.tls_key)
    except ValueError as error:
        log.error("SIGHUP: %s; the certificate stays as it was", error)
    else:
        log.info("SIGHUP: new connections get the certificate as it is now in %s", options.tls_cert)


def _start(options: Namespace, stack: ExitStack, stop: Event) -> ChatServer:
    """Open everything that the server needs, and start accepting clients. Raises CannotStart, StorageError."""
    _allow_open_files(options.pool_size)
    tls = _encryption(options)
    try:
        listener = stack.enter_context(
            listen(options.host, options.port, options.backlog, options.write_timeout, options.reuse_port)
        )
    except OSError as error:
        raise CannotStart(f"{options.host}:{options.port}: {error.strerror or error}") from error
    commit_seconds = COMMIT_SECONDS[options.sync]
    if options.redis:
        backend = _join_group(options, commit_seconds, stack, stop)
    else:
        backend = open_folder(options, commit_seconds, stack)
    storage, archive = backend.storage, backend.archive
    context = _make_context(options, backend, tls)
    server = ChatServer(listener, context, options.pool_size)
    backend.start(server.kick)
    lag = stack.enter_context(LoopLag())
    resident = memory.resident_bytes()
    if options.metrics_port is not None:
        collector = ServerCollector(server, storage, archive, lag, memory.bound(options, resident))
        _serve_metrics(options, stack, server, collector, backend)
    server.start()
    name = f"{__version__} with TLS" if tls else __version__
    log.info("chat server %s, listening on %s", name, format_address(*listener.getsockname()[:2]))
    log.info("%s", memory.report(options, resident))
    return server


def _serve_metrics(
    options: Namespace, stack: ExitStack, server: ChatServer, collector: ServerCollector, backend: Backend
) -> None:
    try:
        metrics = serve_metrics((options.metrics_host, options.metrics_port), server, collector, backend.problem)
    except OSError as error:
        raise CannotStart(
            f"metrics on {options.metrics_host}:{options.metrics_port}: {error.strerror or error}"
        ) from error
    stack.callback(metrics.stop)
    log.info("metrics on http://%s/metrics", format_address(*metrics.socket.getsockname()[:2]))


def _encryption(options: Namespace) -> ssl.SSLContext | None:
    """The TLS context for --tls-cert, None without it. Raises CannotStart."""
    try:
        return server_context(options.tls_cert, options.tls_key) if options.tls_cert else None
    except ValueError as error:
        raise CannotStart(str(error)) from error


def _join_group(options: Namespace, commit_seconds: float, stack: ExitStack, stop: Event) -> Backend:
    """Join the group over Redis. Raises CannotStart, StorageError."""
    try:
        from cluster.group import join_group  # here: it takes a tenth of a second, and most servers run alone
    except ModuleNotFoundError as error:
        raise CannotStart(
            f"--redis needs the package {error.name}: pip install 'small-packet-chat[cluster]'"
        ) from error
    return join_group(options, commit_seconds, stack, stop.is_set)


def _make_context(options: Namespace, backend: Backend, tls: ssl.SSLContext | None) -> ServerContext:
    accounts = Accounts(
        backend.storage,
        backend.presence,
        backend.counters,
        backend.disk,
        options.id_width,
        options.require_password,
        options.login_attempts,
        options.sign_up == "open",
        options.sign_ups_per_address,
        backend.on_change,
    )
    return ServerContext(
        presence=backend.presence,
        accounts=accounts,
        delivery=backend.delivery,
        counters=backend.counters,
        limits=Limits(
            outbox_bytes=options.outbox_bytes,
            write_timeout=options.write_timeout,
            login_timeout=options.login_timeout,
            idle_timeout=options.idle_timeout,
            yield_after=options.yield_after,
            packets_per_second=options.rate,
            burst=options.burst,
            connections_per_address=options.max_per_address,
        ),
        tls=tls,
    )


def _allow_open_files(pool_size: int) -> None:
    """Raise the soft limit of open files if the pool needs it. Raises CannotStart if the hard limit is too low."""
    needed = 2 * pool_size + OPEN_FILES_RESERVE  # for each place a client, and one that is finishing
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
