"""Partners, while users join and leave."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.core.pairing import PAIRINGS, Pairing

USERS = st.lists(st.integers(0, 50), min_size=1, unique=True)


def pairing_of(kind: str, *users: int) -> Pairing:
    pairing = Pairing(kind)
    for user in users:
        pairing.add(user)
    return pairing


def test_pairs_write_to_each_other_and_a_user_without_a_partner_to_itself() -> None:
    pairing = pairing_of("pairs", 3, 0, 2, 1, 4)
    assert [pairing.partner(user) for user in range(5)] == [1, 0, 3, 2, 4]


def test_in_a_ring_each_user_writes_to_the_next_present_one_and_the_last_to_the_first() -> None:
    pairing = pairing_of("ring", 7, 1, 4)
    assert [pairing.partner(user) for user in (1, 4, 7)] == [4, 7, 1]
    assert pairing_of("ring", 3).partner(3) == 3


@given(USERS)
def test_pairs_are_mutual(users: list[int]) -> None:
    pairing = pairing_of("pairs", *users)
    assert all(pairing.partner(pairing.partner(user)) == user for user in users)


@given(USERS)
def test_a_ring_includes_all_present_users(users: list[int]) -> None:
    pairing = pairing_of("ring", *users)
    user, seen = users[0], set()
    for _ in users:
        seen.add(user)
        user = pairing.partner(user)
    assert (user, seen) == (users[0], set(users))


@pytest.mark.parametrize("kind", PAIRINGS)
def test_an_absent_user_is_nobodys_partner_except_its_own(kind: str) -> None:
    pairing = pairing_of(kind, 0, 1, 2, 3)
    pairing.remove(1)
    assert pairing.present == [0, 2, 3]
    assert 1 not in [pairing.partner(user) for user in pairing.present]
    assert Pairing(kind).partner(5) == 5


def test_the_version_changes_whenever_a_user_joins_or_leaves() -> None:
    pairing = Pairing("pairs")
    versions = [pairing.version]
    for change, user in ((pairing.add, 1), (pairing.add, 2), (pairing.remove, 1)):
        change(user)
        versions.append(pairing.version)
    assert len(set(versions)) == 4
    pairing.remove(1)
    assert pairing.version == versions[-1], "going twice changes nothing"
