"""Who may log in, and who is online."""
