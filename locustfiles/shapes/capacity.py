"""How much does the server take? `locust -f locustfiles/chat.py,locustfiles/shapes/capacity.py --headless`"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # locust puts this folder on the path, not the project's

from loadtest.locust.capacity import CapacityShape


class Capacity(CapacityShape):
    """The highest rate, on this machine, at which p99 stays under --target-p99 and nothing is lost."""
