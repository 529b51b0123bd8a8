"""Who is who: names and ids, online or not; and who gets what is typed."""

from contextlib import suppress
from time import monotonic

from chatterminal.chat import Chat, complain
from chatterminal.display import notice
from client import ChatClient, ChatRefused, PastMessage, PresenceChanged
from protocol import MAX_HISTORY, Reason, is_valid_username

SEARCHED_IDS = 255
SEARCH_SECONDS = 10.0


def show_online(chat: Chat, client: ChatClient) -> None:
    chat.ids.update(client.online)
    users = (f"{name} ({'you' if name == client.username else number})" for name, number in client.online.items())
    notice(f"online: {', '.join(users)}")


def show_presence(chat: Chat, change: PresenceChanged) -> None:
    """Somebody has come or gone."""
    chat.ids[change.name] = change.user_id
    if change.is_online:
        notice(f"{change.name} is online")
    elif change.user_id == chat.partner_id and chat.has_mailboxes:
        notice(f"{change.name} has left; what you write waits for the next login")
    else:
        notice(f"{change.name} has left")


def choose(chat: Chat, who: str) -> None:
    """Make this user the partner, by name or id, online or not."""
    if not who:
        complain(chat, "who? /chat NAME or /chat ID")
        return
    client = chat.client
    if not chat.interactive:  # a script that does not look at the answer must not write to the partner before
        chat.partner_id = 0
    try:
        user_id = client.chat(find(chat, who))
    except ChatRefused as refusal:
        complain(chat, not_found(refusal, who))
        return
    if user_id not in client.online.values():
        chat.ids.update(client.refresh())
    if user_id not in chat.ids.values():
        with suppress(ChatRefused):  # then it goes without a name
            past(chat, user_id, MAX_HISTORY)
    chat.partner_id = user_id
    if user_id in client.online.values():
        notice(f"you write to {chat.partner} now")
    else:
        chat.has_mailboxes = True
        notice(f"you write to {chat.partner} now, who is away: the message waits for the next login")


def restore_partner(chat: Chat, client: ChatClient) -> str:
    """On a new connection, which is not the chat's yet; what there is to say of it."""
    if not chat.partner_id:
        return ""
    if client.user_id != chat.client.user_id:  # ids of another database mean others
        partner = chat.partner
        chat.partner_id, chat.ids = 0, {}
        return f"the server does not know us any more: choose {partner} again"
    try:
        client.chat(chat.partner_id)
    except ChatRefused:
        return f"{chat.partner} is not online yet"
    if chat.partner_id in client.online.values():
        return ""
    chat.has_mailboxes = True
    return f"{chat.partner} is away: what you write waits for the next login"


def find(chat: Chat, who: str) -> int:
    """The id of the user with this name or id, online or not. Raises ChatRefused for a name that nothing tells."""
    chat.ids.update(chat.client.online)
    if who not in chat.ids:
        if who.isdecimal():
            return int(who[:11])  # any number of so many digits is no id
        chat.ids.update(chat.client.refresh())
        if is_valid_username(who):
            _search(chat, who)
    if who not in chat.ids:
        raise ChatRefused(Reason.USER_NOT_ONLINE)
    return chat.ids[who]


def not_found(refusal: ChatRefused, who: str) -> str:
    """Why this user cannot be reached, and what else to try."""
    may_be_away = refusal.reason == Reason.USER_NOT_ONLINE and is_valid_username(who) and not who.isdecimal()
    hint = " (who is away, and has not written to you yet, is found by id only)" if may_be_away else ""
    return f"{refusal.reason}: {who}{hint}"


def past(chat: Chat, user_id: int, count: int) -> list[PastMessage]:
    """The last messages with this user. Raises ChatRefused."""
    messages = chat.client.history(user_id, count)
    chat.ids.update((message.sender, message.sender_id) for message in messages)
    return messages


def _search(chat: Chat, name: str) -> None:
    """Look for somebody who is away: no packet asks for a name, but what was said in the past has names and ids."""
    deadline = monotonic() + SEARCH_SECONDS
    for user_id in sorted(set(range(1, SEARCHED_IDS + 1)) - set(chat.ids.values())):
        if name in chat.ids or monotonic() > deadline:
            return
        try:
            past(chat, user_id, MAX_HISTORY)
        except ChatRefused as refusal:
            if refusal.reason != Reason.USER_NOT_ONLINE:
                raise
