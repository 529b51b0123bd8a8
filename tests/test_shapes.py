"""The curves of the shapes in locustfiles/shapes/."""

import runpy
from collections.abc import Callable

import pytest

from testkit.processes import ROOT


def curve(shape: str) -> Callable[[float], float]:
    """share() of the shape in this file."""
    kind = runpy.run_path(str(ROOT / "locustfiles" / "shapes" / f"{shape.lower()}.py"))[shape]
    share: Callable[[float], float] = kind().share
    return share


@pytest.mark.parametrize(
    ("shape", "points"),
    [
        ("Steps", {0.0: 0.2, 0.1: 0.2, 0.3: 0.4, 0.5: 0.6, 0.7: 0.8, 0.9: 1.0, 0.999: 1.0}),
        ("Spike", {0.0: 0.2, 0.3: 0.2, 0.34: 1.0, 0.6: 1.0, 0.67: 0.2, 0.99: 0.2}),
        ("Soak", {0.0: 0.0, 0.025: 0.5, 0.05: 1.0, 0.5: 1.0, 0.95: 1.0, 0.975: 0.5}),
    ],
)
def test_each_shape_follows_its_curve(shape: str, points: dict[float, float]) -> None:
    share = curve(shape)
    assert {elapsed: pytest.approx(share(elapsed)) for elapsed in points} == points
