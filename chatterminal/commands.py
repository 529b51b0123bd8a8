"""What a line does: a command, or a message to the partner; and how what comes in is shown."""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from chatterminal.display import explain, notice, visible
from chatterminal.login import Account
from client import CLOSING, ChatClient, ChatError, ChatRefused, ConnectionClosed, ErrorReceived, Event, MessageReceived
from protocol import LocalProtocolError

SEND_SECONDS = 10.0  # a person waits for a partner who does not read


@dataclass
class Chat:
    """A person's session: it outlives the connections it needs."""

    account: Account
    interactive: bool  # at a terminal, not line by line
    client: ChatClient
    partner: str = ""  # by name; "" until one is chosen
    failed: bool = False  # something could not be done
    lost: str = ""  # why the server will not have us back
    hinted: bool = False  # how to answer has been told
    leaving: threading.Event = field(default_factory=threading.Event)


def complain(chat: Chat, text: str) -> None:
    chat.failed = True
    print(f"! {visible(text)}", file=sys.stderr)


def show(chat: Chat, event: Event) -> None:
    """Print what came in."""
    match event:
        case MessageReceived(sender, text):
            print(f"{visible(sender)}: {visible(text)}")
            if chat.interactive and not chat.partner and not chat.hinted:
                chat.hinted = True
                notice(f"to answer: /chat {sender}")
        case ErrorReceived(reason) if reason not in CLOSING:  # those are named where the connection ends
            complain(chat, explain(reason))


def show_online(client: ChatClient) -> None:
    users = (f"{name} ({'you' if name == client.username else number})" for name, number in client.online.items())
    notice(f"online: {', '.join(users)}")


def list_online(chat: Chat, _: str) -> None:
    chat.client.refresh()
    show_online(chat.client)


def choose(chat: Chat, partner: str) -> None:
    client = chat.client
    is_id = partner.isdecimal() and partner not in client.online
    if not partner:
        complain(chat, "who? /chat NAME or /chat ID")
        return
    if not chat.interactive:  # a script that does not look at the answer must not write to the partner before
        chat.partner = ""
    try:
        user_id = client.chat(int(partner) if is_id else partner)
    except ChatRefused as refusal:
        complain(chat, f"{refusal.reason}: {partner}")
        return
    if user_id not in client.online.values():
        client.refresh()
    names = {number: name for name, number in client.online.items()}
    chat.partner = names.get(user_id, f"id {user_id}")
    notice(f"you write to {chat.partner} now")


def show_help(_: Chat, __: str) -> None:
    print(command_lines("* "))


def leave(_: Chat, __: str) -> None:
    raise EOFError


COMMANDS: dict[str, tuple[Callable[[Chat, str], None], str, str]] = {
    "/list": (list_online, "/list", "who is online, with ids"),
    "/chat": (choose, "/chat NAME|ID", "choose who gets your messages"),
    "/help": (show_help, "/help", "this list"),
    "/quit": (leave, "/quit", "quit"),
}


def command_lines(indent: str) -> str:
    return "\n".join(f"{indent}{usage:15} {meaning}" for _, usage, meaning in COMMANDS.values())


def say(chat: Chat, text: str) -> None:
    if not chat.partner:
        complain(chat, "not sent: choose a partner first, with /chat NAME; /list tells who is online")
        return
    if not chat.client.partner_id:  # not restored yet after reconnecting
        chat.client.chat(chat.partner)
    chat.client.send(text, SEND_SECONDS if chat.interactive else None)


def handle(chat: Chat, line: str) -> None:
    """Do what a line says. Raises EOFError for /quit."""
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
        complain(chat, f"{undone}, or in part: {chat.client.address} did not take it in time")
    except (ChatError, LocalProtocolError) as error:
        complain(chat, f"{undone}: {error}")
