"""Executes a line: a command, or a message to the partner."""

import sys
from collections.abc import Callable

from chatterminal.chat import Chat, complain
from chatterminal.crowd import Crowd
from chatterminal.display import notice
from chatterminal.incoming import past_line
from chatterminal.marks import Marks, Stage
from chatterminal.people import choose, find, not_found, past, show_online
from client import ChatClient, ChatError, ChatRefused, ConnectionClosed
from protocol import MAX_HISTORY, LocalProtocolError

SEND_SECONDS = 10.0  # a person waits for a partner who does not read
PAST_MESSAGES = 20


def list_online(chat: Chat, _: str) -> None:
    chat.client.refresh()
    show_online(chat, chat.client)


def show_past(chat: Chat, argument: str) -> None:
    """Arguments are `[N] [NAME|id:N]`; a single number is how many."""
    words = argument.split()
    count = int(words.pop(0)[:11]) if words and words[0].isdecimal() else PAST_MESSAGES
    who = words.pop(0) if words else ""
    if words or not 1 <= count <= MAX_HISTORY:
        complain(chat, f"usage: /history [N] [NAME|id:N], for the last N messages, at most {MAX_HISTORY}")
        return
    if not who and not chat.partner_id:
        complain(chat, "with whom? /history NAME, /history id:N, or choose a partner with /chat first")
        return
    try:
        messages = past(chat, find(chat, who) if who else chat.partner_id, count)
    except ChatRefused as refusal:
        complain(chat, not_found(refusal, who or chat.partner))
        return
    if messages:
        print("\n".join(map(past_line, messages)))
    else:
        notice("there are no messages yet")


def mute(chat: Chat, name: str) -> None:
    """Show nothing of this user any more; without a name, list who is muted."""
    if not name:
        muted = (f"{each} ({count} messages not shown)" for each, count in chat.muted.items())
        notice(f"muted: {', '.join(muted) or 'nobody'}")
    elif name not in chat.ids and name not in chat.client.online:
        complain(chat, f"nobody named {name} has been seen; /list shows who is online")
    else:
        chat.muted.setdefault(name, 0)
        notice(f"{name} is muted: what {name} writes is not shown; /unmute {name} ends that")


def unmute(chat: Chat, name: str) -> None:
    if name not in chat.muted:
        complain(chat, f"{name} is not muted" if name else "usage: /unmute NAME")
        return
    missed = chat.muted.pop(name)
    notice(f"{name} is not muted any more" + (f"; {missed} messages were not shown: /history {name}" if missed else ""))


def hush(chat: Chat, _: str) -> None:
    chat.is_quiet = not chat.is_quiet
    chat.crowd = Crowd()
    notice("who comes and leaves is " + ("not shown; /quiet shows it again" if chat.is_quiet else "shown again"))


def show_help(chat: Chat, _: str) -> None:
    print(command_lines("* "))
    if chat.interactive:
        notice("status of your messages, at the right edge of the line you type on (a number counts several):")
        print(mark_lines("*   "))


def leave(_: Chat, __: str) -> None:
    raise EOFError


COMMANDS: dict[str, tuple[Callable[[Chat, str], None], str, str]] = {
    "/list": (list_online, "/list", "show who is online, with ids"),
    "/chat": (choose, "/chat NAME|id:N", "choose your partner, online or offline, by name or id"),
    "/history": (show_past, "/history [N] [NAME|id:N]", f"show the last {PAST_MESSAGES}, or N, messages"),
    "/mute": (mute, "/mute [NAME]", "show nothing of a user any more, or list who is muted"),
    "/unmute": (unmute, "/unmute NAME", "show the user again"),
    "/quiet": (hush, "/quiet", "show no arrivals and departures, or show them again"),
    "/help": (show_help, "/help", "show this list"),
    "/quit": (leave, "/quit", "quit"),
}


def command_lines(indent: str) -> str:
    return "\n".join(f"{indent}{usage:24} {meaning}" for _, usage, meaning in COMMANDS.values())


def mark_lines(indent: str) -> str:
    """The marks at the right edge of the input line, and their meanings."""
    marks = [(stage.describe(1, sys.stdout.encoding), stage.meaning) for stage in Stage if stage.meaning]
    return "\n".join(f"{indent}{mark:22} {meaning}" for mark, meaning in marks)


def say(chat: Chat, text: str) -> None:
    """Send a message to the partner."""
    client, partner_id = chat.client, chat.partner_id
    if not partner_id:
        complain(chat, "not sent: choose a partner first, with /chat NAME; /list shows who is online")
        return
    if client.partner_id != partner_id:  # not restored yet after reconnecting
        client.chat(partner_id)
    if chat.interactive:
        send_marked(client, chat.marks, text)
    else:
        client.send(text, chat.account.timeout)


def send_marked(client: ChatClient, marks: Marks, text: str) -> None:
    """Send it and track its receipts, which may arrive before its numbers are known."""
    first, numbers = client.sent + 1, range(0)
    try:
        marks.begin()
        numbers = client.send(text, SEND_SECONDS)
    except (TimeoutError, KeyboardInterrupt):
        numbers = range(first, client.sent + 1)
        raise
    finally:
        marks.end(client.partner_id, numbers)


def handle(chat: Chat, line: str) -> None:
    """Execute a line. Raises EOFError for /quit."""
    command, _, argument = line.partition(" ")
    undone = "not done" if command in COMMANDS else "not sent"
    try:
        if command in COMMANDS:
            COMMANDS[command][0](chat, argument.strip())
        elif line.startswith("/") and not line.startswith("//"):
            complain(chat, f"unknown command {command}: /help lists them; begin a message like this with //")
        elif line.strip():
            say(chat, line.removeprefix("/"))
    except ConnectionClosed as closing:
        complain(chat, f"{undone}: {closing}")
    except ChatRefused as refusal:
        complain(chat, f"{undone}: {refusal.reason}: {chat.partner}")
    except TimeoutError:
        complain(chat, f"{undone}, or only in part: {chat.client.address} did not accept it in time")
    except (ChatError, LocalProtocolError) as error:
        complain(chat, f"{undone}: {error}")
