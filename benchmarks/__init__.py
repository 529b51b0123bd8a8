"""Compares our server with its peers, and measures the capacity of the load tester itself."""
