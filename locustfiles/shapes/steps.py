"""Users arrive in steps: `locust -f locustfiles/chat.py,locustfiles/shapes/steps.py --headless -u 20 -t 100s`"""

import math

from loadtest.locust.shapes import CurveShape

STEPS = 5


class Steps(CurveShape):
    """Five steps, so that the charts show what each of them does."""

    seconds = 100.0

    def share(self, elapsed: float) -> float:
        return math.ceil((elapsed or 1e-9) * STEPS) / STEPS
