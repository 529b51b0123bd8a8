"""A long run: `locust -f locustfiles/chat.py,locustfiles/shapes/soak.py --headless -u 20 -t 8h`"""

from loadtest.locust.shapes import CurveShape

EDGE = 0.05  # the share of the time for coming, and for going


class Soak(CurveShape):
    """All users; they come and go slowly, so that a leak shows as a slope in between."""

    seconds = 3600.0

    def share(self, elapsed: float) -> float:
        return min(1.0, elapsed / EDGE, (1 - elapsed) / EDGE)
