"""The load tester against a server that works: what a run comes to, and its options."""

import re
import socket
import time
from pathlib import Path

import pytest
import trustme

from testkit.faulty_proxy import FaultyProxy, ProxiedConnection
from testkit.loadtests import (
    CHAT,
    GENEROUS,
    ROWS,
    LoadRun,
    expect_clean,
    expect_refusal,
    load,
    read_ledger,
    read_statistics,
    run_locust,
    run_until,
    signed_up,
    start_locust,
)
from testkit.ports import free_port
from testkit.processes import ROOT
from testkit.server import ServerProcess, StartServer

pytestmark = pytest.mark.measured

USERS = 20
ENOUGH = 100  # messages, for everybody to have said something


# A clean run


def test_a_clean_run_passes_and_the_next_one_uses_the_same_names(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--max-users", USERS)
    for _ in range(2):  # a server that has no room for other names serves the second one as well
        run = run_until(tmp_path, {"deliver": 500}, *load(server.address, USERS))
        expect_clean(run)
        assert run.rows.keys() == ROWS
        assert run.rows["deliver"].count == run.rows["send"].count == run.ledger["sent"]
        assert sorted(signed_up(server.data_dir)) == sorted(f"load-{number}" for number in range(USERS))


@pytest.mark.slow
def test_every_row_has_times_but_send_is_only_counted(server: ServerProcess, tmp_path: Path) -> None:
    enough = dict.fromkeys(ROWS, 2)
    run = run_until(tmp_path, enough, *load(server.address, USERS), "--csv", "locust")
    expect_clean(run)
    assert {name for name, row in run.rows.items() if not row.times} == {"send"}
    for name in ROWS - {"send"}:
        times = list(run.rows[name].times.values())
        assert times[0] > 0
        assert times == sorted(times)
    statistics = read_statistics(tmp_path / "locust")
    assert statistics.keys() == ROWS | {"Aggregated"}
    assert 0 < int(statistics["send"]["Request Count"]) <= run.rows["send"].count
    for figure in ("Median Response Time", "Average Response Time", "Min Response Time", "Max Response Time"):
        assert statistics["send"][figure] in ("", "N/A", "0", "0.0")
    assert float(statistics["deliver"]["Max Response Time"]) > 0
    assert float(statistics["deliver"]["Average Content Size"]) == 40


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["", "tcp://"])
def test_a_host_may_have_a_scheme_or_none(server: ServerProcess, tmp_path: Path, scheme: str) -> None:
    expect_clean(run_until(tmp_path, {"deliver": 1}, *load("", 2), "--host", f"{scheme}{server.address}"))


@pytest.mark.slow
def test_users_speak_tls(start_server: StartServer, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = tmp_path / "certificate.pem"
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    host = ("--host", f"tls://{start_server('--tls-cert', certificate).address}")
    expect_clean(run_until(tmp_path, {"deliver": 1}, *load("", 4), *host, "--tls-ca", "ca.pem"))
    distrusting = run_locust(tmp_path, *load("", 4, 60), *host)
    assert distrusting.status == 1, distrusting.explain()
    assert distrusting.failed == {"connect.failures > 0", "given_up > 0"}
    assert len(distrusting.errors) == 1
    assert "Traceback" not in distrusting.log


# Partners and messages


def test_in_pairs_two_users_write_to_each_other(server: ServerProcess, tmp_path: Path) -> None:
    expect_clean(
        run_until(tmp_path, {"deliver": ENOUGH}, *load(server.address, 4), "--ledger", "ledger.csv", "Chatter")
    )
    assert main_pairs(tmp_path / "ledger.csv") == {0: 1, 1: 0, 2: 3, 3: 2}


@pytest.mark.slow
def test_in_a_ring_each_user_writes_to_the_next(server: ServerProcess, tmp_path: Path) -> None:
    options = ("--pairing", "ring", "--ledger", "ledger.csv", "Chatter")
    expect_clean(run_until(tmp_path, {"deliver": ENOUGH}, *load(server.address, 5), *options))
    assert main_pairs(tmp_path / "ledger.csv") == {0: 1, 1: 2, 2: 3, 3: 4, 4: 0}


def main_pairs(file: Path) -> dict[int, int]:
    """Whom each user has written most to: there are others while users come and go."""
    counts = sorted((int(line["sent"]), *map(number_of, pair)) for pair, line in read_ledger(file).items())
    return {sender: receiver for _, sender, receiver in counts}


def number_of(name: str) -> int:
    return int(name.removeprefix("load-"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 125])
def test_messages_have_the_size_that_was_asked_for(server: ServerProcess, tmp_path: Path, size: int) -> None:
    texts = []

    def note(link: ProxiedConnection, packet: bytes, number: int) -> None:
        if number:
            texts.append(packet[4:].partition(b":")[2])
        link.put(packet)

    with FaultyProxy(server.host, server.port, note) as proxy:
        options = (*load(proxy.address, 4), "--message-size", size)
        expect_clean(run := run_until(tmp_path, {"deliver": ENOUGH}, *options))
    assert len(texts) == run.ledger["delivered"]
    assert {len(text) for text in texts} == {size}


def test_a_message_that_no_packet_takes_ends_the_run_with_one_error(server: ServerProcess, tmp_path: Path) -> None:
    run = run_locust(tmp_path, *load(server.address, 4, 60), "--message-size", 126)
    assert run.status == 1, run.explain()
    assert run.errors == {"options: ValueError('--message-size: 126 is not between 40 and 125')": 1}
    assert run.failed == {"options.failures > 0", "given_up > 0"}
    assert run.ledger["sent"] == 0
    assert "Traceback" not in run.log


@pytest.mark.slow
def test_a_single_class_of_users_can_run(server: ServerProcess, tmp_path: Path) -> None:
    expect_clean(run := run_until(tmp_path, {"refresh": 4}, *load(server.address, 4), "Refresher"))
    assert run.rows.keys() == {"connect", "login", "refresh"}
    assert run.pairs == 0


@pytest.mark.slow
def test_only_users_with_a_task_of_the_chosen_tags_take_part(server: ServerProcess, tmp_path: Path) -> None:
    expect_clean(run := run_until(tmp_path, {"refresh": 4}, *load(server.address, 4), "--tags", "refresh"))
    assert run.rows.keys() == {"connect", "login", "refresh"}


# Files


@pytest.mark.slow
def test_the_histogram_is_written_as_text_that_plotters_read(server: ServerProcess, tmp_path: Path) -> None:
    expect_clean(
        run := run_until(tmp_path, {"deliver": ENOUGH}, *load(server.address, 4), "--histogram", "deliver.hdr")
    )
    heading, empty, *lines = (tmp_path / "deliver.hdr").read_text().splitlines()
    assert heading.split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    assert not empty
    points = [tuple(map(float, line.split())) for line in lines if not line.startswith("#")]
    values, shares, counts = ([point[column] for point in points] for column in range(3))
    assert (values, shares, counts) == (sorted(values), sorted(shares), sorted(counts))
    assert shares[-1] == 1
    assert counts[-1] == run.ledger["delivered"]
    assert values[-1] == pytest.approx(1000 * run.rows["deliver"].times["max"], rel=0.001)  # milliseconds
    assert any(line.split()[-1] == f"{counts[-1]:.3f}]" for line in lines if "TotalCount" in line)


@pytest.mark.slow
def test_the_ledger_is_written_as_a_line_for_each_pair(server: ServerProcess, tmp_path: Path) -> None:
    expect_clean(run := run_until(tmp_path, {"deliver": ENOUGH}, *load(server.address, 8), "--ledger", "ledger.csv"))
    pairs = read_ledger(tmp_path / "ledger.csv")
    assert len(pairs) == run.pairs > 0
    for column in ("sent", "delivered", "refused", "in_flight"):
        assert sum(int(line[column]) for line in pairs.values()) == run.ledger[column.replace("_", " ")]


@pytest.mark.parametrize("option", ["--histogram", "--ledger"])
@pytest.mark.parametrize("file", ["missing/file", "."])
def test_a_file_that_cannot_be_written_is_reported_before_the_run(tmp_path: Path, option: str, file: str) -> None:
    run = run_locust(tmp_path, *load("127.0.0.1:1", 4, 60), option, file)
    expect_refusal(run, f"argument {option}: {file} cannot be written")


# Servers that nobody reaches, or not all


def test_a_host_where_nobody_answers_ends_the_run_with_one_failure(tmp_path: Path) -> None:
    port = free_port()
    start = time.monotonic()
    run = run_locust(tmp_path, *load(f"127.0.0.1:{port}", USERS, 60))
    assert time.monotonic() - start < 30
    error = f"chat connect: ConnectionFailed('nobody answers at 127.0.0.1:{port} (Connection refused)')"
    expect_one_failure(run, error)


def test_a_host_with_an_unknown_scheme_ends_the_run_with_one_failure(tmp_path: Path) -> None:
    run = run_locust(tmp_path, *load("127.0.0.1:1", USERS, 60), "--host", "http://127.0.0.1:1")
    shown = "http:// is unknown; an address is HOST, HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT"
    expect_one_failure(run, f"chat connect: ValueError('{shown}')")


def expect_one_failure(run: LoadRun, error: str) -> None:
    assert run.status == 1, run.explain()
    assert run.errors == {error: 1}
    assert run.failed == {"connect.failures > 0", "given_up > 0"}
    assert (run.rows["connect"].count, run.rows["connect"].failures) == (1, 1)
    assert "Traceback" not in run.log


@pytest.mark.slow
def test_users_without_a_place_in_the_server_fail_to_log_in(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--pool-size", 4)
    run = run_until(tmp_path, {"login": 6, "deliver": 1}, *load(server.address, 6), "--timeout", 5, "Chatter")
    assert run.status == 1, run.explain()
    error = "chat login: TimeoutError('no answer to the login: are there more users than places in the server?')"
    assert run.errors.keys() - {"chat login: TimeoutError('no answer before the run ended')"} == {error}
    assert run.rows["login"].failures == sum(run.errors.values()) >= 2
    assert run.failed == {"login.failures > 0"}
    assert run.rows["login"].count - run.rows["login"].failures == 4
    assert re.search(r"\d logins got no answer, with 4 of these users online: all places of the server may", run.out)
    assert run.is_balanced


@pytest.mark.slow
def test_a_user_still_waiting_for_a_place_at_the_end_has_failed(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--pool-size", 4)
    with start_locust(tmp_path, *load(server.address, 6), "--timeout", 60, "Chatter") as locust:
        locust.wait_for_counts({"login": 4, "deliver": 1})
        time.sleep(2)
        locust.interrupt()
        run = locust.end()
    assert run.status == 1, run.explain()
    assert run.errors == {"chat login: TimeoutError('no answer before the run ended')": 2}
    assert run.rows["login"].times["max"] > 1.5
    assert (
        "2 logins got no answer, with 4 of these users online: all places of the server may have been taken." in run.out
    )


def test_refused_users_fail_with_the_servers_reason(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--max-users", 2)
    run = run_until(tmp_path, {"login": 4, "deliver": 1}, *load(server.address, 4), "Chatter")
    assert run.status == 1, run.explain()
    assert run.errors.keys() == {"chat login: LoginRefused('User Limit Reached')"}
    assert run.failed == {"login.failures > 0"}
    assert run.rows["login"].failures >= 2
    assert run.is_balanced


# The end


def test_ctrl_c_ends_a_run_in_order(server: ServerProcess, tmp_path: Path) -> None:
    expect_clean(run_until(tmp_path, {"deliver": ENOUGH}, *load(server.address, 8, rate=200)))


@pytest.mark.slow
def test_sigterm_ends_a_run_with_a_shape_in_order(server: ServerProcess, tmp_path: Path) -> None:
    files = (CHAT, ROOT / "locustfiles" / "shapes" / "steps.py")
    with start_locust(tmp_path, *load(server.address, 8, rate=200), files=files) as locust:
        locust.wait_for_users()
        time.sleep(1)
        locust.process.terminate()
        run = locust.end()
    expect_clean(run)


def test_nothing_measured_is_nothing_passed(server: ServerProcess, tmp_path: Path) -> None:
    run = run_locust(tmp_path, *load(server.address, 0, 1)[:4], *GENEROUS, "--run-time", "1s")
    assert run.status == 1, run.explain()
    assert run.failed == {"requests < 1"}


def test_all_options_can_be_seen(tmp_path: Path) -> None:
    run = run_locust(tmp_path, "--help-all")
    assert run.status == 0, run.explain()
    for option in ("--message-rate", "--fail-if", "--tls-ca", "--headless"):
        assert option in run.out


def test_a_server_that_does_not_answer_does_not_keep_ctrl_c_from_ending_the_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with start_locust(tmp_path, *load(address, 4)) as locust:
            locust.wait_for_users()
            time.sleep(0.5)
            locust.interrupt()
            run = locust.end()
    assert "Traceback" not in run.log
    assert run.ledger["sent"] == 0
