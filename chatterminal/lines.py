"""Line by line, for scripts: reads standard input to its end and prints events to standard output."""

import threading
from contextlib import suppress

from chatterminal.chat import Chat, complain
from chatterminal.commands import handle
from chatterminal.display import drop_output
from chatterminal.incoming import show
from client import ConnectionClosed
from protocol import Feature
from streams import OutputLost

FEATURES = Feature.HISTORY | Feature.MAILBOX  # the others would print what a script did not ask for


def run_lines(chat: Chat, linger: float) -> int:
    """Handle the lines of standard input; returns the exit status."""
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
    """Handle each line, wait until the server has handled everything, then `linger` seconds more, and leave."""
    try:
        # A separate reader: holding sys.stdin's lock here would block the interpreter's exit.
        with suppress(EOFError), open(0, encoding="utf-8", errors="surrogateescape", closefd=False) as lines:
            for line in lines:
                handle(chat, line.removesuffix("\n"))
        with suppress(ConnectionClosed):  # receive() reports it
            chat.client.ping(chat.account.timeout)
            chat.leaving.wait(linger)
            chat.leaving.set()
    except OutputLost as error:
        chat.failed = True
        chat.leaving.set()
        drop_output(error)
    except TimeoutError:
        complain(chat, f"no answer within {chat.account.timeout:g} s: not everything may have been handled")
        chat.leaving.set()
    except OSError as error:
        complain(chat, f"the input cannot be read: {error.strerror}")
        chat.leaving.set()
    finally:
        chat.client.close()
