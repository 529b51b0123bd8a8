"""How much does the server take? `locust -f locustfiles/chat.py,locustfiles/shapes/capacity.py --headless`"""

from loadtest.locust.capacity import CapacityShape


class Capacity(CapacityShape):
    """The highest rate, on this machine, at which p99 stays under --target-p99 and nothing is lost."""
