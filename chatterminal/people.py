"""Names and ids of users, online or offline, and the choice of the partner."""

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
    """Another user has come online or gone offline."""
    chat.ids[change.name] = change.user_id
    if chat.is_quiet or change.name in chat.muted:
        return
    if change.user_id != chat.partner_id and not chat.crowd.admits(change.name, change.is_online):
        return
    if change.is_online:
        notice(f"{change.name} is online")
    elif change.user_id == chat.partner_id and chat.has_mailboxes:
        notice(f"{change.name} has left; your messages wait for the next login")
    else:
        notice(f"{change.name} has left")


def choose(chat: Chat, who: str) -> None:
    """Make this user, by name or id, the partner; online or offline."""
    if not who:
        complain(chat, "usage: /chat NAME, or /chat id:NUMBER")
        return
    client = chat.client
    if not chat.interactive:  # a script may ignore a refusal; it must not go on writing to the previous partner
        chat.partner_id = 0
    try:
        user_id = client.chat(find(chat, who))
    except ChatRefused as refusal:
        complain(chat, not_found(refusal, who))
        return
    if user_id not in client.online.values():
        chat.ids.update(client.refresh())
    if user_id not in chat.ids.values():
        with suppress(ChatRefused):  # the name stays unknown
            past(chat, user_id, MAX_HISTORY)
    chat.partner_id = user_id
    if user_id in client.online.values():
        notice(f"now writing to {chat.partner}")
    else:
        chat.has_mailboxes = True
        notice(f"now writing to {chat.partner}, who is offline: messages wait for the next login")


def restore_partner(chat: Chat, client: ChatClient) -> str:
    """Choose the partner again on a new connection, which is not the chat's yet; returns a notice, or ""."""
    if not chat.partner_id:
        return ""
    if chat.is_new:  # the ids may belong to other users
        partner = chat.partner
        chat.partner_id, chat.ids = 0, {}
        return f"choose {partner} again"
    try:
        client.chat(chat.partner_id)
    except ChatRefused:
        return f"{chat.partner} is not online yet"
    if chat.partner_id in client.online.values():
        return ""
    chat.has_mailboxes = True
    return f"{chat.partner} is offline: your messages wait for the next login"


def find(chat: Chat, who: str) -> int:
    """The id of the user with this name or id, online or offline. Raises ChatRefused for an unknown name.

    `id:7` is always an id. `7` is one, too, unless a user of that name signed up when this was allowed.
    """
    number = who.removeprefix("id:")
    if number != who and number.isdecimal():
        return int(number[:11])
    chat.ids.update(chat.client.online)
    if who not in chat.ids:
        if who.isdecimal():
            return int(who[:11])  # any number of 11 digits is too large for an id
        chat.ids.update(chat.client.refresh())
        if is_valid_username(who):
            _search(chat, who)
    if who not in chat.ids:
        raise ChatRefused(Reason.USER_NOT_ONLINE)
    return chat.ids[who]


def not_found(refusal: ChatRefused, who: str) -> str:
    """Why this user cannot be reached, with a hint."""
    may_be_away = refusal.reason == Reason.USER_NOT_ONLINE and is_valid_username(who) and not who.isdecimal()
    hint = " (an offline user who has not written to you yet is found by id only)" if may_be_away else ""
    return f"{refusal.reason}: {who}{hint}"


def past(chat: Chat, user_id: int, count: int) -> list[PastMessage]:
    """The last messages with this user. Raises ChatRefused."""
    messages = chat.client.history(user_id, count)
    chat.ids.update((message.sender, message.sender_id) for message in messages)
    return messages


def _search(chat: Chat, name: str) -> None:
    """Look for an offline user: no packet asks for a name, but past messages have names and ids."""
    deadline = monotonic() + SEARCH_SECONDS
    for user_id in sorted(set(range(1, SEARCHED_IDS + 1)) - set(chat.ids.values())):
        if name in chat.ids or monotonic() > deadline:
            return
        try:
            past(chat, user_id, MAX_HISTORY)
        except ChatRefused as refusal:
            if refusal.reason != Reason.USER_NOT_ONLINE:
                raise
