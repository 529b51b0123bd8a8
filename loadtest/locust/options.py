"""The options that the load tester adds to Locust's command line, environment, config file and web page."""

import os
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from locust.argument_parser import LocustArgumentParser

from loadtest.core.generator import GeneratorLimits
from loadtest.core.ledger import STAMP_BYTES
from loadtest.core.pairing import PAIRINGS
from loadtest.core.verdict import EXAMPLES, parse_condition


class Range(NamedTuple):
    """The numbers from `least` to `most`."""

    least: float
    most: float

    def check(self, number: float) -> None:
        """Raises ValueError for a number outside the range."""
        if not self.least <= number <= self.most:
            allowed = (
                f"between {self.least:.12g} and {self.most:.12g}" if self.most < inf else f"{self.least:.12g} or more"
            )
            raise ValueError(f"{number:.12g} is not {allowed}")


MESSAGE_RATE = Range(0, 10_000)
MESSAGE_SIZE = Range(STAMP_BYTES, inf)
DEFAULTS = {"message_rate": 10.0, "message_size": STAMP_BYTES, "pairing": "pairs"}  # what the web page can set
DRAIN = Range(0.1, 3600)
LIMITS = GeneratorLimits()
PERCENT = Range(1, 100_000)
MILLISECONDS = Range(0.1, 3_600_000)


def add_group(parser: LocustArgumentParser, title: str, about: str, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Add a group of options, with the settings that argparse takes. Those with "page" are in the web page, too.

    Each option gets an environment variable like Locust's own: LOCUST_MESSAGE_RATE for --message-rate.
    """
    group: Any = parser.add_argument_group(title, about)
    for name, settings in options.items():
        keywords = {key: value for key, value in settings.items() if key != "page"}
        action = group.add_argument(name, env_var=f"LOCUST_{name[2:].replace('-', '_').upper()}", **keywords)
        action.include_in_web_ui = settings.get("page", False)
        action.is_secret = action.is_required = action.is_multiple = False


def add(parser: LocustArgumentParser) -> None:
    """Add the options for any protocol."""
    add_group(parser, "Load test", "What is sent, and what fails the run", _options())


def _options() -> dict[str, dict[str, Any]]:
    return {
        "--help-all": {"action": "help", "help": "show all options, of Locust and of these locustfiles, and exit"},
        "--message-rate": {
            "page": True,
            "type": number(float, MESSAGE_RATE),
            "default": DEFAULTS["message_rate"],
            "metavar": "RATE",
            "help": "messages a second that each user is due to send, whatever the server does (default: 10)",
        },
        "--message-size": {
            "page": True,
            "type": number(int, MESSAGE_SIZE),
            "default": DEFAULTS["message_size"],
            "metavar": "BYTES",
            "help": "bytes of text in a message: at least 40, for the ledger, and at most one packet (default: 40)",
        },
        "--pairing": {
            "page": True,
            "choices": list(PAIRINGS),
            "default": DEFAULTS["pairing"],
            "help": "who writes to whom in each worker process: two users to each other (pairs), or each user to the "
            "next (ring) (default: pairs)",
        },
        "--fail-if": {
            "action": "append",
            "default": [],
            "type": _condition,
            "metavar": "CONDITION",
            "help": f"fail the run if this holds, {EXAMPLES}; may be repeated. By default a fault in the ledger "
            "or a failure in any row fails the run; a condition replaces the default for the same figure".replace(
                "%", "%%"
            ),
        },
        "--histogram": {
            "type": _writable,
            "metavar": "FILE",
            "help": "write the deliver latencies in milliseconds to FILE, as HDR percentile text",
        },
        "--ledger": {
            "type": _writable,
            "metavar": "FILE",
            "help": "write the ledger to FILE as CSV, one line for each pair",
        },
        "--drain": {
            "type": number(float, DRAIN),
            "default": 5.0,
            "metavar": "SECONDS",
            "help": "how long to wait for messages in flight when users stop; then they are lost (default: 5)",
        },
        "--max-generator-cpu": {
            "type": number(float, PERCENT),
            "default": 100 * LIMITS.cpu,
            "metavar": "PERCENT",
            "help": "the run is invalid (exit status 3) if a process used more of a core than this (default: 90)",
        },
        "--max-loop-lag": {
            "type": number(float, MILLISECONDS),
            "default": 1000 * LIMITS.lag,
            "metavar": "MS",
            "help": "the run is invalid if a Locust process's loop woke up later than this, at p99 (default: 10)",
        },
    }


def generator_limits(options: Any) -> GeneratorLimits:
    """Return the limits of --max-generator-cpu and --max-loop-lag."""
    return GeneratorLimits(options.max_generator_cpu / 100, options.max_loop_lag / 1000)


def out_of_range(options: Any, ranges: Mapping[str, Range]) -> Iterator[tuple[str, str]]:
    """Yield each option outside its range, and what is wrong with it; the web page takes any number."""
    for name, allowed in ranges.items():
        try:
            allowed.check(getattr(options, name))
        except ValueError as error:
            yield name, f"--{name.replace('_', '-')}: {error}"


def check(options: Any, most_bytes: float) -> str:
    """Return what is wrong with the options that the web page may have set; "" if nothing is.

    `most_bytes` is the longest text that these users can send. A wrong option is set back to its default; otherwise
    the page would send it again with the next run.
    """
    ranges = {"message_rate": MESSAGE_RATE, "message_size": Range(STAMP_BYTES, most_bytes)}
    for name, wrong in out_of_range(options, ranges):
        setattr(options, name, DEFAULTS[name])
        return wrong
    if options.pairing not in PAIRINGS:
        pairing, options.pairing = options.pairing, DEFAULTS["pairing"]
        return f"--pairing: {pairing!r} is not one of {', '.join(PAIRINGS)}"
    return ""


def number(kind: Callable[[str], float], allowed: Range) -> Callable[[str], float]:
    """Return a function that parses a number in this range, for argparse."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
            allowed.check(value)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None
        return value

    return parse


def _writable(text: str) -> str:
    """Check before the run, not after it, that a file can be written."""
    file = Path(text)
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ArgumentTypeError(f"{text} cannot be written")
    return text


def _condition(text: str) -> str:
    """Check a condition, which stays a string: options are sent to the workers."""
    try:
        parse_condition(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return text
