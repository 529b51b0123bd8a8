"""Wires the parts of a node together, for server.py."""

from argparse import Namespace
from contextlib import ExitStack

from chatserver.backend import Backend
from chatserver.counters import Counters
from chatserver.messages.commits import CommitQueue
from chatserver.workers import Workers
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


def join_group(options: Namespace, commit_seconds: float, stack: ExitStack) -> Backend:
    """Join the group as a node, which leaves at the end of `stack`. `commit_seconds` is the interval of CommitQueue.

    Raises StorageError.
    """
    counters = Counters()
    waits_in_loop = Workers(0)  # Redis is asked cooperatively
    engine = Engine(options.redis, options.redis_prefix)
    stack.callback(engine.close)
    directory = Directory(engine, options.lease)
    storage = stack.enter_context(RedisStorage(directory, options.max_users, options.max_id))
    directory.clock.number = engine.call("INCR", engine.key("node-number"))
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
    return Backend(storage, archive, presence, delivery, counters, waits_in_loop, start=node.start)
