"""At a terminal: a line to type on, events above it, and reconnecting when the server goes away."""

import os
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.shortcuts import CompleteStyle

from chatterminal.chat import Chat, complain
from chatterminal.commands import COMMANDS, handle
from chatterminal.display import explain, notice, visible
from chatterminal.incoming import greet, hint, read_mailbox, show
from chatterminal.login import log_in
from chatterminal.marks import Marks
from chatterminal.people import restore_partner, show_online
from client import ChatClient, ChatError, ConnectionClosed, ConnectionFailed, LoginRefused, backoff
from protocol import ALL_FEATURES, Feature, Reason, is_valid_username

FEATURES = ALL_FEATURES & ~Feature.BRIEF  # who is online is shown first
FAREWELL_SECONDS = 2.0
RECONNECT_SECONDS = 5.0  # at most between two attempts: a person is waiting
RELOGIN_TRIES = 30  # over a minute: the server may not have noticed yet that our old connection is gone
TEMPORARY = frozenset({Reason.USER_ALREADY_ONLINE, Reason.STORAGE_UNAVAILABLE})


def run_prompt(chat: Chat) -> int:
    """Handle the typed lines; returns the exit status."""
    encoding = sys.stdout.encoding
    session: PromptSession[str] = PromptSession(
        lambda: prefix(chat),
        rprompt=lambda: mark(chat, encoding),
        completer=LineCompleter(chat),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        history=open_history(),
        key_bindings=clear_or_quit(),
    )
    listener = threading.Thread(target=listen, args=(chat, session), daemon=True)
    with patch_stdout(), suppress(EOFError):
        listener.start()
        while not chat.lost:
            for line in session.prompt(pre_run=lambda: end_prompt(chat)).split("\n"):  # a paste may hold several
                try:
                    (confirm if chat.is_new else handle)(chat, line)
                except KeyboardInterrupt:
                    complain(chat, "interrupted: not everything was done")
    if chat.lost:
        complain(chat, chat.lost)  # only now: output during the prompt's end can get lost
    else:
        chat.leaving.set()
        with suppress(ChatError, TimeoutError):
            chat.client.ping(FAREWELL_SECONDS)  # so that the last message arrives
        chat.client.close()
        listener.join(FAREWELL_SECONDS)
    return int(bool(chat.lost))


def prefix(chat: Chat) -> str:
    """What stands before the line that is typed."""
    if chat.is_new:
        return "go on as a new user? (y/n) "
    return f"{chat.account.name} -> {visible(chat.partner)}> " if chat.partner_id else f"{chat.account.name}> "


def mark(chat: Chat, encoding: str) -> str:
    """The status of the messages to the partner; nothing on lines that have been entered."""
    if get_app().is_done:
        return ""
    stage, count = chat.marks.stage(chat.partner_id)
    return stage.describe(count, encoding)


def listen(chat: Chat, session: PromptSession[str]) -> None:
    """Show events, over all connections; end the prompt when no further connection is possible."""
    while not chat.lost:
        try:
            event = chat.client.receive(timeout=None)
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
        with suppress(RuntimeError):  # the loop has closed: the prompt is over, and the next one redraws
            session.app.invalidate()  # for the mark and the partner
    with suppress(RuntimeError):  # the same; `lost` is checked before the next prompt
        if session.app.loop:
            session.app.loop.call_soon_threadsafe(end_prompt, chat)


def warn_of_loss(chat: Chat) -> None:
    """After the end of a connection, warn of messages that were never confirmed."""
    if count := chat.marks.unconfirmed:
        messages = "message" if count == 1 else f"{count} messages"
        complain(chat, f"your last {messages} may be lost; /history shows what has arrived")


def end_prompt(chat: Chat) -> None:
    future = get_app().future
    if chat.lost and future and not future.done():
        get_app().exit(exception=EOFError)


def reconnect(chat: Chat) -> None:
    """Log in again, however long it takes, unless the person leaves; sets `lost` if the server refuses for good."""
    refusals = 0
    for delay in backoff(cap=RECONNECT_SECONDS):
        if chat.leaving.wait(delay):
            return
        try:
            client = log_in(chat.account, ask=False)
        except (ConnectionFailed, ConnectionClosed):
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
    chat.marks, chat.has_mailboxes = Marks(), False
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
            f"id {client.user_id}"
        )


def confirm(chat: Chat, line: str) -> None:
    """The answer to whether the person goes on as a new user. Raises EOFError for no."""
    match line.strip().lower():
        case "y" | "yes":
            chat.is_new = False
        case "n" | "no" | "/quit":
            raise EOFError
        case _:
            notice("y goes on, n quits")


class LineCompleter(Completer):
    """Completes commands, and names after commands that take one."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:  # noqa: ARG002
        command, space, argument = document.text_before_cursor.partition(" ")
        if not command.startswith("/"):
            return
        typed = argument.rpartition(" ")[2] if space else command
        choices = COMMANDS if not space else self._names() if command in COMMANDS and takes_name(command) else ()
        for choice in sorted(choices):
            if choice.startswith(typed):
                goes_on = not space and takes_name(choice)
                yield Completion(choice + " " * goes_on, start_position=-len(typed))

    def _names(self) -> Iterable[str]:
        return filter(is_valid_username, {*self._chat.client.online, *self._chat.ids})


def takes_name(command: str) -> bool:
    return "NAME" in COMMANDS[command][1]


class LineHistory(FileHistory):
    """The typed lines, kept over runs of the program; a full disk does not disturb the chat."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def open_history() -> History:
    """The history of typed lines: in the person's own file, or in memory if there can be none."""
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        path = Path(state) / "chat" / "history"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return InMemoryHistory()
    return LineHistory(str(path))


def clear_or_quit() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("c-c", filter=has_focus(DEFAULT_BUFFER))
    @bindings.add("<sigint>")  # a signal, or Ctrl-C while something is printed
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return bindings
