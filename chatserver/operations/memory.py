"""The most memory that the server can need, computed from its options; the log states it at the start.

Each term bounds what clients can make the process keep. Their sum is an upper bound: clients cannot reach all terms at
once. `make soak` tries.
"""

import resource
import sys
from argparse import Namespace
from pathlib import Path

from argon2 import PasswordHasher

from chatserver.listener import RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES
from chatserver.messages.archive import MAIL_BYTES
from chatserver.messages.commits import PENDING_BYTES
from chatserver.people.passwords import HASHES_AT_ONCE
from chatserver.transport.connection import RECV_BYTES
from chatserver.transport.outbox import PUT_BYTES
from chatstorage.chat_file import CACHE_BYTES
from protocol import MAX_PACKET_BYTES

KIB, MIB, GB = 1024, 1024 * 1024, 1_000_000_000

# Measured as resident memory with CPython 3.11 on 64-bit Linux, and rounded up.
SLACK = 2  # of the allocators: 1.85 while a fifth of all outboxes stays and the rest turns from small packets to large
SESSION_BYTES = 32 * KIB  # 25 KiB: a greenlet with 16 KiB of Python stack, Session, Envelope, Connection, its socket
GREENLET_BYTES = 20 * KIB  # 17 KiB: that of the writer, or the one that finishes a connection
CONNECTION_BYTES = 2 * KIB  # 1.4 KiB: one that has ended
USER_BYTES = 2560  # 2,090 bytes: the name of 32 bytes that NFKC expands most, its looks, a hash, dicts just resized
HASH_BYTES = 256 * KIB  # in addition to argon2's own memory: five threads' stacks and arenas
FIRST_USE_BYTES = 4 * MIB  # 0.6 MiB of threads and libraries; 1.3 MiB that the garbage collector finds late
TLS_BYTES = 200 * KIB  # for one connection: OpenSSL's state, its buffers, and its unread handshake messages

MESSAGE_DISK_BYTES = 256  # in chats.db: the longest Message, of the longest name, by itself

WRAPPED_BYTES = 90  # a Message of one letter from a name of 32 bytes, as received: an object of 80, a list's slot
RELAYED_BYTES = 38  # ... of them, on the wire
TINY_PACKET_BYTES = 5  # ... and as its sender sent it; all empty texts share one object
LARGEST_BATCH_BYTES = RECV_BYTES // TINY_PACKET_BYTES * RELAYED_BYTES
SQLITE_BYTES = 16 * MIB  # statements, which keep their last parameters: up to 127 batches of LARGEST_BATCH_BYTES
NOTICE_BYTES = 112  # for one user, in the presence notices
ENTRY_BYTES = 120  # of a queued list: an entry that nothing else holds, a slot in each of two lists
ENDED_UNSEEN = 40  # for each place: the garbage collector examines old objects only after ten times ten rounds


def terms(options: Namespace) -> dict[str, int]:
    """What the server may need on top of its memory at the start, in bytes, by purpose. Users loaded at the start count
    twice.
    """
    users, pool = options.max_users, options.pool_size
    return {
        f"{pool} places": pool * place(options),
        f"{users} users": users * USER_BYTES,
        f"{HASHES_AT_ONCE} hashes": HASHES_AT_ONCE * (PasswordHasher().memory_cost * KIB + HASH_BYTES),
        "first use": FIRST_USE_BYTES,
    } | ({"chats": 2 * PENDING_BYTES + CACHE_BYTES + SQLITE_BYTES} if options.history == "on" else {})


def place(options: Namespace) -> int:
    """Bytes for one place: a client that is served, and one that is finishing meanwhile."""
    outbox = options.outbox_bytes + MAX_PACKET_BYTES + PUT_BYTES  # the last packet needs no room
    parts: dict[str, int] = {
        "what waits to be sent, or is in flight": 2 * outbox,
        "the chunk that was read, and a copy after the start of a packet": 2 * (RECV_BYTES + MAX_PACKET_BYTES),
        "its Messages, while the partner has no room": RECV_BYTES // TINY_PACKET_BYTES * WRAPPED_BYTES,
        "the list of who is online, while there is no room": options.pool_size * ENTRY_BYTES,
        "the session": SESSION_BYTES,
        "its writer": GREENLET_BYTES,
        "the one that is finishing, and what it still sends": GREENLET_BYTES + CONNECTION_BYTES + RECV_BYTES,
        "unread presence notices": options.max_users * NOTICE_BYTES,
        "earlier connections": ENDED_UNSEEN * CONNECTION_BYTES,
        "its messages before they reach the disk, or a part of its mailbox": MAIL_BYTES + LARGEST_BATCH_BYTES
        if options.history == "on"
        else 0,
        "TLS": 2 * TLS_BYTES if getattr(options, "tls_cert", None) else 0,
    }
    return SLACK * sum(parts.values())


def kernel_bytes(options: Namespace) -> int:
    """Bytes that the kernel may keep for all connections. Linux grants twice the requested size."""
    connections: int = 2 * options.pool_size
    waiting: int = options.backlog
    return 2 * (connections * SEND_BUFFER_BYTES + (connections + waiting) * RECEIVE_BUFFER_BYTES)


def resident_bytes() -> int:
    """The process's resident memory now; where the system does not tell (macOS), its peak so far."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * KIB


def bound(options: Namespace, now: int) -> int:
    """The most that the process can need, in bytes; `now` is its resident memory at the start."""
    return now + sum(terms(options).values())


def disk_bytes(options: Namespace) -> int:
    """Upper bound of chats.db: of what is kept for each pair of users, themselves included, and of the mailboxes."""
    if options.history == "off" or options.redis:
        return 0
    users = options.max_users
    kept = users * (users + 1) // 2 * options.history_messages * 9 // 8
    return int(MESSAGE_DISK_BYTES * (kept + users * options.mailbox_messages))


def report(options: Namespace, now: int) -> str:
    """A line for the log; `now` as in bound()."""
    breakdown = ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in terms(options).items())
    most = -(-bound(options, now) // MIB)
    kernel = -(-kernel_bytes(options) // MIB)
    disk = disk_bytes(options)
    chats = f"; {disk / GB:.1f} GB of past chats at most, on disk" if disk else ""
    return (
        f"memory: {now / MIB:.0f} MiB now, {most} MiB at most ({breakdown}); plus {kernel} MiB of kernel buffers{chats}"
    )
