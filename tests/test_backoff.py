"""The pauses between attempts to reconnect, of clients and of nodes."""

from itertools import islice, pairwise

import pytest

from client import backoff
from cluster.engine import pauses


def test_the_limit_of_a_clients_pause_doubles_up_to_30_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(0 <= delay <= 30 for delay in islice(backoff(), 100))
    monkeypatch.setattr("chatnet.backoff.random.uniform", lambda _low, high: high)
    limits = list(islice(backoff(), 10))
    assert (limits[0], limits[-1]) == (0.5, 30)
    assert all(later == min(30, 2 * sooner) for sooner, later in pairwise(limits))


def test_the_limit_of_a_nodes_pause_doubles_up_to_2_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatnet.backoff.random.uniform", lambda _low, high: high)
    assert list(islice(pauses(), 7)) == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_a_node_waits_at_least_half_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatnet.backoff.random.uniform", lambda low, _high: low)
    assert list(islice(pauses(), 1000))[-1] == 1.0


def test_pauses_vary() -> None:
    assert len({next(pauses()) for _ in range(10)}) == 10
