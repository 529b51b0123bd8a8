"""A spike: `locust -f locustfiles/chat.py,locustfiles/shapes/spike.py --headless -u 20 -t 60s`"""

from loadtest.locust.shapes import CurveShape

CALM = 0.2  # the share before and after


class Spike(CurveShape):
    """A few users; in the middle third all of them at once; a few again."""

    seconds = 60.0

    def share(self, elapsed: float) -> float:
        return 1.0 if 1 / 3 <= elapsed < 2 / 3 else CALM
