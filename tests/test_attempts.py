"""How many wrong passwords are looked at: greenlets that each check one, as logins do, without a server."""

from collections import Counter
from collections.abc import Callable

import gevent
import pytest
from gevent import Greenlet
from hypothesis import given
from hypothesis import strategies as st

from chatserver.people import attempts as module
from chatserver.people.attempts import Attempts, TooManyAttempts
from testkit.processes import DEADLINE, wait_for


def check(attempts: Attempts, right: bool, *keys: object, seconds: float = 0.0) -> str:
    """Check a password that is right or not, which takes so long; what comes of it."""
    try:
        with attempts.attempt(*keys) as count_wrong:
            gevent.sleep(seconds)
            if not right:
                count_wrong()
    except TooManyAttempts:
        return "refused"
    return "right" if right else "wrong"


def at_once(*checks: "Greenlet[..., str]") -> list[str]:
    gevent.joinall(checks, timeout=DEADLINE)
    assert all(greenlet.successful() for greenlet in checks)
    return [greenlet.value or "" for greenlet in checks]


def kept(attempts: Attempts) -> int:
    """How many keys something is kept of."""
    return len(attempts._wrong.counts) + len(attempts._checking)


def test_guesses_at_once_do_not_get_past_the_limit() -> None:
    attempts = Attempts(5)
    guesses = [gevent.spawn(check, attempts, False, "alice", f"address {number % 7}") for number in range(50)]
    assert Counter(at_once(*guesses)) == {"wrong": 5, "refused": 45}
    assert check(attempts, True, "alice", "another address") == "refused"


def test_a_hundred_simultaneous_right_passwords_all_succeed() -> None:
    attempts = Attempts(5)
    logins = [gevent.spawn(check, attempts, True, number, "one address") for number in range(100)]
    assert Counter(at_once(*logins)) == {"right": 100}
    assert kept(attempts) == 0


def test_what_others_guess_does_not_lock_out_an_address_from_which_the_right_password_has_come() -> None:
    attempts = Attempts(3)
    assert check(attempts, True, "alice", "home") == "right"
    for _ in range(5):
        check(attempts, False, "alice", "elsewhere")
    assert check(attempts, True, "alice", "elsewhere") == "refused"
    assert check(attempts, True, "alice", "home") == "right"
    guesses = [check(attempts, False, "alice", "home") for _ in range(5)]
    assert guesses == ["wrong"] * 3 + ["refused"] * 2, "the address is known, and what comes from it may be a guess"


def test_only_the_latest_known_addresses_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KNOWN", 2)
    attempts = Attempts(1)
    for address in ("one", "two", "one", "three"):
        check(attempts, True, "alice", address)
    check(attempts, False, "alice", "elsewhere")
    shown = {address: check(attempts, True, "alice", address) for address in ("one", "two", "three")}
    assert shown == {"one": "right", "two": "refused", "three": "right"}


def test_a_right_password_waits_for_earlier_guesses_and_succeeds_below_the_limit() -> None:
    attempts = Attempts(3)
    slow = [gevent.spawn(check, attempts, right, "alice", "address", seconds=0.01) for right in (False, True, False)]
    right = gevent.spawn(check, attempts, True, "alice", "address")
    assert at_once(*slow, right) == ["wrong", "right", "wrong", "right"]


def test_a_waiting_password_is_refused_once_the_limit_is_reached() -> None:
    attempts = Attempts(2)
    slow = [gevent.spawn(check, attempts, False, "alice", "address", seconds=0.01) for _ in range(2)]
    late = gevent.spawn(check, attempts, True, "alice", "address")
    assert at_once(*slow, late) == ["wrong", "wrong", "refused"]


def test_accounts_and_addresses_each_have_a_limit_of_their_own() -> None:
    attempts = Attempts(2)
    for name in ("alice", "bob"):
        assert check(attempts, False, name, "address") == "wrong"
    assert check(attempts, True, "carol", "address") == "refused"
    assert check(attempts, True, "alice", "elsewhere") == "right"
    assert check(attempts, False, "alice", "another") == "wrong"
    assert check(attempts, True, "alice", "anywhere") == "refused"
    assert check(attempts, True, "carol", "anywhere") == "right"


def test_after_the_window_passwords_are_checked_again_and_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_SECONDS", 0.2)
    attempts = Attempts(1)
    assert check(attempts, False, "alice", "address") == "wrong"
    assert check(attempts, True, "alice", "elsewhere") == "refused"
    wait_for("the end of the window", lambda: check(attempts, True, "alice", "elsewhere") == "right")
    assert kept(attempts) == 0


def test_a_refusal_does_not_extend_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_SECONDS", 0.2)
    attempts = Attempts(1)
    check(attempts, False, "alice", "address")
    wait_for("the end of the window", lambda: check(attempts, False, "alice", "address") == "wrong")


def test_without_a_limit_every_password_is_checked() -> None:
    attempts = Attempts(float("inf"))
    assert {check(attempts, False, "alice", "address") for _ in range(100)} == {"wrong"}


def test_a_check_that_fails_counts_nothing_and_makes_room_for_the_next() -> None:
    attempts = Attempts(1)
    with pytest.raises(ZeroDivisionError), attempts.attempt("alice", "address"):
        raise ZeroDivisionError
    assert kept(attempts) == 0
    assert check(attempts, True, "alice", "address") == "right"


def test_an_attempt_killed_while_it_waits_or_checks_leaves_nothing_behind() -> None:
    attempts = Attempts(1)
    checks = [gevent.spawn(check, attempts, True, "alice", "address", seconds=DEADLINE) for _ in range(3)]
    gevent.sleep(0)
    gevent.killall(checks, timeout=DEADLINE)
    assert kept(attempts) == 0


class NoTime(Exception):
    """A check that fails."""


def fail(_: Callable[[], None]) -> None:
    raise NoTime


ENDS: dict[str, Callable[[Callable[[], None]], None]] = {
    "right": lambda _: None,
    "wrong": lambda count_wrong: count_wrong(),
    "broken": fail,
}

TRY = st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.sampled_from([*ENDS]))


@given(st.integers(1, 4), st.lists(st.tuples(TRY, st.integers(0, 3)), max_size=30))
def test_any_simultaneous_attempts_finish_within_the_limits(
    limit: int, tries: list[tuple[tuple[str, str, str], int]]
) -> None:
    attempts = Attempts(limit)

    def turn(account: str, address: str, kind: str, turns: int) -> str:
        try:
            with attempts.attempt(account, address) as count_wrong:
                for _ in range(turns):
                    gevent.sleep(0)
                ENDS[kind](count_wrong)
        except TooManyAttempts:
            return "refused"
        except NoTime:
            return "broken"
        return kind

    outcomes = at_once(*(gevent.spawn(turn, *attempt, turns) for attempt, turns in tries))
    wrong = attempts._wrong.counts
    assert all(count <= limit for count in wrong.values())
    for ((account, address, kind), _), outcome in zip(tries, outcomes, strict=True):
        assert outcome in (kind, "refused")
        assert outcome != "refused" or limit in (wrong[account], wrong[address], wrong[(account, address)])
    accounts = set("abc")  # each wrong password counts for an address as well, or for a pair with a known one alone
    assert sum(count for key, count in wrong.items() if key not in accounts) == outcomes.count("wrong")
    assert not attempts._checking
