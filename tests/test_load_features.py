"""The load tester with the protocol's extensions: what it measures, and what it finds."""

import json
import socket
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from protocol import NO_FEATURES, Feature, encode_login
from testkit.loadtests import (
    ROWS,
    expect_clean,
    expect_refusal,
    load,
    run_locust,
    run_until,
    start_locust,
    two_processes,
)
from testkit.ports import answers, free_port
from testkit.processes import DEADLINE, wait_for
from testkit.server import ServerProcess, StartServer

pytestmark = pytest.mark.measured

USERS = 20
NAMES = "presence, receipts, history, mailbox, brief, all"


def test_with_all_features_each_has_its_row_and_the_mailboxes_are_complete(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server("--metrics-port", 0)
    enough = {"deliver": 1000, "history": 10, "mailbox": 20}
    run = run_until(tmp_path, enough, *load(server.address, USERS), "--features", "all")
    expect_clean(run)
    assert run.rows.keys() == ROWS | {"stored", "delivered", "history", "mailbox"}
    for name in ("stored", "delivered"):
        assert run.ledger["sent"] / 2 < run.rows[name].count <= run.ledger["sent"]
        assert run.rows[name].times["p50"] > 0
    assert run.rows["history"].count > 5
    assert run.rows["history"].times["p50"] > 0
    assert run.rows["mailbox"].count > 10
    assert run.rows["mailbox"].times["p50"] < 0.5  # counted from the login: most have waited longer
    assert server.metrics()["chat_mailbox_messages"] == 0


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (("--features", "receipts,nothing"), 2, f"'nothing' is not one of {NAMES}"),
        (("--features", "history", "Chatter", "Traveller"), 1, "Traveller needs --features mailbox"),
    ],
)
def test_unknown_or_missing_features_are_reported_before_the_run(
    tmp_path: Path, options: tuple[str, ...], status: int, text: str
) -> None:
    expect_refusal(run_locust(tmp_path, *load("127.0.0.1:1", 4, 60), *options), text, status)


@pytest.mark.parametrize(
    ("options", "features"), [((), NO_FEATURES), (("--features", "brief, mailbox"), Feature.BRIEF | Feature.MAILBOX)]
)
def test_users_ask_for_what_was_named_and_for_nothing_else(
    tmp_path: Path, options: tuple[str, ...], features: Feature
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with start_locust(tmp_path, *load(address, 1), *options):
            user, _ = listener.accept()
            with user:
                user.settimeout(DEADLINE)
                assert user.recv(140) == encode_login("load-0", features=features)


@pytest.mark.slow
def test_a_server_that_keeps_nothing_has_no_stored_row_and_is_not_blamed(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server("--history", "off")
    enough = {"deliver": 500, "history": 1}
    run = run_until(tmp_path, enough, *load(server.address, USERS), "--features", "presence,receipts,history,brief")
    expect_clean(run)
    assert run.rows.keys() == ROWS | {"delivered", "history"}
    expect_clean(run_until(tmp_path, {"deliver": 500}, *load(server.address, USERS)))


@pytest.mark.slow
def test_each_of_two_processes_has_its_travellers(server: ServerProcess, tmp_path: Path) -> None:
    run = run_locust(tmp_path, *load(server.address, 8, 5), "--features", "mailbox", *two_processes(), "Traveller")
    expect_clean(run)
    assert run.rows["mailbox"].count > 10


@pytest.mark.slow
def test_features_can_be_changed_for_each_run_in_the_web_page(server: ServerProcess, tmp_path: Path) -> None:
    port = free_port()
    options = (*load(server.address, 12), "--web-host", "127.0.0.1", "--web-port", port)
    with start_locust(tmp_path, *options, headless=False) as locust:
        wait_for("the web page", lambda: answers(port) or locust.process.poll() is not None)

        def ask(path: str, **form: object) -> str:
            data = urllib.parse.urlencode(form).encode() if form else None
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", data, timeout=DEADLINE) as answer:
                return str(answer.read().decode())

        def rows(users: int) -> set[str]:
            """None as long as there are not so many users."""
            page = json.loads(ask("stats/requests"))
            return {row["name"] for row in page["stats"]} - {"Aggregated"} if page["user_count"] == users else set()

        def run(features: str, awaited: set[str]) -> set[str]:
            ask("swarm", user_count=12, spawn_rate=12, features=features)
            wait_for(f"{awaited} with {features!r}", lambda: awaited <= rows(12))
            ask("stop", now=True)
            wait_for("the end", lambda: rows(0))
            return rows(0)

        assert run("history,mailbox", {"history", "mailbox"}) > ROWS
        assert run("", ROWS) == ROWS
        ask("swarm", user_count=12, spawn_rate=12, features="none")
        wait_for("the run's end", lambda: rows(0) == {"options"})
    assert "Traceback" not in locust.log
    assert "--features: 'none' is not one of presence" in locust.log
