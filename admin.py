"""What an operator does to the users and their database: `python admin.py --help`.

It asks the server that runs on the data folder; where none runs it works on the files itself, in the same way.
"""

import argparse
import csv
import os
import sys
import time
from datetime import UTC, datetime
from io import TextIOWrapper
from math import inf
from pathlib import Path
from typing import Any

from chatserver import __version__
from chatserver.accounts import Accounts, CannotDo
from chatserver.control import NoAnswer, ask, perform
from chatserver.counters import Counters
from chatserver.relay import Relay
from chatstorage import chats
from chatstorage.backup import BackupFailed, back_up
from chatterminal.display import drop_output, visible
from chatterminal.login import ask_twice
from protocol import HEADER_BYTES, parse_text, split_packets
from storage import CHATS, PASSWORDS, STATUS, USERS, CsvStorage, FolderInUse, StorageError

ANSWER_SECONDS = 20.0
IN_USE_SECONDS = 10.0  # a server that starts or stops, or another admin.py, has the folder without listening
MAX_LINE_BYTES = 1000
HIGHEST_ID = 2**32 - 1

COMMANDS = {
    "users": "list everyone: id, name, online or offline, whether there is a password",
    "passwd": "give a user another password",
    "remove": "remove a user, whose connection ends; the id is never used again, the name is free",
    "kick": "end the connection of a user",
    "backup": "copy the database, while it may be in use",
    "export": "write all past chats as CSV to standard output: time (UTC), sender, receiver, text",
}

EPILOG = """\
examples:
  python admin.py users
  python admin.py passwd alice                    asks for the new password, twice
  python admin.py passwd alice < file             takes the first line
  python admin.py passwd alice --forget           the next login may set a new one
  python admin.py remove alice
  python admin.py backup /var/backups/chat-monday
  python admin.py export > chats.csv
  python admin.py users --data-dir /var/lib/chat

It works while the server runs, and while it does not; as the user the data folder belongs to, or as root where a server
runs.

exit status: 0 done; 1 it could not be done; 2 bad usage; 130 Ctrl-C
"""


def main() -> int:
    options = build_parser().parse_args()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        run(options)
        sys.stdout.flush()
    except (CannotDo, BackupFailed, StorageError) as error:
        complain(str(error))
    except BrokenPipeError:
        drop_output()
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    else:
        return 0
    return 1


def complain(text: str) -> None:
    print(f"admin.py: {visible(text)}", file=sys.stderr)


def run(options: argparse.Namespace) -> None:
    """Raises CannotDo, BackupFailed, StorageError, OSError."""
    folder: Path = options.data_dir
    if not (folder / USERS).is_file():
        raise CannotDo(f"there is no database in {folder}; --data-dir says where it is")
    request = {name: value for name, value in vars(options).items() if name in ("do", "name")}
    match options.do:
        case "users":
            show(order(folder, request))
        case "backup":
            back_up(
                folder,
                options.folder,
                (PASSWORDS, STATUS, USERS),
                lambda: dict(order(folder, request)),
                lambda: copy_chats(folder, options.folder),
            )
        case "export":
            export(folder)
        case "passwd":
            order(folder, request | {"password": None if options.forget else new_password(options.name)})
        case _:
            order(folder, request)


def order(folder: Path, request: dict[str, object]) -> list[Any]:
    """The rows of the answer, from the server or, where none runs, from the files."""
    give_up = time.monotonic() + IN_USE_SECONDS
    while True:
        try:
            rows = ask(folder, request, ANSWER_SECONDS)
            return perform_alone(folder, request) if rows is None else rows
        except NoAnswer as error:
            raise CannotDo(f"the server on {folder} does not answer ({error}); it may still do this") from error
        except PermissionError:
            raise CannotDo(f"{folder} belongs to somebody else: only that user, or root, may do this") from None
        except FolderInUse:
            if time.monotonic() > give_up:
                raise CannotDo(f"{folder} is in use by a server that does not listen to admin.py") from None
        time.sleep(0.05)


def perform_alone(folder: Path, request: dict[str, object]) -> list[Any]:
    owner = (folder / USERS).stat().st_uid
    if owner != os.geteuid():  # what a repair writes anew would be ours, and the server could not open it
        raise CannotDo(f"{folder} belongs to user {owner}, and no server runs on it: be that user (sudo -u '#{owner}')")
    with CsvStorage(folder, max_users=HIGHEST_ID, max_id=HIGHEST_ID) as storage:
        accounts = Accounts(storage, Relay(), Counters(), id_width=4, password_required=False, login_attempts=inf)
        return list(perform(accounts, lambda _: False, request))


def show(rows: list[Any]) -> None:
    """A table of the users."""
    lines = [("id", "name", "status", "password")] + [
        (str(user_id), visible(name), "online" if online else "offline", "yes" if password else "no")
        for user_id, name, online, password in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def copy_chats(folder: Path, target: Path) -> None:
    if (folder / CHATS).exists():
        chats.copy(folder / CHATS, target / CHATS)


def export(folder: Path) -> None:
    """A line for each message. A name that nobody has any more is #ID."""
    if not (folder / CHATS).exists():
        raise CannotDo(f"no chats have been kept in {folder}")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    names = {user_id: name for user_id, name, *_ in order(folder, {"do": "users"})}
    shown = visible if sys.stdout.isatty() else str
    lines = csv.writer(sys.stdout, lineterminator="\n")
    lines.writerow(("time", "sender", "receiver", "text"))
    for row in chats.export(folder / CHATS):
        sent = datetime.fromtimestamp(row.time, UTC).isoformat()
        ends = [names.get(user_id, f"#{user_id}") for user_id in (row.sender, row.receiver)]
        for message in chats.messages(row):
            lines.writerow((sent, *ends, shown(text_of(message))))


def text_of(message: bytes) -> str:
    """What was said, without the sender's name, of a message in one packet or several."""
    pieces = [parse_text(packet[HEADER_BYTES:]).partition(b":")[2] for packet in split_packets(message)]
    return b"".join(pieces).decode()


def new_password(name: str) -> str:
    """Asks at a terminal, twice; else takes a line of standard input. Raises CannotDo."""
    if not sys.stdin.isatty():
        try:
            password = sys.stdin.buffer.readline(MAX_LINE_BYTES).decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise CannotDo("a password is UTF-8") from None
        if not password:
            raise CannotDo("there is no password on the first line of standard input")
        return password
    try:
        return ask_twice(name)
    except EOFError:
        raise CannotDo("no password") from None


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="admin.py",
        description="Look after the users of a chat server and their database.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data_dir(parser, Path(os.environ.get("CHAT_DATA_DIR") or "data"))
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="do", required=True, metavar="COMMAND")
    for command, explained in COMMANDS.items():
        added = commands.add_parser(command, help=explained, description=explained.capitalize() + ".")
        if command == "backup":
            added.add_argument("folder", metavar="DIR", type=Path, help="folder for the copy: empty, or not there yet")
        elif command not in ("users", "export"):
            added.add_argument("name", metavar="NAME", help="the user")
        if command == "passwd":
            added.add_argument("--forget", action="store_true", help="remove the password instead")
        add_data_dir(added, argparse.SUPPRESS)
    return parser


def add_data_dir(parser: argparse.ArgumentParser, default: object) -> None:
    """Before the command and after it."""
    explained = "folder of the database (default: the environment variable CHAT_DATA_DIR, or data)"
    parser.add_argument("--data-dir", metavar="DIR", type=Path, default=default, help=explained)


if __name__ == "__main__":
    sys.exit(main())
