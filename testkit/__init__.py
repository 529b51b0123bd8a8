"""Starts servers, groups, Redis, browsers and load tests, and fakes what a test needs.

tests/, stress/ and benchmarks/ use it. It imports none of them, and raises HarnessError instead of asserting.
"""


class HarnessError(Exception):
    """What the harness waited for did not happen, or a process misbehaved; the text says which."""


class Missing(HarnessError):
    """This machine lacks a program; the text says how to get it. In tests/ it skips the test."""
