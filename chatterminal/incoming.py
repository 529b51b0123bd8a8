"""Shows incoming events."""

from time import localtime, strftime

from chatterminal.chat import Chat, complain
from chatterminal.display import explain, notice, visible
from chatterminal.people import show_presence
from client import (
    CLOSING,
    ErrorReceived,
    Event,
    MessageReceived,
    PastMessage,
    PresenceChanged,
    ReceiptReceived,
)
from protocol import Level


def show(chat: Chat, event: Event) -> None:
    """Print an event, or keep it for the status mark."""
    match event:
        case MessageReceived(sender) if sender in chat.muted:
            chat.muted[sender] += 1
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


def show_crowd(chat: Chat) -> None:
    """Sum up who came and left while there were too many to tell of each."""
    notice(chat.crowd.summary())


def hint(chat: Chat, event: Event) -> None:
    """After the first message, show how to answer."""
    if chat.partner_id or chat.hinted:
        return
    if isinstance(event, MessageReceived) and event.sender not in chat.muted:
        chat.hinted = True
        notice(f"to answer: /chat {event.sender}")


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
