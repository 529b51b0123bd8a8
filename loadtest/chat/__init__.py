"""Locust users of the chat server, for locustfiles/chat.py: Locust imports every file that lies beside it."""
