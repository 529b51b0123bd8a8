"""A person's chat over all connections: shows events, and reconnects when the server goes away."""

from collections.abc import Callable
from contextlib import suppress

from chatterminal.chat import Chat, complain
from chatterminal.commands import handle
from chatterminal.crowd import Crowd
from chatterminal.display import explain, notice
from chatterminal.incoming import greet, hint, show, show_crowd
from chatterminal.login import log_in, read_mailbox
from chatterminal.marks import Marks
from chatterminal.people import restore_partner, show_online
from client import ChatClient, ChatError, ConnectionClosed, ConnectionFailed, LoginRefused, backoff
from protocol import ALL_FEATURES, Feature, Reason

FEATURES = ALL_FEATURES & ~Feature.BRIEF  # who is online is shown first
FAREWELL_SECONDS = 2.0
RECONNECT_SECONDS = 5.0  # at most between two attempts: a person is waiting
RELOGIN_TRIES = 30  # over a minute: the server may not have noticed yet that our old connection is gone
TEMPORARY = frozenset({Reason.USER_ALREADY_ONLINE, Reason.STORAGE_UNAVAILABLE})


def listen(chat: Chat, redraw: Callable[[], None] = lambda: None) -> None:
    """Show events until the person leaves, or no further connection is possible. `redraw` is called after each."""
    while not chat.lost:
        try:
            event = chat.client.receive(timeout=chat.crowd.seconds_left())
        except TimeoutError:
            show_crowd(chat)
        except ConnectionClosed as closing:
            chat.client.close()
            if chat.leaving.is_set():
                return
            notice(f"{closing}; reconnecting")
            warn_of_loss(chat)
            reconnect(chat)
        else:
            show(chat, event)
            hint(chat, event)
        redraw()


def take_line(chat: Chat, line: str) -> None:
    """Execute a line that the person has typed. Raises EOFError to quit."""
    if chat.is_new:
        chat.is_new = not is_confirmed(line)
    else:
        handle(chat, line)


def say_goodbye(chat: Chat) -> None:
    """The person leaves: the last message arrives first."""
    chat.leaving.set()
    with suppress(ChatError, TimeoutError):
        chat.client.ping(FAREWELL_SECONDS)
    chat.client.close()


def warn_of_loss(chat: Chat) -> None:
    """After the end of a connection, warn of messages that were never confirmed."""
    if count := chat.marks.unconfirmed:
        messages = "message" if count == 1 else f"{count} messages"
        complain(chat, f"your last {messages} may be lost; /history shows what has arrived")


def reconnect(chat: Chat) -> None:
    """Log in again, however long it takes, unless the person leaves; sets `lost` if the server refuses for good."""
    refusals = 0
    for delay in backoff(cap=RECONNECT_SECONDS):
        if chat.leaving.wait(delay):
            return
        try:
            client = log_in(chat.account, ask=False)
        except (ConnectionFailed, ConnectionClosed, TimeoutError):
            continue
        except LoginRefused as refusal:
            refusals += 1
            if refusal.reason in TEMPORARY and refusals < RELOGIN_TRIES:
                continue
            chat.lost = f"cannot log in again: {explain(refusal.reason)}"
            return
        resume(chat, client)
        return


def resume(chat: Chat, client: ChatClient) -> None:
    """Continue with a new connection."""
    waited, partner_state = read_mailbox(client), ""
    chat.marks, chat.crowd, chat.has_mailboxes = Marks(), Crowd(), False
    chat.is_new |= client.user_id != chat.client.user_id
    with suppress(ConnectionClosed, TimeoutError):  # the next message chooses the partner again
        partner_state = restore_partner(chat, client)
    chat.client = client  # only now: a line typed meanwhile must have a partner
    notice("connected again")
    show_online(chat, client)
    greet(chat, waited)
    if partner_state:
        notice(partner_state)
    if chat.is_new:
        notice(
            f"your account was removed, or the server has a new database: {client.username} has signed up again, with "
            f"id {client.user_id}; go on as a new user? (y/n)"
        )


def is_confirmed(line: str) -> bool:
    """Whether the person goes on as a new user. Raises EOFError for no."""
    match line.strip().lower():
        case "y" | "yes":
            return True
        case "n" | "no" | "/quit":
            raise EOFError
    notice("y goes on, n quits")
    return False
