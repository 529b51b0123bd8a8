"""At a terminal: a line to type on, what comes in above it, and reconnecting when the server goes away."""

import os
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

from chatterminal.commands import COMMANDS, Chat, complain, handle, show, show_online
from chatterminal.display import explain, notice, visible
from chatterminal.login import log_in
from client import ChatClient, ChatError, ChatRefused, ConnectionClosed, ConnectionFailed, LoginRefused, backoff
from protocol import Reason, is_valid_username

FAREWELL_SECONDS = 2.0
RECONNECT_SECONDS = 5.0  # at most between two attempts: somebody is looking
COMPLETION_SECONDS = 0.3  # the keyboard stands still meanwhile
RELOGIN_TRIES = 30  # over a minute: the server may not have noticed yet that our old connection has vanished
TEMPORARY = frozenset({Reason.USER_ALREADY_ONLINE, Reason.STORAGE_UNAVAILABLE})


def run_prompt(chat: Chat) -> int:
    """Handle the lines typed; the exit status."""
    session: PromptSession[str] = PromptSession(
        lambda: f"{chat.account.name} -> {visible(chat.partner)}> " if chat.partner else f"{chat.account.name}> ",
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
                    handle(chat, line)
                except KeyboardInterrupt:
                    complain(chat, "interrupted: not everything was sent")
    if chat.lost:
        complain(chat, chat.lost)  # not before: what is printed while the prompt ends can get lost with it
    else:
        chat.leaving.set()
        with suppress(ChatError, TimeoutError):
            chat.client.ping(FAREWELL_SECONDS)  # so that what was typed last gets there
        chat.client.close()
        listener.join(FAREWELL_SECONDS)
    return int(bool(chat.lost))


def listen(chat: Chat, session: PromptSession[str]) -> None:
    """Show what comes in, over all connections; ends the prompt when there will be no other."""
    while not chat.lost:
        try:
            show(chat, chat.client.receive(timeout=None))
        except ConnectionClosed as closing:
            chat.client.close()
            if chat.leaving.is_set():
                return
            notice(f"{closing}; reconnecting")
            reconnect(chat)
    with suppress(RuntimeError):  # the loop has closed: the prompt is over, and `lost` is seen before the next
        if session.app.loop:
            session.app.loop.call_soon_threadsafe(end_prompt, chat)


def end_prompt(chat: Chat) -> None:
    future = get_app().future
    if chat.lost and future and not future.done():
        get_app().exit(exception=EOFError)


def reconnect(chat: Chat) -> None:
    """Log in again, however long it takes, unless the person leaves; `lost` if the server refuses it for good."""
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
        break
    notice("connected again")
    show_online(client)
    with suppress(ConnectionClosed, TimeoutError):  # the next message asks for the partner again
        restore_partner(chat, client)
    chat.client = client  # not before: a line typed meanwhile must not go to nobody


def restore_partner(chat: Chat, client: ChatClient) -> None:
    try:
        if chat.partner:
            client.chat(chat.partner)
    except ChatRefused:
        notice(f"{chat.partner} is not online yet")


class LineCompleter(Completer):
    """Completes commands, and after /chat the names of who is online."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:  # noqa: ARG002
        command, space, name = document.text_before_cursor.partition(" ")
        if not command.startswith("/"):
            return
        typed = name if space else command
        choices = self._names() if command == "/chat" and space else COMMANDS if not space else ()
        for choice in sorted(choices):
            if choice.startswith(typed):
                takes_name = not space and " " in COMMANDS[choice][1]
                yield Completion(choice + " " * takes_name, start_position=-len(typed))

    def _names(self) -> Iterable[str]:
        client = self._chat.client
        with suppress(ChatError, TimeoutError):  # then the names that we knew have to do
            client.refresh(COMPLETION_SECONDS)
        return filter(is_valid_username, client.online)


class LineHistory(FileHistory):
    """Lines typed, over sessions; a disk that is full must not be in the way of chatting."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def open_history() -> History:
    """The history in a file of the person's own, or in memory where there can be none."""
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
    @bindings.add("<sigint>")  # a signal, or Ctrl-C at the moment when something is printed
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return bindings
