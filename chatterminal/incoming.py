"""What comes in, as it is shown."""

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

GREETING_SECONDS = 1.0  # for what has come by the end of the mailbox, however fast others write


def show(chat: Chat, event: Event) -> None:
    """Print what came in, or keep it for the mark."""
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
    """Tell how to answer the first message."""
    if isinstance(event, MessageReceived) and not chat.partner_id and not chat.hinted:
        chat.hinted = True
        notice(f"to answer: /chat {event.sender}")


def read_mailbox(client: ChatClient) -> list[Event]:
    """What waited for us: it follows the list, and the server handles nothing else before (section 7.4)."""
    with suppress(ConnectionClosed):  # receive() tells it
        client.ping(timeout=None)
    events: list[Event] = []
    deadline = monotonic() + GREETING_SECONDS
    with suppress(ConnectionClosed, TimeoutError):
        while monotonic() < deadline:
            events.append(client.receive(timeout=0))
    return events


def greet(chat: Chat, events: list[Event]) -> None:
    """Show what has come while the person was away."""
    count = sum(isinstance(event, MessageReceived) for event in events)
    if count:
        notice(f"while you were away: {count} message{'s' * (count > 1)}; /history NAME tells when")
    for event in events:
        show(chat, event)
    for event in reversed(events):
        hint(chat, event)


def past_line(message: PastMessage) -> str:
    """When, who, what; in local time."""
    when = strftime("%Y-%m-%d %H:%M", localtime(message.time))
    return f"{when} {visible(message.sender)}: {visible(message.text)}"
