"""Wires the parts of a node together, for server.py."""

import logging
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from time import monotonic

import gevent
from redis.exceptions import AuthenticationError, AuthorizationError
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as NoAnswer

from chatserver.backend import Backend
from chatserver.counters import Counters
from chatserver.messages.commits import CommitQueue
from chatserver.workers import Workers
from chatstorage.interface import StorageUnavailable
from cluster.archive import ClusterArchive
from cluster.bus import Bus
from cluster.chats import RedisChats
from cluster.delivery import ClusterDelivery
from cluster.directory import Directory
from cluster.engine import Engine
from cluster.lease import Lease
from cluster.node import Node
from cluster.presence import ClusterPresence
from cluster.storage import RedisStorage
from cluster.wire import Misfit

LOOK_SECONDS = 0.25  # between two looks whether Redis is there

log = logging.getLogger("chat")


def join_group(
    options: Namespace, commit_seconds: float, stack: ExitStack, is_stopped: Callable[[], bool] = lambda: False
) -> Backend:
    """Join the group as a node, which leaves at the end of `stack`. `commit_seconds` is the interval of CommitQueue.

    Waits up to `options.wait_for_redis` seconds for Redis, or until it `is_stopped`. Raises StorageError.
    """
    counters = Counters()
    waits_in_loop = Workers(0)  # Redis is asked cooperatively
    engine = Engine(options.redis, options.redis_prefix)
    stack.callback(engine.close)
    directory = Directory(engine, options.lease)
    directory.clock.number = _wait_for_redis(engine, options.wait_for_redis, is_stopped)
    storage = stack.enter_context(RedisStorage(directory, options.max_users, options.max_id))
    archive = None
    if options.history == "on":
        chats = RedisChats(engine, options.history_messages, directory.clock)
        queue = CommitQueue(chats, counters, commit_seconds, waits_in_loop)
        archive = ClusterArchive(chats, queue, directory, counters, options.mailbox_messages)
    lease = Lease(options.lease)
    presence = ClusterPresence(directory, lease, options.id_width, archive)
    bus = Bus(presence, directory)
    delivery = ClusterDelivery(presence, bus, archive, counters, storage.is_user, options.id_width)
    node = Node(directory, lease, presence, bus)
    stack.callback(node.stop)
    if archive:
        stack.callback(archive.close)
    return Backend(
        storage, archive, presence, delivery, counters, waits_in_loop, start=node.start, problem=node.problem
    )


def _wait_for_redis(engine: Engine, seconds: float, is_stopped: Callable[[], bool]) -> int:
    """Wait for a Redis that can be written; returns the number of this node, which no other node gets.

    Raises StorageUnavailable, at once where it does not help to wait.
    """
    deadline = monotonic() + seconds
    is_told = False
    while True:
        try:
            return int(engine.call("INCR", engine.key("node-number")))
        except StorageUnavailable as error:
            if not _may_pass(error.__cause__) or monotonic() >= deadline or is_stopped():
                raise
            if not is_told:
                log.warning("%s; waiting for it, %.0f s at most", error, seconds)
            is_told = True
            gevent.sleep(LOOK_SECONDS)


def _may_pass(error: BaseException | None) -> bool:
    """Whether this keeps Redis from working for a while only; None: it was not asked, so soon after such an error."""
    if isinstance(error, AuthenticationError | AuthorizationError):
        return False
    return error is None or isinstance(error, NoConnection | NoAnswer | Misfit)
