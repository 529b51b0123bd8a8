"""What it costs a node to know who is online: `python -m benchmarks.directory 100000`, users on other nodes."""

from gevent import monkey

monkey.patch_all()

import gc
import sys
import tempfile
import time
from pathlib import Path

import psutil

from cluster.directory import Directory
from cluster.engine import Engine
from cluster.lease import Lease
from cluster.presence import ClusterPresence
from testkit import Missing
from testkit.redis_server import run_redis

AT_ONCE = 10_000
EVENTS = 20_000
KIB = 1024


def main(count: int) -> None:
    """Fill a Redis with online users, have a node join, then have it learn of logins elsewhere."""
    with tempfile.TemporaryDirectory() as folder, run_redis(Path(folder), "--appendonly", "no") as redis:
        measure(Engine(redis.url, "bench"), psutil.Process(redis.pid), count)


def measure(engine: Engine, redis: psutil.Process, count: int) -> None:
    """Print each figure when it is known."""
    empty = redis.memory_info().rss
    for first in range(1, count + 1, AT_ONCE):
        users = range(first, min(first + AT_ONCE, count + 1))
        engine.call("HSET", engine.key("online"), *(part for user in users for part in (user, held(user))))
    print(f"{count} users online: {(redis.memory_info().rss - empty) / count / KIB:.2f} KiB each in Redis")

    directory = Directory(engine, 10.0)
    directory.join()
    presence = ClusterPresence(directory, Lease(10.0), 4, None)
    gc.collect()
    memory, busy, began = psutil.Process().memory_info().rss, sum(redis.cpu_times()[:2]), time.perf_counter()
    number, _, everyone = directory.snapshot()
    read = time.perf_counter()
    presence.replace(number, everyone)
    done = time.perf_counter()
    del everyone
    gc.collect()
    busy = sum(redis.cpu_times()[:2]) - busy
    print(f"a joining node reads the list in {read - began:.2f} s, of which Redis takes {busy:.2f} s of CPU,")
    kept = psutil.Process().memory_info().rss - memory
    print(f"  and then takes it over in {done - read:.2f} s, and {kept / count / KIB:.2f} KiB for each")

    began = time.process_time()
    for event in range(1, EVENTS + 1):
        presence.apply(f"{number + event} + {count + event} {held(count + event)}".encode())
    print(f"a login costs each other node {(time.process_time() - began) / EVENTS * 1e6:.1f} us, many at once")


def held(user_id: int) -> str:
    return f"0123456789ab user-{user_id}"


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
    except Missing as missing:
        sys.exit(str(missing))
