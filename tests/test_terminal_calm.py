"""How a person keeps the screen calm: users are muted, arrivals and departures are summed up or not shown at all."""

from contextlib import ExitStack

import pytest

from chatterminal.crowd import ONE_BY_ONE, WINDOW_SECONDS, Crowd, names_of
from client import ChatClient
from testkit.programs import StartTerminal
from testkit.server import ServerProcess, StartServer

pytestmark = pytest.mark.measured


def test_a_muted_user_is_not_shown_and_what_was_missed_is_told(server: ServerProcess, terminal: StartTerminal) -> None:
    with ChatClient(server.host, server.port) as bob:
        bob.login("bob")
        alice = terminal("alice", server.address)
        alice.wait_for("^alice>$")
        alice.type("/mute bob\r")
        alice.wait_for(r"^\* bob is muted: .*/unmute bob")
        bob.chat("alice")
        for text in ("one", "two"):
            bob.send(text)
        bob.ping()
        alice.type("/mute\r")
        alice.wait_for(r"^\* muted: bob \(2 messages not shown\)$")
        alice.type("/unmute bob\r")
        alice.wait_for(r"^\* bob is not muted any more; 2 messages were not shown: /history bob$")
        bob.send("three")
        alice.wait_for("^bob: three$")
        alice.type("/unmute bob\r")
        alice.wait_for("^! bob is not muted$")
        alice.type("/mute nobody\r")
        alice.wait_for("^! nobody named nobody has been seen")
    assert "bob: one" not in alice.text
    assert "bob: two" not in alice.text


def test_quiet_shows_no_arrivals_and_departures(server: ServerProcess, terminal: StartTerminal) -> None:
    alice = terminal("alice", server.address)
    alice.wait_for("^alice>$")
    alice.type("/quiet\r")
    alice.wait_for(r"^\* who comes and leaves is not shown")
    server.visit("bob")
    alice.type("/list\r")
    alice.wait_for(r"^\* online: alice \(you\)$", times=2)
    alice.type("/quiet\r")
    alice.wait_for(r"^\* who comes and leaves is shown again$")
    server.visit("carol")
    alice.wait_for(r"^\* carol has left$")
    assert "bob is online" not in alice.text
    assert "bob has left" not in alice.text


def test_a_crowd_is_summed_up(start_server: StartServer, terminal: StartTerminal) -> None:
    server = start_server("--pool-size", 40)
    alice = terminal("alice", server.address)
    alice.wait_for("^alice>$")
    with ExitStack() as stack:
        for number in range(ONE_BY_ONE + 10):
            stack.enter_context(server.log_in(f"user{number:02}"))
        alice.wait_for(r"^\* user05, user06, user07 and 7 more came$")
    assert alice.text.count("is online") == ONE_BY_ONE


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def crowd(clock: Clock) -> Crowd:
    """A crowd of whom as many have been told as are told one by one."""
    crowd = Crowd(clock)
    for number in range(ONE_BY_ONE):
        assert crowd.admits(f"early{number}", True)
    return crowd


def test_few_are_told_at_once_again_after_a_quiet_while(crowd: Crowd, clock: Clock) -> None:
    assert crowd.seconds_left() is None
    clock.now += WINDOW_SECONDS
    assert crowd.admits("late", True)


def test_who_comes_and_leaves_untold_is_not_told_of_at_all(crowd: Crowd) -> None:
    assert not crowd.admits("passer-by", True)
    assert not crowd.admits("early0", False)
    assert not crowd.admits("passer-by", False)
    assert crowd.summary() == "early0 left"


def test_a_summary_is_due_when_the_window_ends_and_a_crowd_that_goes_on_gets_one_each_time(
    crowd: Crowd, clock: Clock
) -> None:
    clock.now += 4
    assert not crowd.admits("a", True)
    assert crowd.seconds_left() == WINDOW_SECONDS - 4
    clock.now += WINDOW_SECONDS
    assert crowd.seconds_left() == 0
    assert not crowd.admits("b", False)
    assert crowd.summary() == "a came; b left"
    assert crowd.seconds_left() is None
    assert not crowd.admits("c", True)
    assert crowd.seconds_left() == WINDOW_SECONDS


def test_a_summary_names_the_first_few() -> None:
    assert names_of(["a", "b", "c"]) == "a, b, c"
    assert names_of(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
