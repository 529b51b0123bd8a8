"""What the person sees: notices, what went wrong, and nothing from others that acts on the terminal."""

import os
import sys
import unicodedata

from protocol import Reason

HIDDEN = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"})
JOINERS = "\u200c\u200d"  # in Cf too, but words and emoji need them

MEANINGS: dict[str, str] = {
    Reason.USER_NOT_ONLINE: "your message was not delivered",
    Reason.NO_CHAT_STARTED: "your message was not delivered",
    Reason.MAILBOX_FULL: "your message was not delivered, as many wait there already as may",
    Reason.STORAGE_UNAVAILABLE: "the server cannot use its disk now",
    Reason.USER_ALREADY_ONLINE: "somebody is logged in with this name",
    Reason.USERNAME_TAKEN: "this name looks like one that somebody else has",
    Reason.USER_LIMIT_REACHED: "the server takes no new users",
    Reason.PASSWORD_REQUIRED: "give one with --password, --password-file or CHAT_PASSWORD",
    Reason.INVALID_PASSWORD: "it is too long",
    Reason.TOO_MANY_ATTEMPTS: "too many wrong passwords, or connections from your address; wait a minute",
}


def visible(text: str) -> str:
    """`text` from somebody else, with what would act on the terminal, or show nothing, as an escape like \\x1b."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in HIDDEN and character not in JOINERS
        else character
        for character in text
    )


def notice(text: str) -> None:
    print(f"* {visible(text)}")


def explain(reason: str) -> str:
    return f"{reason}: {MEANINGS[reason]}" if reason in MEANINGS else reason


def drop_output() -> None:
    """Whoever read it has gone; so that the interpreter does not fail on it again when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
