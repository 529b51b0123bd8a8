"""Joins `loadtest` to Locust, for the users of any protocol: options, what a process measures, and the verdict.

To import it is to have it: it listens to Locust's events.
"""

from locust import events

from loadtest.locust import options
from loadtest.locust import process as node
from loadtest.locust.users import LoadUser, PacedUser

__all__ = ["LoadUser", "PacedUser"]

events.init_command_line_parser.add_listener(options.add)
node.listen(events)
