"""Twenty clients, and the load tester, across a restart of the server; `make restart-test` shows more."""

from pathlib import Path

import pytest

from stress.restart import SPREADS, Comeback, histogram, logged_in, moments, most_within, restart
from testkit.faulty_proxy import FaultyProxy
from testkit.loadtests import load, start_locust
from testkit.processes import wait_for
from testkit.server import StartServer

CLIENTS, TERMINALS = 20, 2
LOAD_USERS = 15
LOAD_MOMENT = 0.2  # seconds: one process takes this long to reconnect all its users, which pause up to 0.5 s
MOMENT = 0.05  # seconds
TRIES = 3  # after a machine has stalled, all clients whose pauses have ended meanwhile reconnect together
MANY_REFUSALS = 3


@pytest.mark.parametrize(
    "down", [0.0, pytest.param(3.0, marks=pytest.mark.slow)], ids=["at once", "after three seconds"]
)
def test_all_clients_are_notified_and_come_back_spread_over_time(tmp_path: Path, down: float) -> None:
    for number in range(TRIES):
        back = restart(tmp_path / str(number), CLIENTS, TERMINALS, down)
        show(back)
        assert back.is_complete, back
        assert all(count <= MANY_REFUSALS for count in back.refusals.values()), back.refusals
        if max(most_within(MOMENT, spread(back)) for spread in SPREADS.values()) <= CLIENTS // 2:
            return
    pytest.fail(f"over half of the clients came within {MOMENT} s, {TRIES} times")


def show(back: Comeback) -> None:
    """Print the spread, for the report of a failed test or pytest -s."""
    for title, spread in SPREADS.items():
        print(f"{title}: at most {most_within(MOMENT, spread(back))} within {MOMENT} s\n{histogram(spread(back))}")


def test_the_busiest_span_is_found_wherever_it_begins() -> None:
    assert most_within(0.1, [0.0, 0.08, 0.12, 0.17, 0.19, 0.5]) == 3
    assert most_within(0.1, [1.0]) == 1


def test_clients_that_never_retry_are_missing(tmp_path: Path) -> None:
    back = restart(tmp_path, 2, 0, 0.0, lambda: iter([3600.0]), patience=0.5)
    assert (back.notified, back.back, back.missing) == (2, 0, ["client-0", "client-1"])
    assert (back.first_attempts, back.logins) == ([], [])
    assert not back.is_complete


@pytest.mark.slow
def test_users_of_the_load_tester_come_back_spread_over_time(start_server: StartServer, tmp_path: Path) -> None:
    for number in range(TRIES):
        connects = takeover(start_server, tmp_path / str(number))
        assert len(connects) == LOAD_USERS
        if most_within(LOAD_MOMENT, connects) <= LOAD_USERS * 3 // 4:
            return
        print(histogram(connects))
    pytest.fail(f"over three quarters of the users came within {LOAD_MOMENT} s, {TRIES} times")


def takeover(start_server: StartServer, folder: Path) -> list[float]:
    """When Locust's users connected to the server that replaces theirs.

    It listens already, so that their first attempts succeed: a server that is still starting would not see those.
    """
    old, new = (start_server(data_dir=folder / name / "data") for name in ("old", "new"))
    names = {f"load-{number}" for number in range(LOAD_USERS)}
    with (
        FaultyProxy(old.host, old.port) as proxy,
        start_locust(folder, *load(proxy.address, LOAD_USERS, rate=5), "Chatter") as locust,
    ):
        wait_for("everyone's login", lambda: logged_in(old.log) >= names)
        proxy.upstream = (new.host, new.port)
        assert old.stop() == 0
        wait_for("everyone's return", lambda: logged_in(new.log) >= names)
        locust.interrupt()
        locust.end()
    return moments(new.log, " connected")
