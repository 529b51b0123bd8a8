"""The operator's program for users and their database: `python admin.py --help`.

It asks the server that runs on the data folder; if none runs, it does the same work on the files itself. With --redis
it works on the database of a group of servers.
"""

import argparse
import csv
import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from io import TextIOWrapper
from math import inf
from pathlib import Path
from typing import Any, NoReturn

from chatnet.address import without_passwords
from chatserver import __version__
from chatserver.counters import Counters
from chatserver.operations.control import NoAnswer, ask, perform
from chatserver.operations.options import data_folder, redis_url
from chatserver.people.accounts import Accounts, CannotDo
from chatserver.people.presence import LocalPresence
from chatserver.workers import Workers
from chatstorage import chat_file
from chatstorage.backup import BackupFailed, back_up
from chatstorage.chats import ChatRow, messages
from chatterminal.display import drop_output, visible
from chatterminal.login import ask_twice
from protocol import HEADER_BYTES, parse_text, split_packets
from storage import CHATS, PASSWORDS, STATUS, USERS, CsvStorage, FolderInUse, Storage, StorageError
from streams import OutputLost, open_missing_streams, wait_for_readers
from table import aligned

ANSWER_SECONDS = 20.0
IN_USE_SECONDS = 10.0  # a starting or stopping server, or another admin.py, holds the folder without listening
MAX_LINE_BYTES = 1000
HIGHEST_ID = 2**32 - 1

FORMULAS = tuple("=+-@\t\r")  # how a spreadsheet knows one (OWASP, CSV injection)
COMMANDS = {
    "users": "list all users: id, name, online or offline, whether they have a password",
    "add": "add a user, whether sign-ups are open or not; asks for a password",
    "passwd": "set a user's password",
    "kick": "end a user's connection; the user may log in again",
    "ban": "let nobody log in with a name, and end the connection; chats and mail stay",
    "unban": "let a banned user log in again",
    "remove": "remove a user and end the connection; the name becomes free, the id is never used again",
    "backup": "copy the database, even while it is in use",
    "export": "write all past chats as CSV to standard output: time (UTC), sender, receiver, text",
    "migrate": "move the database of the data folder into Redis, for a group of servers; stop all servers first",
}

EPILOG = """\
examples:
  python admin.py users
  python admin.py passwd alice                    asks for the new password, twice
  python admin.py passwd alice < file             takes the first line
  python admin.py passwd alice --forget           the next login may set a new one
  python admin.py ban alice                       also keeps a name closed that nobody has yet
  python admin.py remove alice
  python admin.py backup /var/backups/chat-monday
  python admin.py export > chats.csv
  python admin.py users --data-dir /var/lib/chat
  python admin.py users --redis redis://localhost:6379/0
  python admin.py migrate --data-dir data --redis redis://localhost:6379/0
  python admin.py migrate --back --data-dir new --redis redis://localhost:6379/0

Works with the server up or down; run it as the owner of the data folder (while the server runs, root may do it too).
Only migrate needs all servers to be stopped; if it is interrupted, run it again.

exit status: 0 done; 1 failed; 2 bad usage; 130 Ctrl-C
"""


def main() -> int:
    open_missing_streams()
    wait_for_readers()
    parser = build_parser()
    options = parser.parse_args()
    if options.do == "migrate" and not options.redis:
        parser.error("migrate needs --redis: the Redis to move the database to or from")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        run(options)
        sys.stdout.flush()
    except (CannotDo, BackupFailed, StorageError) as error:
        complain(str(error))
    except ModuleNotFoundError as error:
        complain(f"--redis needs the package {error.name}: pip install 'small-packet-chat[cluster]'")
    except OutputLost as error:
        drop_output(error)
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    else:
        return 0
    return 1


def complain(text: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {visible(text)}", file=sys.stderr)


def run(options: argparse.Namespace) -> None:
    """Raises CannotDo, BackupFailed, StorageError, OSError."""
    if options.do == "migrate":
        migrate(options)
    elif options.redis:
        run_on_group(options)
    else:
        run_on_folder(options, options.data_dir)


def run_on_folder(options: argparse.Namespace, folder: Path) -> None:
    check_folder(folder)
    match options.do:
        case "users":
            show(order(folder, request_of(options)))
        case "backup":
            back_up(
                folder,
                options.folder,
                (PASSWORDS, STATUS, USERS),
                lambda: dict(order(folder, request_of(options))),
                lambda: copy_chats(folder, options.folder),
            )
            copied = sorted(path.name for path in options.folder.iterdir())
            report([f"copied {', '.join(copied)} to {options.folder}"])
        case "export":
            if not (folder / CHATS).exists():
                raise CannotDo(f"there are no past chats in {folder}")
            export(order(folder, {"do": "users"}), chat_file.export(folder / CHATS), options.safe)
        case _:
            report(order(folder, request_of(options)))


def run_on_group(options: argparse.Namespace) -> None:
    from cluster.admin import open_group  # here: importing the Redis client takes a while

    with open_group(options.redis, options.redis_prefix) as group:
        match options.do:
            case "users":
                show(list(group.rows()))
            case "backup":
                raise CannotDo("Redis makes its own backups: copy its RDB or AOF files, or use migrate --back")
            case "export":
                export(list(group.rows()), group.export(), options.safe)
            case _:
                report(list(perform(accounts_on(group.storage), group.kick, request_of(options))))


def migrate(options: argparse.Namespace) -> None:
    from cluster.engine import Engine
    from cluster.migrate import carry, carry_back

    if not options.back:
        check_folder(options.data_dir)
        check_owner(options.data_dir)
    with closing(Engine(options.redis, options.redis_prefix)) as engine:
        try:
            if options.back:
                done = carry_back(engine, options.data_dir, show_progress)
            else:
                done = carry(options.data_dir, engine, show_progress)
        finally:
            show_progress("")
    print(done)


def request_of(options: argparse.Namespace) -> dict[str, object]:
    """The request for Accounts; for add and passwd with the password, which may be typed. Raises CannotDo."""
    request = {name: value for name, value in vars(options).items() if name in ("do", "name")}
    if options.do in ("add", "passwd"):
        request["password"] = None if options.no_password else new_password(options.name)
    return request


def check_folder(folder: Path) -> None:
    if not (folder / USERS).is_file():
        raise CannotDo(f"there is no database in {folder}; --data-dir says where it is")


def order(folder: Path, request: dict[str, object]) -> list[Any]:
    """The rows of the answer, from the server or, if none runs, from the files."""
    give_up = time.monotonic() + IN_USE_SECONDS
    while True:
        try:
            rows = ask(folder, request, ANSWER_SECONDS)
            return perform_alone(folder, request) if rows is None else rows
        except NoAnswer as error:
            raise CannotDo(f"the server on {folder} does not answer ({error}); it may still do the work") from error
        except PermissionError:
            raise CannotDo(f"{folder} belongs to another user: only that user, or root, may do this") from None
        except FolderInUse:
            if time.monotonic() > give_up:
                raise CannotDo(f"{folder} is in use by a server that does not listen to admin.py") from None
        time.sleep(0.05)


def perform_alone(folder: Path, request: dict[str, object]) -> list[Any]:
    check_owner(folder)
    with CsvStorage(folder, max_users=HIGHEST_ID, max_id=HIGHEST_ID) as storage:
        return list(perform(accounts_on(storage), lambda _: False, request))


def check_owner(folder: Path) -> None:
    """A repair rewrites files as the current user, and the server could not open them. Raises CannotDo."""
    owner = (folder / USERS).stat().st_uid
    if owner != os.geteuid():
        raise CannotDo(f"{folder} belongs to user {owner}, and no server runs on it: be that user (sudo -u '#{owner}')")


def accounts_on(storage: Storage) -> Accounts:
    return Accounts(
        storage, LocalPresence(), Counters(), Workers(0), id_width=4, password_required=False, login_attempts=inf
    )


def show(rows: list[Any]) -> None:
    """A table of the users."""
    lines = [("id", "name", "status", "password")] + [
        (str(user_id), visible(name), "online" if online else "offline", password)
        for user_id, name, online, password in rows
    ]
    print(aligned(lines, "<<<<", indent=""))


def report(done: list[Any]) -> None:
    """Say what was done. It is done, even if nobody can be told."""
    try:
        print(*map(visible, done), sep="\n", flush=True)
    except OutputLost as error:
        drop_output(error)


def show_progress(text: str) -> None:
    """At a terminal, replace the progress shown last."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def copy_chats(folder: Path, target: Path) -> None:
    if (folder / CHATS).exists():
        chat_file.copy(folder / CHATS, target / CHATS)


def export(users: list[Any], batches: Iterator[ChatRow], safe: bool) -> None:
    """Print a record for each message. A removed user is shown as #ID. `safe`: a spreadsheet sees no formula."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    names = {user_id: name for user_id, name, *_ in users}
    shown = visible if sys.stdout.isatty() else str
    print(csv_record("time", "sender", "receiver", "text"))
    for row in batches:
        sent = datetime.fromtimestamp(row.time, UTC).isoformat()
        ends = [names.get(user_id, f"#{user_id}") for user_id in (row.sender, row.receiver)]
        for message in messages(row):
            fields = [sent, *ends, shown(text_of(message))]
            print(csv_record(*(map(defused, fields) if safe else fields)))


def csv_record(*fields: str) -> str:
    """A record of RFC 4180, without its line end."""
    record = io.StringIO()
    csv.writer(record, lineterminator="\r\n").writerow(fields)  # some Pythons quote only what the line end consists of
    return record.getvalue().removesuffix("\r\n")


def defused(field: str) -> str:
    """`field`, with an apostrophe before what a spreadsheet would take for a formula."""
    return f"'{field}" if field.startswith(FORMULAS) else field


def text_of(message: bytes) -> str:
    """The text of a message in one packet or several, without the sender's name."""
    pieces = [parse_text(packet[HEADER_BYTES:]).partition(b":")[2] for packet in split_packets(message)]
    return b"".join(pieces).decode()


def new_password(name: str) -> str:
    """Ask twice at a terminal; otherwise read a line of standard input. Raises CannotDo."""
    if not sys.stdin.isatty():
        try:
            password = sys.stdin.buffer.readline(MAX_LINE_BYTES).decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise CannotDo("the password is not UTF-8") from None
        if not password:
            raise CannotDo("there is no password on the first line of standard input")
        return password
    try:
        return ask_twice(name)
    except EOFError:
        raise CannotDo("no password") from None


def group_url(text: str) -> str:
    return redis_url(text) if text else ""  # none, whatever CHAT_REDIS says


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(without_passwords(message))


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        description="Manage the users of a chat server and their database.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_places(
        parser,
        os.environ.get("CHAT_DATA_DIR") or "data",
        os.environ.get("CHAT_REDIS"),
        os.environ.get("CHAT_REDIS_PREFIX") or "chat",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="do", required=True, metavar="COMMAND")
    for command, explained in COMMANDS.items():
        added = commands.add_parser(command, help=explained, description=explained[0].upper() + explained[1:] + ".")
        if command == "backup":
            added.add_argument("folder", metavar="DIR", type=Path, help="folder for the copy: empty or new")
        elif command not in ("users", "export", "migrate"):
            added.add_argument("name", metavar="NAME", help="the user")
        if command == "export":
            explained = "for spreadsheets: an apostrophe before each name or text that would be a formula"
            added.add_argument("--safe", action="store_true", help=explained)
        if command == "passwd":
            added.add_argument("--forget", dest="no_password", action="store_true", help="remove the password instead")
        if command == "add":
            explained = "without a password: the first login may set one"
            added.add_argument("--open", dest="no_password", action="store_true", help=explained)
        if command == "migrate":
            added.add_argument("--back", action="store_true", help="move from Redis into a new data folder")
        add_places(added, *[argparse.SUPPRESS] * 3)
    return parser


def add_places(parser: argparse.ArgumentParser, folder: object, url: object, prefix: object) -> None:
    """Add these options, which may stand before the command and after it, with these defaults."""
    explained = "folder of the database (default: the environment variable CHAT_DATA_DIR, or data)"
    parser.add_argument("--data-dir", metavar="DIR", type=data_folder, default=folder, help=explained)
    explained = "work on the database of a group of servers in this Redis (default: CHAT_REDIS, or none)"
    parser.add_argument("--redis", metavar="URL", type=group_url, default=url, help=explained)
    explained = "prefix of the group's keys (default: CHAT_REDIS_PREFIX, or chat)"
    parser.add_argument("--redis-prefix", metavar="PREFIX", default=prefix, help=explained)


if __name__ == "__main__":
    sys.exit(main())
