"""What it takes a node to know who is online: `python -m benchmarks.directory 100000`, for so many users elsewhere."""

from gevent import monkey

monkey.patch_all()

import gc
import subprocess
import sys
import tempfile
import time

import psutil

from benchmarks.servers import find
from chatstorage.interface import StorageUnavailable
from cluster.directory import Directory
from cluster.engine import Engine
from cluster.lease import Lease
from cluster.presence import ClusterPresence
from testkit.ports import free_port

AT_ONCE = 10_000
EVENTS = 20_000
KIB = 1024


def main(count: int) -> None:
    """Fill a Redis of its own, look around once, then hear of those who come."""
    program, port = find("redis-server"), free_port()
    if program is None:
        sys.exit("there is no redis-server: sudo apt install redis-server")
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        redis = psutil.Popen(command, stdout=subprocess.DEVNULL)
        try:
            measure(Engine(f"redis://127.0.0.1:{port}/0", "bench"), redis, count)
        finally:
            redis.kill()
            redis.wait()


def measure(engine: Engine, redis: psutil.Process, count: int) -> None:
    """Prints each figure when it is known."""
    wait_for(engine)
    empty = redis.memory_info().rss
    for first in range(1, count + 1, AT_ONCE):
        users = range(first, min(first + AT_ONCE, count + 1))
        engine.call("HSET", engine.key("online"), *(part for user in users for part in (user, held(user))))
    print(f"{count} users online: {(redis.memory_info().rss - empty) / count / KIB:.2f} KiB each in Redis")

    directory = Directory(engine, 10.0)
    directory.join()
    relay = ClusterPresence(directory, Lease(10.0), 4, None)
    gc.collect()
    memory, busy, began = psutil.Process().memory_info().rss, sum(redis.cpu_times()[:2]), time.perf_counter()
    number, _, everyone = directory.snapshot()
    asked = time.perf_counter()
    relay.replace(number, everyone)
    done = time.perf_counter()
    del everyone
    gc.collect()
    print(
        f"a node that comes asks for {asked - began:.2f} s, of which Redis {sum(redis.cpu_times()[:2]) - busy:.2f} s,"
    )
    kept = psutil.Process().memory_info().rss - memory
    print(f"  and then takes {done - asked:.2f} s, and {kept / count / KIB:.2f} KiB for each")

    began = time.process_time()
    for event in range(1, EVENTS + 1):
        relay.apply(f"{number + event} + {count + event} {held(count + event)}".encode())
    print(f"each who comes takes each node {(time.process_time() - began) / EVENTS * 1e6:.1f} us, many at once")


def held(user_id: int) -> str:
    return f"0123456789ab user-{user_id}"


def wait_for(engine: Engine) -> None:
    end = time.monotonic() + 10.0
    while True:
        try:
            engine.call("PING")
        except StorageUnavailable:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
