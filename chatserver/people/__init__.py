"""The rooms that decide which users may log in, and know which are online."""
