"""How long to wait before connecting again."""

import random
from collections.abc import Iterator


def backoff(base: float = 0.5, cap: float = 30.0, floor: float = 0.0) -> Iterator[float]:
    """Seconds to wait before each attempt to reconnect: random, up to a limit that doubles from `base` to `cap`.

    With `floor` 0 this is "full jitter"; `floor` is the fraction of the limit that is waited at least. Without the
    jitter, all clients of a server that restarts would come back at the same moment.
    """
    limit = base
    while True:
        yield random.uniform(floor * limit, limit)
        limit = min(cap, 2 * limit)
