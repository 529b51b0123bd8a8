"""HTTP for an operator's tools: /metrics in Prometheus's text format, /healthz, /readyz."""

import io
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import accumulate
from typing import Any, TypeAlias

import gevent
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer
from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from chatserver.counters import LATENCY_BOUNDS, Latency
from chatserver.listener import ChatServer
from chatserver.messages.archive import Archive
from chatserver.operations.lag import LoopLag
from protocol import Reason
from storage import Storage, StorageUnavailable

REQUESTS_AT_ONCE = 4
REQUEST_SECONDS = 10.0
REQUEST_BYTES = 16384  # more than Prometheus sends; http.client alone would accept 6.5 MB of headers, in four copies
OPEN_METRICS = "application/openmetrics-text"

WsgiApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class ServerCollector(Collector):
    """Reads the server's plain integers when Prometheus asks."""

    def __init__(
        self, server: ChatServer, storage: Storage, archive: Archive | None, lag: LoopLag, memory_bound: int
    ) -> None:
        self._server = server
        self._storage = storage
        self._archive = archive
        self._lag = lag
        self._memory_bound = memory_bound

    def collect(self) -> Iterator[Metric]:
        """Yield one metric after the other."""
        yield from self._gauges()
        yield from self._counters()
        counters = self._server.context.counters
        yield _latency(
            "chat_storage_seconds", "Writes to the CSV files, including the wait for their turn", counters.storage
        )
        yield _latency("chat_commit_seconds", "Commits of messages to chats.db", counters.commits)

    def _gauges(self) -> Iterator[Metric]:
        outboxes = [connection.outbox.size for connection in self._server.connections]
        values: dict[str, tuple[str, float | None]] = {
            "chat_connected": ("Clients being served", len(outboxes)),
            "chat_online": ("Users online at this server", len(self._server.context.presence)),
            "chat_waiting": ("Connections waiting for a place", self._server.waiting()),
            "chat_signed_up": ("Users who have signed up", _if_known(self._storage.count)),
            "chat_messages_in_flight": (
                "Messages accepted but not yet delivered, refused, mailed or found undeliverable",
                self._server.context.counters.messages_in_flight,
            ),
            "chat_mailbox_messages": (
                "Messages waiting in mailboxes of offline users",
                _if_known(self._archive.waiting_messages) if self._archive else None,
            ),
            "chat_outbox_bytes": ("Bytes waiting to be sent to all clients", sum(outboxes)),
            "chat_outbox_bytes_max": (
                "Bytes waiting to be sent to the client with the most",
                max(outboxes, default=0),
            ),
            "chat_memory_bound_bytes": ("Upper bound of process_resident_memory_bytes", self._memory_bound),
            "chat_loop_lag_seconds": ("Longest delay of the loop in the last ten seconds", self._lag.worst),
        }
        for name, (text, value) in values.items():
            if value is not None:
                yield GaugeMetricFamily(name, text, value)

    def _counters(self) -> Iterator[Metric]:
        counters = self._server.context.counters
        totals = {
            "chat_connections": ("Clients that got a place", counters.connections),
            "chat_sign_ups": ("New users", counters.sign_ups),
            "chat_logins": ("Logins granted", counters.logins),
            "chat_exposed_passwords": ("Clients that sent a password unencrypted", counters.exposed_passwords),
            "chat_messages_accepted": ("Well-formed Messages read from clients", counters.messages_accepted),
            "chat_messages_delivered": ("Messages sent to their receivers", counters.messages_delivered),
            "chat_messages_undeliverable": (
                "Messages queued for a receiver whose connection ended",
                counters.messages_undeliverable,
            ),
            "chat_messages_mailed": ("Messages put into a mailbox", counters.messages_mailed),
            "chat_mailbox_delivered": ("Messages from mailboxes sent to their receivers", counters.mailbox_delivered),
            "chat_messages_stored": ("Messages written to disk", counters.messages_stored),
            "chat_messages_handed_on": (
                "Messages for users of other servers of the group",
                counters.messages_handed_on,
            ),
            "chat_messages_taken_on": ("Messages from users of other servers of the group", counters.messages_taken_on),
            "chat_received_bytes": ("Bytes from clients", counters.bytes_received),
            "chat_sent_bytes": ("Bytes to clients", counters.bytes_sent),
            "chat_delays": ("How often a client over its --rate was throttled", counters.delays),
            "chat_loop_blocked": ("How often the loop was delayed by over 100 ms", self._lag.blocked),
        }
        for name, (text, value) in totals.items():
            yield CounterMetricFamily(name, text, value)
        yield _by_reason("chat_login_failures", "Logins refused", counters.login_failures)
        yield _by_reason("chat_messages_refused", "Messages answered with an Error", counters.messages_refused)
        yield _by_reason("chat_disconnects", "Connections ended", counters.disconnects)


def _if_known(figure: Callable[[], int]) -> int | None:
    """A figure from the database; None while that cannot be reached."""
    try:
        return figure()
    except StorageUnavailable:
        return None


class _Request(io.RawIOBase):
    """A client's input, cut off after REQUEST_BYTES."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._room = REQUEST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._sock.recv_into(buffer, min(len(buffer), self._room)) if self._room else 0
        self._room -= count
        return count


class _Handler(WSGIHandler):
    def __init__(self, sock: Any, address: Any, server: Any) -> None:
        super().__init__(sock, address, server, io.BufferedReader(_Request(sock)))  # type: ignore[call-arg]


class MetricsServer(WSGIServer):
    """Serves a few requests at once, each bounded in time and size: any open port gets attacked.

    A new one does not wait for those that are silent: the oldest one is cut off for it.
    """

    handler_class = _Handler

    def __init__(self, address: tuple[str, int], app: WsgiApp) -> None:
        errors = logging.getLogger("metrics")
        super().__init__(address, app, spawn=Pool(REQUESTS_AT_ONCE + 1), log=None, error_log=errors)
        self._open: dict[Any, None] = {}  # sockets, the oldest first

    def handle(self, sock: Any, address: Any) -> None:
        """Serve one connection for at most REQUEST_SECONDS; a socket's own timeout would start again at each byte."""
        if len(self._open) >= REQUESTS_AT_ONCE:
            oldest = next(iter(self._open))
            del self._open[oldest]
            _cut(oldest)
        self._open[sock] = None
        deadline = gevent.spawn_later(REQUEST_SECONDS, _cut, sock)
        try:
            super().handle(sock, address)
        finally:
            self._open.pop(sock, None)
            deadline.kill(block=False)


def serve_metrics(
    address: tuple[str, int], server: ChatServer, collector: ServerCollector, problem: Callable[[], str]
) -> MetricsServer:
    """Start serving on this address. `problem` as in Backend. Raises OSError."""
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    app = _routes(server, make_wsgi_app(registry), problem)
    metrics = MetricsServer(address, app)
    metrics.start()
    return metrics


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):  # the client has closed meanwhile
        sock.shutdown(socket.SHUT_RDWR)


def _routes(server: ChatServer, metrics: WsgiApp, problem: Callable[[], str]) -> WsgiApp:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start_and_close(status: str, headers: list[tuple[str, str]]) -> Any:
            return start_response(status, [*headers, ("Connection", "close")])  # a kept connection would hold a place

        match environ["PATH_INFO"]:
            case "/metrics":
                asked_for = environ.get("HTTP_ACCEPT", "")  # the library fails on a malformed version
                environ["HTTP_ACCEPT"] = OPEN_METRICS if OPEN_METRICS in asked_for else ""
                return metrics(environ, start_and_close)
            case "/healthz":
                status, body = "200 OK", "ok\n"
            case "/readyz" if reason := "draining" if server.draining else problem():
                status, body = "503 Service Unavailable", f"{reason}\n"
            case "/readyz":
                status, body = "200 OK", "ready\n"
            case _:
                status, body = "404 Not Found", "there is /metrics, /healthz and /readyz\n"
        start_and_close(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [body.encode()]

    return app


def _latency(name: str, text: str, latency: Latency) -> Metric:
    bounds = [*map(str, LATENCY_BOUNDS), "+Inf"]
    buckets = list(zip(bounds, accumulate(latency.counts), strict=True))
    return HistogramMetricFamily(name, text, buckets, latency.seconds)


def _by_reason(name: str, text: str, counts: Counter[Reason] | Counter[str]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["reason"])
    for reason, count in counts.items():
        family.add_metric([reason], count)
    return family
