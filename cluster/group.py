"""Wires the rooms of cluster/ together, for server.py."""

from argparse import Namespace
from contextlib import ExitStack

from chatserver.backend import Backend
from chatserver.counters import Counters
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
    """Come to the group as a node, which leaves it at the end of `stack`. `commit_seconds` is the interval of Archive.

    Raises StorageError.
    """
    counters = Counters()
    engine = Engine(options.redis, options.redis_prefix)
    stack.callback(engine.close)
    directory = Directory(engine, options.lease)
    storage = stack.enter_context(RedisStorage(directory, options.max_users, options.max_id))
    directory.clock.number = engine.call("INCR", engine.key("node-number"))
    archive = None
    if options.history == "on":
        chats = RedisChats(engine, options.history_messages, directory.clock)
        archive = ClusterArchive(chats, directory, counters, commit_seconds, options.mailbox_messages)
    lease = Lease(options.lease)
    presence = ClusterPresence(directory, lease, options.id_width, archive)
    bus = Bus(presence, directory)
    delivery = ClusterDelivery(presence, bus, archive, counters, storage.is_user, options.id_width)
    node = Node(directory, lease, presence, bus)
    stack.callback(node.stop)
    if archive:
        stack.callback(archive.close)
    return Backend(storage, archive, presence, delivery, counters, node.start)
