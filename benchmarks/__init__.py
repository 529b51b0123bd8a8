"""Our server beside its peers, and what the load tester itself can do."""
