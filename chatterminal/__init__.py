"""What terminal.py is made of: login, incoming events, commands, names and ids, and the two ways to read lines."""
