"""The server's options: from the command line, the environment and a config file."""

import re
from argparse import ArgumentError, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any, NoReturn, TextIO

from configargparse import ArgParser, ConfigFileParserException, DefaultConfigFileParser

from chatnet.address import check_redis_url, without_passwords
from chatserver import __version__
from protocol import DEFAULT_PORT, ID_WIDTHS, IS_COMPILED

MIN_OUTBOX_BYTES = 1024
OTHER_VARIABLES = {"CHAT_CONFIG", "CHAT_PURE_PYTHON", "CHAT_PASSWORD", "CHAT_TLS_CA"}  # the last two: of terminal.py
MIN_LEASE_SECONDS = 0.5
FLAG_VALUES = {"true", "yes", "on", "1", "false", "no", "off", "0"}  # in a config file

DESCRIPTION = """
A chat server for very small packets (at most 140 bytes each). It serves --pool-size clients at once; further clients
wait in the listen queue and are served in order as places become free.
"""

EPILOG = """
Every option can also come from the environment (CHAT_PORT=9035) or from a config file of lines such as "port = 9035";
the command line overrides the environment, which overrides the file. Exit status: 0 after SIGTERM or Ctrl-C, 1 when the
server cannot start, 2 for a bad option.
"""


def parse_options(argv: Sequence[str] | None = None) -> Namespace:
    """The options, checked against each other. Exits with status 2 and a clear line if one is wrong."""
    parser = _build_parser()
    options: Namespace = parser.parse_args(argv)
    options.max_id = 2 ** (8 * options.id_width) - 1
    if options.max_users > options.max_id:
        parser.error(
            f"--max-users {options.max_users} is more than --id-width {options.id_width} can number "
            f"(at most {options.max_id})"
        )
    if options.burst is None:
        options.burst = max(1.0, options.rate)
    elif options.rate == inf:
        parser.error("--burst needs --rate: it is what --rate lets pass at once")
    if options.tls_key and not options.tls_cert:
        parser.error("--tls-key needs --tls-cert, the certificate that the key belongs to")
    return options


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A line for each variable that looks like an option and is none."""
    names = (name for group in _options().values() for name in group)
    known = OTHER_VARIABLES | {f"CHAT_{name.removeprefix('--').replace('-', '_').upper()}" for name in names}
    return [
        f"the environment variable {_no_option(name, known)}"
        for name in sorted(environment)
        if name.startswith("CHAT_") and name not in known
    ]


def _no_option(name: str, known: Iterable[str]) -> str:
    likely = get_close_matches(name, known, n=1)
    return f"{name} is no option" + "".join(f"; is it {one}?" for one in likely)


class _Parser(ArgParser):  # type: ignore[misc]  # it has no types
    def error(self, message: str) -> NoReturn:
        super().error(without_passwords(message))
        raise AssertionError  # error() exits


class _ConfigFile(DefaultConfigFileParser):  # type: ignore[misc]
    """Checks each line by itself, so that an error names the line. None quotes it: it may hold a password."""

    def parse(self, stream: TextIO) -> dict[str, str]:
        """The value of each option in this file. Raises ConfigFileParserException."""
        found: dict[str, str] = {}
        number = 0
        try:
            for line in stream:
                number += 1
                read = super().parse([line])
                for key, value in read.items():
                    _check(key, value)
                found |= read
        except (ArgumentError, ArgumentTypeError) as error:
            raise ConfigFileParserException(f"{stream.name}, line {number}: {error}") from error
        except ConfigFileParserException as error:
            raise ConfigFileParserException(f'{stream.name}, line {number}: not a line like "port = 9035"') from error
        except UnicodeDecodeError as error:
            raise ConfigFileParserException(f"{stream.name} is not UTF-8") from error
        return found


def _check(key: str, value: object) -> None:
    """Raises ArgumentError or ArgumentTypeError if a config file cannot have this."""
    options = {name.removeprefix("--"): option for group in _options().values() for name, option in group.items()}
    if key not in options:
        raise ArgumentTypeError(_no_option(key, options))
    if "action" in options[key]:
        if str(value).lower() not in FLAG_VALUES:
            raise ArgumentTypeError(f"{key} is true or false")
        return
    parser = ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument(f"--{key}", **options[key])
    parser.parse_args([f"--{key}={value}"])


def _build_parser() -> ArgParser:
    parser = _Parser(
        config_file_parser_class=_ConfigFile,
        description=DESCRIPTION,
        epilog=EPILOG,
        auto_env_var_prefix="CHAT_",
        add_env_var_help=False,
        add_config_file_help=False,
        allow_abbrev=False,
    )
    version = f"%(prog)s {__version__}, protocol in {'C' if IS_COMPILED else 'Python'}"
    parser.add_argument("--version", action="version", version=version)
    config_help = "read options from this file too"
    parser.add_argument("-c", "--config", is_config_file=True, env_var="CHAT_CONFIG", metavar="FILE", help=config_help)
    for title, options in _options().items():
        group = parser.add_argument_group(title)
        for name, option in options.items():
            shown = "" if "(default:" in option["help"] else " (default: %(default)s)"
            group.add_argument(name, **option | {"help": option["help"] + shown})
    return parser


def _options() -> dict[str, dict[str, dict[str, Any]]]:
    """Every option, by group, as argparse takes it."""
    return {
        "where": {
            "--host": {
                "type": _host,
                "default": "127.0.0.1",
                "help": "address to listen on; 0.0.0.0 or :: admits other machines",
            },
            "--port": _number(DEFAULT_PORT, "TCP port; 0 takes a free one, which the log names", 0, 65535),
            "--data-dir": {
                "type": data_folder,
                "default": Path("data"),
                "metavar": "DIR",
                "help": "folder of the database, created at the first start",
            },
            "--tls-cert": {
                "type": Path,
                "metavar": "FILE",
                "help": "speak TLS only, with the certificate in this PEM file and the chain after it (default: off)",
            },
            "--tls-key": {
                "type": Path,
                "metavar": "FILE",
                "help": "PEM file with the unencrypted key, if the certificate file does not hold it (default: off)",
            },
        },
        "users and logins": {
            "--max-users": _number(128, "users that can sign up", 1),
            "--id-width": {
                "type": int,
                "choices": ID_WIDTHS,
                "default": 1,
                "help": "bytes of a user id on the wire; 2 serves the two-byte C client",
            },
            "--require-password": {
                "action": "store_true",
                "help": "refuse logins without a password (default: off)",
            },
            "--sign-up": {
                "choices": ("open", "closed"),
                "default": "open",
                "help": "whether a login with a new name signs up; closed: admin.py add makes the accounts",
            },
            "--sign-ups-per-address": {
                **_or_off(_whole_number(1)),
                "help": "new users an hour from one address (IPv6: one /64 network) (default: off)",
            },
            "--open-accounts": {
                "action": "store_true",
                "help": "start although passwords.csv is missing: no user has a password any more (default: off)",
            },
            "--login-timeout": _duration(10.0, "time for a connection to log in"),
            "--idle-timeout": {
                **_or_off(_seconds),
                "metavar": "SECONDS",
                "help": "disconnect a client that sends nothing, not even a Ping, for so long (default: off)",
            },
            "--login-attempts": {
                **_or_off(_whole_number(1)),
                "default": 10,
                "help": "wrong passwords a minute, for one account and from one address; further attempts are "
                'refused; "off" allows any number',
            },
        },
        "many servers as one": {
            "--redis": {
                "type": redis_url,
                "metavar": "URL",
                "help": "join a group of servers that share a Redis (6.2 or newer) or Valkey and act as one: "
                "redis://HOST:PORT/0, or rediss:// for TLS; there is no data folder then (default: off)",
            },
            "--redis-prefix": {
                "type": _prefix,
                "default": "chat",
                "metavar": "NAME",
                "help": "prefix of all keys in Redis; servers with one prefix are one group",
            },
            "--lease": _duration(
                10.0, "a server that does not renew its lease for so long has failed; its users are offline"
            )
            | {"type": _lease},
            "--wait-for-redis": _duration(60.0, "how long a start waits for a Redis that is not there yet")
            | {"type": _wait},
            "--reuse-port": {
                "action": "store_true",
                "help": "let several servers on this machine listen on one port; the kernel distributes the clients "
                "(default: off)",
            },
        },
        "past chats": {
            "--history": {
                "choices": ("on", "off"),
                "default": "on",
                "help": "keep messages on disk, for history and for offline users; off keeps nothing",
            },
            "--history-messages": _number(
                10_000, "messages kept for each pair of users; the oldest go first; up to an eighth more may stay", 1
            ),
            "--mailbox-messages": _number(1000, "messages that may wait for one offline user", 1),
            "--sync": {
                "choices": ("interval", "always"),
                "default": "interval",
                "help": "when messages go to disk: 50 ms after the first one, with all that arrived meanwhile; or at "
                "once, with all that arrived while the disk was busy",
            },
        },
        "limits": {
            "--pool-size": _number(20, "clients served at once", 1),
            "--yield-after": {
                **_or_off(_seconds),
                "default": 300.0,
                "metavar": "SECONDS",
                "help": "while others wait for a place, a client that has sent and been sent nothing for so long gives "
                "up its own",
            },
            "--max-per-address": {
                **_or_off(_whole_number(1)),
                "help": "clients served at once from one address (IPv6: one /64 network) (default: off)",
            },
            "--rate": {
                **_or_off(_rate),
                "help": "packets a second from one client; the server reads further packets later (default: off)",
            },
            "--burst": {
                "type": _whole_number(1),
                "metavar": "N",
                "help": "with --rate, packets that one client may send at once (default: a second's worth)",
            },
            "--backlog": _number(
                128, "connections that may wait for a place; the kernel may cap this (net.core.somaxconn)", 1, 65535
            ),
            "--outbox-bytes": _number(
                64 * 1024,
                "memory for what waits to be sent to one client; beyond it, its senders are throttled",
                MIN_OUTBOX_BYTES,
            )
            | {"metavar": "BYTES"},
            "--write-timeout": _duration(10.0, "a client that accepts no data for so long is disconnected as Too Slow"),
        },
        "running": {
            "--metrics-port": _number(
                None,
                "serve /metrics (Prometheus), /healthz and /readyz over HTTP on this port (default: off)",
                0,
                65535,
            ),
            "--metrics-host": {
                "type": _host,
                "default": "127.0.0.1",
                "metavar": "HOST",
                "help": "address for the metrics; they have no password",
            },
            "--drain": _duration(
                5.0,
                "on SIGTERM or Ctrl-C, time to deliver queued messages; a second signal ends the server at once",
            ),
            "--log-level": {
                "choices": ("debug", "info", "warning", "error"),
                "default": "info",
                "help": "lowest level in the log, which goes to standard error",
            },
        },
    }


def _number(default: int | None, explained: str, low: int, high: int | None = None) -> dict[str, Any]:
    return {"type": _whole_number(low, high), "default": default, "metavar": "N", "help": explained}


def _duration(default: float, explained: str) -> dict[str, Any]:
    return {"type": _seconds, "default": default, "metavar": "SECONDS", "help": explained}


def _whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            limits = f"of {low} or more" if high is None else f"from {low} to {high}"
            raise ArgumentTypeError(f"{text!r} is not a whole number {limits}")
        return int(text)

    return parse


def data_folder(text: str) -> Path:
    """A folder that the command line names. Raises ArgumentTypeError."""
    if not text:
        raise ArgumentTypeError("the folder is empty; . is the current one")
    return Path(text)


def _host(text: str) -> str:
    if not text:
        raise ArgumentTypeError("the host is empty; 0.0.0.0 or :: is every address of this machine")
    try:
        text.encode("idna")
    except UnicodeError:
        raise ArgumentTypeError(f"{text!r} is not a host name") from None
    return text


def _seconds(text: str) -> float:
    return _positive(text, "a number of seconds")


def _wait(text: str) -> float:
    return 0.0 if text == "0" else _seconds(text)


def _lease(text: str) -> float:
    seconds = _seconds(text)
    if seconds < MIN_LEASE_SECONDS:
        raise ArgumentTypeError(f"{text!r} is too short: at least {MIN_LEASE_SECONDS:g} seconds")
    return seconds


def redis_url(text: str) -> str:
    """A Redis that the command line names. Raises ArgumentTypeError, with nothing of the URL."""
    try:
        return check_redis_url(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _prefix(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+", text, re.ASCII):
        raise ArgumentTypeError(f"{text!r} has characters other than letters, digits, '.', '-' and '_'")
    return text


def _rate(text: str) -> float:
    return _positive(text, "a number a second")


def _positive(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1e6:
        raise ArgumentTypeError(f"{text!r} is not {what} over 0 (and up to a million)")
    return number


def _or_off(parse: Callable[[str], float]) -> dict[str, Any]:
    """A limit that is "off" by default."""

    def parse_or_off(text: str) -> float:
        try:
            return inf if text == "off" else parse(text)
        except ArgumentTypeError as error:
            raise ArgumentTypeError(f'{error}, or "off"') from None

    return {"type": parse_or_off, "default": inf, "metavar": "N"}
