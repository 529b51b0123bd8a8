"""The program a person chats with: `python terminal.py NAME [HOST[:PORT]]`; `--help` explains it.

At a terminal it keeps a line to type on, shows what arrives above it, and reconnects when the server goes away. With
input or output redirected it works line by line, for scripts, and ends with the connection.
"""

import argparse
import os
import ssl
import sys
import threading
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path

from chatserver import __version__
from chatterminal import lines, reconnecting
from chatterminal.chat import Chat
from chatterminal.commands import command_lines, mark_lines
from chatterminal.display import drop_output, explain, notice, visible
from chatterminal.incoming import greet
from chatterminal.login import Credentials, log_in, read_mailbox
from chatterminal.people import show_online
from chatterminal.plain import run_plain
from chatterminal.prompt import run_prompt
from client import ChatError, ConnectionClosed, LoginRefused, parse_address, tls_context
from protocol import USERNAME_RULE, LocalProtocolError, is_valid_username
from streams import OutputLost, open_missing_streams, wait_for_readers

PLAIN_TERMINALS = ("dumb", "unknown", "")  # names in TERM of those that can only print

EPILOG = """\
commands:
{commands}
  //TEXT                   write "/TEXT" to your partner
Every other line is a message to your partner; empty lines are ignored. Tab completes commands and names, Ctrl-C
clears the line or quits, Ctrl-D quits, Ctrl-Z suspends. When many come and go, it is summed up. Messages that waited
for you appear after the login. An offline user who has not written to you yet is found by id only.

status of your messages, at the right edge of the line you type on (a number counts several):
{marks}

With input or output redirected it works line by line. It prints messages as "name: text", and those of /history as
"2026-11-26 14:03 name: text", in local time. Notices begin with "* "; errors go to standard error and begin with "! ".
Control characters appear as \\n, \\x1b, \\u202e. There is no news of arrivals, departures or receipts. A refused /chat
leaves you without a partner. The program ends with the connection, or at the end of input once everything has been
handled.

exit status: 0 success; 1 no connection, login refused, or, line by line, a command or message failed; 2 bad usage;
130 Ctrl-C
"""


def main() -> int:
    open_missing_streams()
    wait_for_readers()
    parser = build_parser()
    options = parser.parse_args()
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if options.password and not interactive:
        parser.error("--password asks at a terminal; use --password-file or CHAT_PASSWORD")
    try:
        tls = encryption(options)
    except ValueError as error:
        parser.error(str(error))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        return run(options, tls, interactive)
    except LoginRefused as refusal:
        print(f"! cannot log in: {visible(explain(refusal.reason))}", file=sys.stderr)
    except ConnectionClosed as closing:
        reason = closing.reason
        print(f"! the server closed the connection: {explain(reason)}" if reason else f"! {closing}", file=sys.stderr)
    except (ChatError, LocalProtocolError) as error:
        print(f"! {error}", file=sys.stderr)
    except TimeoutError:
        print(f"! no answer, or no free place, within {options.timeout:g} s", file=sys.stderr)
    except EOFError:  # Ctrl-D instead of a password
        print("! no password", file=sys.stderr)
    except OutputLost as error:
        drop_output(error)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 1


def run(options: argparse.Namespace, tls: ssl.SSLContext | None, interactive: bool) -> int:
    known = "" if options.password else options.password_file or os.environ.get("CHAT_PASSWORD", "")
    features = reconnecting.FEATURES if interactive else lines.FEATURES
    host, port, _ = options.address
    account = Credentials(options.name, host, port, known, features, options.timeout, options.password, tls)
    client = log_in(account, ask=interactive)
    chat = Chat(account, interactive, client)
    notice(f"logged in at {client.address} as {account.name} ({client.user_id}); /help lists the commands")
    show_online(chat, client)
    if not interactive:
        return lines.run_lines(chat, options.linger)
    greet(chat, account.waited + read_mailbox(client))
    is_plain = options.plain or os.environ.get("TERM", "dumb") in PLAIN_TERMINALS
    return (run_plain if is_plain else run_prompt)(chat)


def encryption(options: argparse.Namespace) -> ssl.SSLContext | None:
    """The TLS context that the address asks for, None for a plain connection. Raises ValueError."""
    if options.address.tls:
        return tls_context(options.tls_ca or os.environ.get("CHAT_TLS_CA"))
    if options.tls_ca:  # without this check the user might believe that the connection is encrypted
        raise ValueError("--tls-ca needs an address that begins with tls://")
    return None


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Chat at a terminal, or from a script.",
        epilog=EPILOG.format(commands=command_lines("  "), marks=mark_lines("    ")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", type=checked(username), help="your name in the chat")
    parser.add_argument(
        "address",
        metavar="HOST[:PORT]",
        nargs="?",
        type=checked(parse_address),
        default=parse_address("localhost"),
        help="address of the server (default: localhost:9034); tls://HOST[:PORT] if it speaks TLS",
    )
    passwords = parser.add_mutually_exclusive_group()
    passwords.add_argument(
        "--password", action="store_true", help="ask for the password; a name that has none yet gets it"
    )
    passwords.add_argument(
        "--password-file",
        metavar="FILE",
        type=checked(first_line),
        help="the password is the first line of FILE (default: the environment variable CHAT_PASSWORD)",
    )
    parser.add_argument(
        "--tls-ca",
        metavar="FILE",
        help="with tls://, trust the authority in FILE (PEM), not the system's (default: the environment variable "
        "CHAT_TLS_CA)",
    )
    parser.add_argument(
        "--linger",
        metavar="SECONDS",
        type=checked(seconds),
        default=0.0,
        help="line by line: keep receiving for so long after the end of input (default: 0)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=checked(seconds),
        help="give up if there is no free place, or no answer to the login, for so long; line by line, also without an "
        "answer at the end (default: wait for ever)",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="at a terminal, only print lines and draw nothing again, for screen readers (default: where TERM is dumb)",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def checked(parse: Callable[[str], object]) -> Callable[[str], object]:
    """`parse` as the type of an argument; its ValueError becomes the error message."""

    def check(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return check


def username(text: str) -> str:
    if not is_valid_username(text):
        raise ValueError(USERNAME_RULE)
    return text


def first_line(path: str) -> str:
    try:
        line = Path(path).read_text("utf-8").partition("\n")[0].removesuffix("\r")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"no password in {path} ({error})") from None
    if not line:
        raise ValueError(f"no password in {path}: its first line is empty")
    return line


def seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= threading.TIMEOUT_MAX:
        raise ValueError(f"{text} is not a number of seconds")
    return number


if __name__ == "__main__":
    sys.exit(main())
