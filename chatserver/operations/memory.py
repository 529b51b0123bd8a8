"""How much memory the server can come to need, from its options: told at the start, so that a machine can be chosen.

Each term bounds what clients can make the process keep. All of them at once is more than what any clients bring about;
what they do bring about is less than that: `make soak` tries.
"""

import resource
import sys
from argparse import Namespace
from pathlib import Path

from argon2 import PasswordHasher

from chatserver.listener import RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES
from chatserver.messages.archive import MAIL_BYTES, PENDING_BYTES
from chatserver.people.passwords import HASHES_AT_ONCE
from chatserver.transport.connection import RECV_BYTES
from chatserver.transport.outbox import PUT_BYTES
from chatstorage.chat_file import CACHE_BYTES
from protocol import MAX_PACKET_BYTES

KIB, MIB = 1024, 1024 * 1024

# Measured as resident memory with CPython 3.11 on 64-bit Linux, and rounded up.
SLACK = 2  # of the allocators: 1.85 while a fifth of all outboxes stays and the rest goes from small packets to large
SESSION_BYTES = 32 * KIB  # 25 KiB: a greenlet with 16 KiB of Python stack, Session, Envelope, Connection, its socket
GREENLET_BYTES = 20 * KIB  # 17 KiB: that of the writer, or of the seeing-off
CONNECTION_BYTES = 2 * KIB  # 1.4 KiB: one that has ended
USER_BYTES = 1536  # 1,442 bytes: a name of 32 bytes that grows most by NFKC, a hash, three dicts that have just grown
HASH_BYTES = 256 * KIB  # besides what argon2 asks for: five threads' stacks and arenas
FIRST_USE_BYTES = 4 * MIB  # 0.6 MiB of threads and libraries; 1.3 MiB that the garbage collector is slow to find
TLS_BYTES = 200 * KIB  # of one connection: OpenSSL's state, its buffers, and what it has to say that nobody reads

WRAPPED_BYTES = 90  # a Message of one letter as its receiver gets it, name of 32 bytes: an object of 80, a list's slot
RELAYED_BYTES = 38  # ... of them, on the wire
TINY_PACKET_BYTES = 5  # ... which its sender sent in so many; an empty text shares one object with all the others
LARGEST_BATCH_BYTES = RECV_BYTES // TINY_PACKET_BYTES * RELAYED_BYTES
SQLITE_BYTES = 16 * MIB  # statements, which keep what they were given last: up to 127 batches of LARGEST_BATCH_BYTES
NOTICE_BYTES = 112  # of one user, in the notices of who has come and gone
ENTRY_BYTES = 120  # of a list on its way: an entry that nobody else has any more, a slot in each of two lists
ENDED_UNSEEN = 40  # for each place: the garbage collector looks at the old ones after ten, and then ten, rounds


def terms(options: Namespace) -> dict[str, int]:
    """What is added to the memory at the start, in bytes, by what it is for. Users loaded by then count twice."""
    users, pool = options.max_users, options.pool_size
    return {
        f"{pool} places": pool * place(options),
        f"{users} users": users * USER_BYTES,
        f"{HASHES_AT_ONCE} hashes": HASHES_AT_ONCE * (PasswordHasher().memory_cost * KIB + HASH_BYTES),
        "first use": FIRST_USE_BYTES,
    } | ({"chats": 2 * PENDING_BYTES + CACHE_BYTES + SQLITE_BYTES} if options.history == "on" else {})


def place(options: Namespace) -> int:
    """For a client that is served, and one that is being seen off meanwhile, in bytes."""
    outbox = options.outbox_bytes + MAX_PACKET_BYTES + PUT_BYTES  # the last packet needs no room
    parts: dict[str, int] = {
        "what waits to be sent, or is in flight": 2 * outbox,
        "the chunk that was read, and again behind the start of a packet": 2 * (RECV_BYTES + MAX_PACKET_BYTES),
        "its Messages, while the partner has no room": RECV_BYTES // TINY_PACKET_BYTES * WRAPPED_BYTES,
        "the list of who is online, while there is no room": options.pool_size * ENTRY_BYTES,
        "the session": SESSION_BYTES,
        "its writer": GREENLET_BYTES,
        "the one that is seen off, and what it still sends": GREENLET_BYTES + CONNECTION_BYTES + RECV_BYTES,
        "who has come and gone, if it does not read that": options.max_users * NOTICE_BYTES,
        "those that were here before": ENDED_UNSEEN * CONNECTION_BYTES,
        "what it sends, on its way to disk, or a part of its mailbox": MAIL_BYTES + LARGEST_BATCH_BYTES
        if options.history == "on"
        else 0,
        "TLS": 2 * TLS_BYTES if getattr(options, "tls_cert", None) else 0,
    }
    return SLACK * sum(parts.values())


def kernel_bytes(options: Namespace) -> int:
    """What the kernel may keep for all connections besides, in bytes. Linux grants twice what is asked for."""
    connections: int = 2 * options.pool_size
    waiting: int = options.backlog
    return 2 * (connections * SEND_BUFFER_BYTES + (connections + waiting) * RECEIVE_BUFFER_BYTES)


def resident_bytes() -> int:
    """What the process has in memory now; where the system does not tell (macOS), the most that it ever had."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * KIB


def bound(options: Namespace, now: int) -> int:
    """The most that the process can come to need, in bytes; `now` is what it has at its start."""
    return now + sum(terms(options).values())


def report(options: Namespace, now: int) -> str:
    """A line for the log; `now` as in bound()."""
    breakdown = ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in terms(options).items())
    most = -(-bound(options, now) // MIB)
    kernel = -(-kernel_bytes(options) // MIB)
    return (
        f"memory: {now / MIB:.0f} MiB now, {most} MiB at most ({breakdown}); the kernel's buffers {kernel} MiB besides"
    )
