"""Connects the load tester to Locust, for users of any protocol: options, measuring in each process, and the verdict.

Importing this package is enough: it listens to Locust's events.
"""

from locust import events

from loadtest.locust import options, start
from loadtest.locust.paced import PacedUser
from loadtest.locust.users import LoadUser

__all__ = ["LoadUser", "PacedUser"]

events.init_command_line_parser.add_listener(options.add)
start.listen(events)
