"""Who may come in, and who is online."""
