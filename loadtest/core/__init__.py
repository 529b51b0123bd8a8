"""What a load test of a message protocol needs besides its users: schedule, ledger, histogram, verdict, capacity.

Nothing in here knows a protocol, or what runs the users.
"""
