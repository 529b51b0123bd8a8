"""Starts servers, groups, Redis, browsers and load tests, and fakes what a test needs.

For tests/, stress/ and benchmarks/. It imports none of them.
"""
