"""At a terminal: a line to type on, and events above it."""

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
from chatterminal.commands import COMMANDS
from chatterminal.display import visible
from chatterminal.reconnecting import FAREWELL_SECONDS, listen, say_goodbye, take_line
from protocol import is_valid_username


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
        enable_suspend=True,  # Ctrl-Z
    )
    listener = threading.Thread(target=show_events, args=(chat, session), daemon=True)
    with patch_stdout(), suppress(EOFError):
        listener.start()
        while not chat.lost:
            for line in session.prompt(pre_run=lambda: end_prompt(chat)).split("\n"):  # a paste may hold several
                try:
                    take_line(chat, line)
                except KeyboardInterrupt:
                    complain(chat, "interrupted: not everything was done")
    if chat.lost:
        complain(chat, chat.lost)  # only now: output during the prompt's end can get lost
    else:
        say_goodbye(chat)
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


def show_events(chat: Chat, session: PromptSession[str]) -> None:
    """Show events above the line, and end the prompt when no further connection is possible."""

    def redraw() -> None:
        with suppress(RuntimeError):  # the loop has closed: the prompt is over, and the next one redraws
            session.app.invalidate()  # for the mark and the partner

    listen(chat, redraw)
    with suppress(RuntimeError):  # the same; `lost` is checked before the next prompt
        if chat.lost and session.app.loop:
            session.app.loop.call_soon_threadsafe(end_prompt, chat)


def end_prompt(chat: Chat) -> None:
    future = get_app().future
    if chat.lost and future and not future.done():
        get_app().exit(exception=EOFError)


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
