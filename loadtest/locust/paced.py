"""Users who send at a given rate, whatever the server does."""

from time import monotonic

from loadtest.core.schedule import Schedule
from loadtest.locust.run import Pace
from loadtest.locust.users import LoadUser
from loadtest.locust.wakeup import Wakeup

PACE_CHECK_SECONDS = 0.5  # how soon a user notices a new pace


class PacedUser(LoadUser):
    """A user whose task sends a message whenever take_due() returns a moment, at the pace of the run."""

    abstract = True
    _pace: Pace | None = None
    _schedule: Schedule

    def on_start(self) -> None:
        self._wakeup = Wakeup()
        self.this_run.paced.add(self)
        super().on_start()

    def on_stop(self) -> None:
        try:
            super().on_stop()
        finally:
            self.this_run.paced.discard(self)
            self._wakeup.close()

    def wait_time(self) -> float:
        """Wait until the next message is due, or the pace may have changed. Locust's own wait would wake up late."""
        self._wakeup.wait_until(min(self._current_schedule().due, monotonic() + PACE_CHECK_SECONDS))
        return 0.0

    def take_due(self) -> float | None:
        """Return when the next unsent message was due, a moment of monotonic(); None if none is due."""
        schedule = self._current_schedule()
        return schedule.take() if schedule.is_due(monotonic()) else None

    def is_behind(self) -> bool:
        """Whether messages are due that have not been sent."""
        return self._current_schedule().is_due(monotonic())

    def _current_schedule(self) -> Schedule:
        if self._pace is not self.this_run.pace:
            is_new = self._pace is None
            self._pace = self.this_run.pace
            # only a new user may start later; one that was held up has to catch up
            start = max(self._pace.start, monotonic()) if is_new else self._pace.start
            self._schedule = Schedule(self._pace.rate, start, self._pace.end)
        return self._schedule
