"""At a terminal that only prints, or for a screen reader: whole lines in, whole lines out, nothing is drawn again."""

import threading
from collections.abc import Callable
from contextlib import suppress

from chatterminal.chat import Chat, complain
from chatterminal.reconnecting import listen, say_goodbye, take_line


def run_plain(chat: Chat) -> int:
    """Handle the typed lines; returns the exit status."""
    over = threading.Event()
    for work in (read_lines, listen):
        threading.Thread(target=do, args=(work, chat, over), daemon=True).start()
    over.wait()
    if chat.lost:
        complain(chat, chat.lost)
    return int(bool(chat.lost))


def do(work: Callable[[Chat], None], chat: Chat, over: threading.Event) -> None:
    try:
        work(chat)
    finally:
        over.set()


def read_lines(chat: Chat) -> None:
    """Execute each line, and leave at the end."""
    # A separate reader: holding sys.stdin's lock here would block the interpreter's exit.
    with suppress(EOFError), open(0, encoding="utf-8", errors="surrogateescape", closefd=False) as lines:
        for line in lines:
            take_line(chat, line.removesuffix("\n"))
    say_goodbye(chat)
