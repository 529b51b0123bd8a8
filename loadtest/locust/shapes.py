"""Shapes that change the number of users along a curve."""

from typing import Any, ClassVar

from locust import LoadTestShape

USERS = 20  # unless --users is given


class CurveShape(LoadTestShape):
    """A share of --users that changes over --run-time."""

    abstract = True
    use_common_options = True
    seconds: ClassVar[float]  # the length unless --run-time is given

    def share(self, elapsed: float) -> float:
        """Return the share of the users, from 0 to 1, after this share of the time, from 0 to 1."""
        raise NotImplementedError

    def tick(self) -> tuple[int, float] | None:
        """Called by Locust about once a second. Returns how many users there should be, and how many may start a
        second; None at the end.
        """
        runner: Any = self.runner
        options = runner.environment.parsed_options
        elapsed = self.get_run_time() / (options.run_time or self.seconds)
        users = options.num_users or USERS
        return (max(1, round(users * self.share(elapsed))), users) if elapsed < 1 else None
