"""What terminal.py is made of: what comes in, what a line does, who is who, and the two ways to read lines."""
