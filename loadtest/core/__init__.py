"""What a load test of a message protocol needs besides its users: schedule, ledger, histogram, verdict, capacity.

Nothing in here depends on a protocol, or on what runs the users.
"""
