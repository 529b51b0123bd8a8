"""What the web page may set: anything."""

from argparse import Namespace

import pytest

from loadtest.locust.options import DEFAULTS, check


def options(**changed: object) -> Namespace:
    return Namespace(**(DEFAULTS | changed))


def test_the_defaults_are_right() -> None:
    assert check(options(), most_bytes=125) == ""


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"message_rate": -1.0}, "--message-rate: -1 is not between 0 and 10000"),
        ({"message_rate": float("nan")}, "--message-rate: nan is not between 0 and 10000"),
        ({"message_size": 39}, "--message-size: 39 is not between 40 and 125"),
        ({"message_size": 126}, "--message-size: 126 is not between 40 and 125"),
        ({"pairing": "star"}, "--pairing: 'star' is not one of pairs, ring"),
    ],
)
def test_invalid_options_are_reported_once(changed: dict[str, object], told: str) -> None:
    wrong = options(**changed)
    assert check(wrong, most_bytes=125) == told
    assert vars(wrong) == DEFAULTS
