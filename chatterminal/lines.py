"""Line by line, for scripts: standard input is read to its end, what comes in goes to standard output."""

import threading
from contextlib import suppress

from chatterminal.chat import Chat, complain
from chatterminal.commands import handle
from chatterminal.display import drop_output
from chatterminal.incoming import show
from client import ConnectionClosed
from protocol import Feature

FEATURES = Feature.HISTORY | Feature.MAILBOX  # the others tell what no script has asked for


def run_lines(chat: Chat, linger: float) -> int:
    """Handle the lines of standard input; the exit status."""
    reader = threading.Thread(target=read_lines, args=(chat, linger), daemon=True)
    reader.start()
    try:
        while True:
            show(chat, chat.client.receive(timeout=None))
    except ConnectionClosed as closing:
        if chat.leaving.is_set():
            reader.join()
        else:
            complain(chat, str(closing))
    return int(chat.failed)


def read_lines(chat: Chat, linger: float) -> None:
    """Handle each line, wait until all has been handled and `linger` seconds more, and end the session."""
    try:
        # A reader of our own: sys.stdin's lock, held here, would be in the way when the interpreter exits.
        with suppress(EOFError), open(0, encoding="utf-8", errors="surrogateescape", closefd=False) as lines:
            for line in lines:
                handle(chat, line.removesuffix("\n"))
        with suppress(ConnectionClosed):  # receive() tells it
            chat.client.ping(timeout=None)
            chat.leaving.wait(linger)
            chat.leaving.set()
    except BrokenPipeError:
        chat.failed = True
        chat.leaving.set()
        drop_output()
    finally:
        chat.client.close()
