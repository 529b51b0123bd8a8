"""Shows incoming events."""

from contextlib import suppress
from time import localtime, monotonic, strftime

from chatterminal.chat import Chat, complain
from chatterminal.display import explain, notice, visible
from chatterminal.people import show_presence
from client import (
    CLOSING,
    ChatClient,
    ConnectionClosed,
    ErrorReceived,
    Event,
    MessageReceived,
    PastMessage,
    PresenceChanged,
    ReceiptReceived,
)
from protocol import Level

GREETING_SECONDS = 1.0  # to read what arrived with the mailbox, however fast others write


def show(chat: Chat, event: Event) -> None:
    """Print an event, or keep it for the status mark."""
    match event:
        case MessageReceived(sender, text):
            print(f"{visible(sender)}: {visible(text)}")
        case ErrorReceived(reason) if reason not in CLOSING:  # those are named where the connection ends
            chat.marks.refuse(reason)
            complain(chat, explain(reason))
        case PresenceChanged():
            show_presence(chat, event)
        case ReceiptReceived():
            chat.has_mailboxes |= event.level == Level.STORED
            chat.marks.reach(event)


def hint(chat: Chat, event: Event) -> None:
    """After the first message, show how to answer."""
    if isinstance(event, MessageReceived) and not chat.partner_id and not chat.hinted:
        chat.hinted = True
        notice(f"to answer: /chat {event.sender}")


def read_mailbox(client: ChatClient) -> list[Event]:
    """The messages from our mailbox: they follow the list, before the server handles anything else (section 7.4)."""
    with suppress(ConnectionClosed):  # receive() reports it
        client.ping(timeout=None)
    events: list[Event] = []
    deadline = monotonic() + GREETING_SECONDS
    with suppress(ConnectionClosed, TimeoutError):
        while monotonic() < deadline:
            events.append(client.receive(timeout=0))
    return events


def greet(chat: Chat, events: list[Event]) -> None:
    """Show the messages that arrived while the person was offline."""
    count = sum(isinstance(event, MessageReceived) for event in events)
    if count:
        notice(f"while you were offline: {count} message{'s' * (count > 1)}; /history NAME shows when")
    for event in events:
        show(chat, event)
    for event in reversed(events):
        hint(chat, event)


def past_line(message: PastMessage) -> str:
    """A past message as a line: local time, sender, text."""
    when = strftime("%Y-%m-%d %H:%M", localtime(message.time))
    return f"{when} {visible(message.sender)}: {visible(message.text)}"
