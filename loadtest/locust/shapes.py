"""Shapes that follow a curve over --run-time."""

from typing import Any, ClassVar

from locust import LoadTestShape

USERS = 20  # where --users does not say


class CurveShape(LoadTestShape):
    """A share of --users that changes over --run-time."""

    abstract = True
    use_common_options = True
    seconds: ClassVar[float]  # where --run-time does not say

    def share(self, elapsed: float) -> float:
        """The share of the users, up to 1, when this share of the time is over."""
        raise NotImplementedError

    def tick(self) -> tuple[int, float] | None:
        """Called about once a second: how many users, and how many may come in a second; None at the end."""
        runner: Any = self.runner
        options = runner.environment.parsed_options
        elapsed = self.get_run_time() / (options.run_time or self.seconds)
        users = options.num_users or USERS
        return (max(1, round(users * self.share(elapsed))), users) if elapsed < 1 else None
