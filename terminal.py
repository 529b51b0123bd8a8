"""The program a person chats with: `python terminal.py NAME [HOST[:PORT]]`; `--help` explains it.

At a terminal it keeps a line to type on, with what comes in above it, and reconnects when the server goes away. With
input or output redirected it works line by line, for scripts, and ends with the connection.
"""

import argparse
import os
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from getpass import getpass
from io import TextIOWrapper
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

from chatserver import __version__
from client import (
    CLOSING,
    ChatClient,
    ChatError,
    ChatRefused,
    ConnectionClosed,
    ConnectionFailed,
    ErrorReceived,
    Event,
    LoginRefused,
    MessageReceived,
    backoff,
    parse_address,
)
from protocol import LocalProtocolError, Reason, is_valid_username

PATIENCE_SECONDS = 1.0  # without an answer, until we say that we wait
SEND_SECONDS = 10.0  # a person waits for a partner who does not read
FAREWELL_SECONDS = 2.0
COMPLETION_SECONDS = 0.3  # the keyboard stands still meanwhile
PASSWORD_TRIES = 3  # the third wrong password closes (section 5)
RELOGIN_TRIES = 8  # half a minute, about: the server may not have noticed yet that our old connection has ended
TEMPORARY = frozenset({Reason.USER_ALREADY_ONLINE, Reason.STORAGE_UNAVAILABLE})
HIDDEN = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"})
JOINERS = "\u200c\u200d"  # in Cf too, but words and emoji need them

MEANINGS: dict[str, str] = {
    Reason.USER_NOT_ONLINE: "your message was not delivered",
    Reason.NO_CHAT_STARTED: "your message was not delivered",
    Reason.STORAGE_UNAVAILABLE: "the server cannot write to its disk now",
    Reason.USER_ALREADY_ONLINE: "somebody is logged in with this name",
    Reason.USERNAME_TAKEN: "this name looks like one that somebody else has",
    Reason.USER_LIMIT_REACHED: "the server takes no new users",
    Reason.PASSWORD_REQUIRED: "give one with --password, --password-file or CHAT_PASSWORD",
    Reason.INVALID_PASSWORD: "it is too long",
    "Mailbox Full": "your message was not delivered",
    "Too Many Attempts": "try again later",
}

EPILOG = """\
commands:
{commands}
  //TEXT          write "/TEXT" to your partner
Every other line is a message to your partner; an empty one is ignored. Tab completes commands and names, Ctrl-C clears
the line or quits, Ctrl-D quits.

With input or output redirected it works line by line. Messages come out as "name: text", notices begin with "* ",
complaints go to standard error and begin with "! ". Control characters come out as \\n, \\x1b, \\u202e. A refused /chat
leaves you without a partner. The program ends with the connection, or at the end of input when all has been handled.

exit status: 0 all went well; 1 no connection, login refused, or, line by line, something failed; 2 bad usage;
130 Ctrl-C
"""


@dataclass
class Account:
    """How to log in, now and when reconnecting."""

    name: str
    host: str
    port: int
    password: str


@dataclass
class Chat:
    """A person's session: it outlives the connections it needs."""

    account: Account
    interactive: bool
    client: ChatClient
    partner: str = ""
    failed: bool = False
    lost: bool = False
    leaving: threading.Event = field(default_factory=threading.Event)


def visible(text: str) -> str:
    """`text` from somebody else, with what would act on the terminal, or show nothing, as an escape like \\x1b."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in HIDDEN and character not in JOINERS
        else character
        for character in text
    )


def notice(text: str) -> None:
    print(f"* {visible(text)}")


def complain(chat: Chat, text: str) -> None:
    chat.failed = True
    print(f"! {visible(text)}", file=sys.stderr)


def explain(reason: str) -> str:
    return f"{reason}: {MEANINGS[reason]}" if reason in MEANINGS else reason


def show(chat: Chat, event: Event) -> None:
    """Print what came in."""
    match event:
        case MessageReceived(sender, text):
            print(f"{visible(sender)}: {visible(text)}")
        case ErrorReceived(reason) if reason not in CLOSING:  # those are named where the connection ends
            complain(chat, explain(reason))


# Logging in


def connect(account: Account) -> ChatClient:
    """Connect, and wait for as long as a full server takes to serve us. Raises ChatError."""
    client = ChatClient(account.host, account.port)
    try:
        try:
            client.ping(PATIENCE_SECONDS)
        except TimeoutError:
            notice(f"no answer from {client.address} yet: waiting for a free place (Ctrl-C gives up)")
            client.ping(timeout=None)
    except BaseException:
        client.close()
        raise
    return client


def log_in(account: Account, ask: bool) -> ChatClient:
    """Connect and log in. With `ask` the password is asked for as often as the server allows. Raises ChatError."""
    client = connect(account)
    tries, typed = 0, False
    while True:
        try:
            client.login(account.name, account.password, timeout=None)
        except LoginRefused as refusal:
            tries += refusal.reason == Reason.WRONG_PASSWORD
            asked_for = refusal.reason in (Reason.PASSWORD_REQUIRED, Reason.WRONG_PASSWORD)
            if not (ask and asked_for and tries < PASSWORD_TRIES):
                client.close()
                raise
            print(f"* {refusal.reason}")
            account.password, typed = getpass(f"password of {account.name}: "), True
        except ConnectionClosed as closing:
            client.close()
            if not (typed and closing.reason == Reason.LOGIN_TIMEOUT):  # it took a person too long to type
                raise
            client, typed = connect(account), False
        else:
            return client


def reconnect(chat: Chat) -> None:
    """Log in again, however long it takes, unless the person leaves; `lost` if the server refuses it for good."""
    refusals = 0
    for delay in backoff():
        if chat.leaving.wait(delay):
            return
        try:
            chat.client = log_in(chat.account, ask=False)
        except (ConnectionFailed, ConnectionClosed):
            continue
        except LoginRefused as refusal:
            refusals += 1
            if refusal.reason in TEMPORARY and refusals < RELOGIN_TRIES:
                continue
            complain(chat, f"cannot log in again: {explain(refusal.reason)}")
            chat.lost = True
            return
        break
    notice("connected again")
    show_online(chat.client)
    with suppress(ConnectionClosed, TimeoutError):  # the next message asks for the partner again
        restore_partner(chat)


def restore_partner(chat: Chat) -> None:
    try:
        if chat.partner:
            chat.client.chat(chat.partner)
    except ChatRefused:
        notice(f"{chat.partner} is not online yet")


# Commands


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


# Line by line


def run_lines(chat: Chat, linger: float) -> int:
    """Handle the lines of standard input; the exit status."""
    reader = threading.Thread(target=read_lines, args=(chat, linger), daemon=True)
    reader.start()
    try:
        while True:
            show(chat, chat.client.receive(timeout=None))
    except ConnectionClosed as closing:
        if chat.leaving.is_set():
            reader.join()
        else:
            complain(chat, str(closing))
    return int(chat.failed)


def read_lines(chat: Chat, linger: float) -> None:
    """Handle each line, wait until all has been handled and `linger` seconds more, and end the session."""
    try:
        # A reader of our own: sys.stdin's lock, held here, would be in the way when the interpreter exits.
        with suppress(EOFError), open(0, encoding="utf-8", errors="surrogateescape", closefd=False) as lines:
            for line in lines:
                handle(chat, line.removesuffix("\n"))
        with suppress(ConnectionClosed):  # receive() tells it
            chat.client.ping(timeout=None)
            chat.leaving.wait(linger)
            chat.leaving.set()
    except BrokenPipeError:
        chat.failed = True
        chat.leaving.set()
        drop_output()
    finally:
        chat.client.close()


def drop_output() -> None:
    """Whoever read it has gone; so that the interpreter does not fail on it again when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# At a terminal


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
    if not chat.lost:
        chat.leaving.set()
        with suppress(ChatError, TimeoutError):
            chat.client.ping(FAREWELL_SECONDS)  # so that what was typed last gets there
        chat.client.close()
        listener.join(FAREWELL_SECONDS)
    return int(chat.lost)


# The command line


def checked(parse: Callable[[str], object]) -> Callable[[str], object]:
    """`parse` as an argument's type whose ValueError says what is wrong."""

    def check(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return check


def username(text: str) -> str:
    if not is_valid_username(text):
        raise ValueError("a name has 1 to 32 bytes, all printable, no space, no colon and no comma")
    return text


def first_line(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").splitlines()[0]
    except (OSError, UnicodeError, IndexError) as error:
        raise ValueError(f"no password in {path} ({error})") from None


def seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= threading.TIMEOUT_MAX:
        raise ValueError(f"{text} is no number of seconds")
    return number


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="terminal.py",
        description="Chat with somebody.",
        epilog=EPILOG.format(commands=command_lines("  ")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", type=checked(username), help="your name in the chat")
    parser.add_argument(
        "address",
        metavar="HOST[:PORT]",
        nargs="?",
        type=checked(parse_address),
        default=parse_address("localhost"),
        help="where the server is (default: localhost:9034)",
    )
    passwords = parser.add_mutually_exclusive_group()
    passwords.add_argument("--password", action="store_true", help="ask for a password now, to secure a new name")
    passwords.add_argument(
        "--password-file",
        metavar="FILE",
        type=checked(first_line),
        help="the password is the first line of FILE (default: the environment variable CHAT_PASSWORD)",
    )
    parser.add_argument(
        "--linger",
        metavar="SECONDS",
        type=checked(seconds),
        default=0.0,
        help="line by line: go on receiving for so long after the end of input (default: 0)",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def ask_twice(name: str) -> str:
    while True:
        password = getpass(f"password of {name}: ")
        if password == getpass("once more: "):
            return password
        print("* these two differ")


def run(options: argparse.Namespace, interactive: bool) -> int:
    password = options.password_file or os.environ.get("CHAT_PASSWORD", "")
    if options.password:
        password = ask_twice(options.name)
    host, port = options.address
    account = Account(options.name, host, port, password)
    client = log_in(account, ask=interactive)
    chat = Chat(account, interactive, client)
    notice(f"logged in at {client.address} as {account.name} ({client.user_id}); /help lists the commands")
    show_online(client)
    return run_prompt(chat) if interactive else run_lines(chat, options.linger)


def main() -> int:
    parser = build_parser()
    options = parser.parse_args()
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if options.password and not interactive:
        parser.error("--password asks at a terminal; use --password-file or CHAT_PASSWORD")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        return run(options, interactive)
    except LoginRefused as refusal:
        print(f"! cannot log in: {visible(explain(refusal.reason))}", file=sys.stderr)
    except (ChatError, LocalProtocolError) as error:
        print(f"! {error}", file=sys.stderr)
    except EOFError:  # Ctrl-D instead of a password
        print("! no password", file=sys.stderr)
    except BrokenPipeError:
        drop_output()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
