"""The databases: what storage.py is made of (interface, lines, files), and past chats in SQLite."""
