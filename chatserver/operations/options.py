"""The server's command line, environment and config file, which all know the same options."""

import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any

from configargparse import ArgParser

from chatserver import __version__
from protocol import DEFAULT_PORT, ID_WIDTHS

MIN_OUTBOX_BYTES = 1024
MIN_LEASE_SECONDS = 0.5

DESCRIPTION = """
A chat server for very small packets (at most 140 bytes each). It serves --pool-size clients at once; the next ones wait
in the listen queue and are served in order as places become free.
"""

EPILOG = """
Every option can also come from the environment (CHAT_PORT=9035) or from a config file of lines such as "port = 9035";
the command line wins over the environment, and that over the file. Exit status: 0 after SIGTERM or Ctrl-C, 1 when the
server cannot start, 2 for a bad option.
"""


def parse_options(argv: Sequence[str] | None = None) -> Namespace:
    """The options, checked against each other. Exits with status 2 and a clear line where one is wrong."""
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
        parser.error("--burst is how much --rate lets pass at once, and there is no --rate")
    if options.tls_key and not options.tls_cert:
        parser.error("--tls-key is the key of a certificate, which --tls-cert names")
    return options


def _build_parser() -> ArgParser:
    parser = ArgParser(
        description=DESCRIPTION,
        epilog=EPILOG,
        auto_env_var_prefix="CHAT_",
        add_env_var_help=False,
        add_config_file_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
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
                "help": "address to listen on; 0.0.0.0 or :: lets other machines in",
            },
            "--port": _number(DEFAULT_PORT, "TCP port; 0 takes a free one, which the log names", 0, 65535),
            "--data-dir": {
                "type": Path,
                "default": Path("data"),
                "metavar": "DIR",
                "help": "folder of the database, made at the first start",
            },
            "--tls-cert": {
                "type": Path,
                "metavar": "FILE",
                "help": "speak TLS alone, with the certificate in this PEM file and the chain behind it (default: off)",
            },
            "--tls-key": {
                "type": Path,
                "metavar": "FILE",
                "help": "PEM file with its key, unencrypted, unless the first file holds that too (default: off)",
            },
        },
        "who may come in": {
            "--max-users": _number(128, "users there can be", 1),
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
            "--login-timeout": _duration(10.0, "from the start of a connection until a login has succeeded"),
            "--idle-timeout": {
                **_or_off(_seconds),
                "metavar": "SECONDS",
                "help": "end a connection whose client has sent nothing, not even a Ping, for so long (default: off)",
            },
            "--login-attempts": {
                **_or_off(_whole_number(1)),
                "default": 10,
                "help": "wrong passwords a minute, for an account and from an address, before further tries are "
                'refused; "off" for any number',
            },
        },
        "many servers as one": {
            "--redis": {
                "type": _redis_url,
                "metavar": "URL",
                "help": "be one of several servers that share a Redis (6.2 or newer) or Valkey and act as one: "
                "redis://HOST:PORT/0, or rediss:// for TLS; no data folder is used then (default: off)",
            },
            "--redis-prefix": {
                "type": _prefix,
                "default": "chat",
                "metavar": "NAME",
                "help": "what all keys there begin with; servers of one prefix are one group",
            },
            "--lease": _duration(10.0, "who is not heard of for so long is taken for dead, and its users for offline")
            | {"type": _lease},
            "--reuse-port": {
                "action": "store_true",
                "help": "several servers of this machine may listen on one port; the kernel shares clients out "
                "(default: off)",
            },
        },
        "past chats": {
            "--history": {
                "choices": ("on", "off"),
                "default": "on",
                "help": "keep messages on disk, for history and for who is away; off keeps nothing",
            },
            "--history-messages": _number(
                10_000, "messages kept of each two users; the oldest go first, up to an eighth more may stay", 1
            ),
            "--mailbox-messages": _number(1000, "messages that wait for a user who is away", 1),
            "--sync": {
                "choices": ("interval", "always"),
                "default": "interval",
                "help": "when messages go to disk: 50 ms after the first of them, with all that came meanwhile; or at "
                "once, with all that came while the disk was busy",
            },
        },
        "how much at once": {
            "--pool-size": _number(20, "clients served at once", 1),
            "--max-per-address": {
                **_or_off(_whole_number(1)),
                "help": "clients served at once from one address (IPv6: one /64 network) (default: off)",
            },
            "--rate": {
                **_or_off(_rate),
                "help": "packets a second from one client; what it sends beyond that is read later (default: off)",
            },
            "--burst": {
                "type": _whole_number(1),
                "metavar": "N",
                "help": "with --rate, packets that one client may send at once (default: a second's worth)",
            },
            "--backlog": _number(
                128, "connections that wait for a place; the kernel may cap this (net.core.somaxconn)", 1, 65535
            ),
            "--outbox-bytes": _number(
                64 * 1024,
                "memory for what waits to be sent to a client, before those who write to it are made to wait",
                MIN_OUTBOX_BYTES,
            )
            | {"metavar": "BYTES"},
            "--write-timeout": _duration(
                10.0, "a client that for so long takes nothing of what waits for it is disconnected as Too Slow"
            ),
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
                "help": "address where metrics are served; there is no password",
            },
            "--drain": _duration(
                5.0,
                "on SIGTERM or Ctrl-C, how long queued messages may take to go out; a second signal ends it at once",
            ),
            "--log-level": {
                "choices": ("debug", "info", "warning", "error"),
                "default": "info",
                "help": "the log, on standard error, holds this level and above",
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


def _host(text: str) -> str:
    if not text:
        raise ArgumentTypeError("an empty host; 0.0.0.0 or :: is every address of this machine")
    try:
        text.encode("idna")
    except UnicodeError:
        raise ArgumentTypeError(f"{text!r} is not a host name") from None
    return text


def _seconds(text: str) -> float:
    return _positive(text, "a number of seconds")


def _lease(text: str) -> float:
    seconds = _seconds(text)
    if seconds < MIN_LEASE_SECONDS:
        raise ArgumentTypeError(f"{text!r} is too short: {MIN_LEASE_SECONDS:g} seconds at least")
    return seconds


def _redis_url(text: str) -> str:
    if not re.match(r"(redis|rediss|unix)://", text):  # which may have a password in it
        raise ArgumentTypeError("this is no URL of Redis, such as redis://localhost:6379/0")
    return text


def _prefix(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+", text, re.ASCII):
        raise ArgumentTypeError(f"{text!r} is not made of letters, digits, '.', '-' and '_'")
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
    """A limit that "off", the default, takes away."""

    def parse_or_off(text: str) -> float:
        try:
            return inf if text == "off" else parse(text)
        except ArgumentTypeError as error:
            raise ArgumentTypeError(f'{error}, or "off"') from None

    return {"type": parse_or_off, "default": inf, "metavar": "N"}
