"""What terminal.py is made of: display, login, commands, and the two ways to read lines."""
