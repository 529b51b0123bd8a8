"""What the person sees: notices and errors; text from others never acts on the terminal."""

import errno
import os
import sys
import unicodedata
from contextlib import suppress
from itertools import pairwise

from protocol import SHOWS_NOTHING, Reason
from streams import OutputLost

HIDDEN = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"})
JOINERS = "\u200c\u200d"  # in Cf too, but words and emoji need them
EMOJI_STYLES = "\ufe0e\ufe0f"  # which say how the symbol, or the key, before them looks
KEYS = "#*0123456789"

MEANINGS: dict[str, str] = {
    Reason.USER_NOT_ONLINE: "your message was not delivered",
    Reason.NO_CHAT_STARTED: "your message was not delivered",
    Reason.MAILBOX_FULL: "your message was not delivered; this user's mailbox is full",
    Reason.STORAGE_UNAVAILABLE: "the server cannot use its database now",
    Reason.USER_ALREADY_ONLINE: "somebody is logged in with this name",
    Reason.INVALID_USERNAME: "the server does not accept this name",
    Reason.USERNAME_TAKEN: "this name looks like another user's name",
    Reason.USER_LIMIT_REACHED: "the server accepts no new users",
    Reason.PASSWORD_REQUIRED: "give one with --password, --password-file or CHAT_PASSWORD",
    Reason.INVALID_PASSWORD: "it is too long",
    Reason.PLACE_NEEDED: "you were silent, and others wait for a place",
    Reason.TOO_MANY_ATTEMPTS: "too many wrong passwords, or connections from your address; wait a minute",
}


def visible(text: str) -> str:
    """`text` from others; characters that would act on the terminal, or be invisible, become escapes like \\x1b."""
    return "".join(
        character.encode("unicode_escape").decode() if _is_hidden(character, before) else character
        for before, character in pairwise(" " + text)
    )


def _is_hidden(character: str, before: str) -> bool:
    if character in SHOWS_NOTHING:
        return not (character in EMOJI_STYLES and (before in KEYS or unicodedata.category(before).startswith("S")))
    return unicodedata.category(character) in HIDDEN and character not in JOINERS


def notice(text: str) -> None:
    print(f"* {visible(text)}")


def explain(reason: str) -> str:
    return f"{reason}: {MEANINGS[reason]}" if reason in MEANINGS else reason


def drop_output(error: OutputLost) -> None:
    """Output cannot be written: discard what is left, or the interpreter fails on it again when it exits.

    Says so, unless the reader has gone, as `head` goes once it has seen enough.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno != errno.EPIPE:
        with suppress(OSError):
            print(f"! the output cannot be written: {error.strerror}", file=sys.stderr)
