"""What the load tester adds to Locust's command line, environment variables, config file and web page."""

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
    """What a number may be."""

    least: float
    most: float

    def check(self, number: float) -> None:
        """Raises ValueError."""
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
    """Add options as argparse takes them; with an environment variable, LOCUST_... as Locust's own, for each.

    Those with `page` have a place in the web page.
    """
    group: Any = parser.add_argument_group(title, about)
    for name, settings in options.items():
        keywords = {key: value for key, value in settings.items() if key != "page"}
        action = group.add_argument(name, env_var=f"LOCUST_{name[2:].replace('-', '_').upper()}", **keywords)
        action.include_in_web_ui = settings.get("page", False)
        action.is_secret = action.is_required = action.is_multiple = False


def add(parser: LocustArgumentParser) -> None:
    """Add what runs of any protocol share."""
    add_group(parser, "Load test", "What is sent, and what fails the run", _options())


def _options() -> dict[str, dict[str, Any]]:
    return {
        "--help-all": {"action": "help", "help": "show the options of Locust and of these files, and exit"},
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
            "help": "bytes of text in a message, from 40, which the ledger needs, to what a packet takes (default: 40)",
        },
        "--pairing": {
            "page": True,
            "choices": list(PAIRINGS),
            "default": DEFAULTS["pairing"],
            "help": "who writes to whom, in each worker process: pairs write to each other, in a ring each to the next "
            "(default: pairs)",
        },
        "--fail-if": {
            "action": "append",
            "default": [],
            "type": _condition,
            "metavar": "CONDITION",
            "help": f"what must not be, {EXAMPLES}; may be given more than once. It takes the place of the default "
            "about the same figure: a fault in the ledger, or a failure in any row, fails the run".replace("%", "%%"),
        },
        "--histogram": {
            "type": _writable,
            "metavar": "FILE",
            "help": "write the deliver latencies to FILE, in milliseconds, as HDR percentile text",
        },
        "--ledger": {
            "type": _writable,
            "metavar": "FILE",
            "help": "write the ledger to FILE, as CSV, a line for each pair",
        },
        "--drain": {
            "type": number(float, DRAIN),
            "default": 5.0,
            "metavar": "SECONDS",
            "help": "how long what is still under way may take when users stop; after that it is lost (default: 5)",
        },
        "--max-generator-cpu": {
            "type": number(float, PERCENT),
            "default": 100 * LIMITS.cpu,
            "metavar": "PERCENT",
            "help": "a run in which a Locust process used more of a core than this is invalid: exit status 3 "
            "(default: 90)",
        },
        "--max-loop-lag": {
            "type": number(float, MILLISECONDS),
            "default": 1000 * LIMITS.lag,
            "metavar": "MS",
            "help": "the same for a Locust process whose loop wakes up later than this at p99 (default: 10)",
        },
    }


def limits(options: Any) -> GeneratorLimits:
    """What --max-generator-cpu and --max-loop-lag say."""
    return GeneratorLimits(options.max_generator_cpu / 100, options.max_loop_lag / 1000)


def beyond(options: Any, ranges: Mapping[str, Range]) -> Iterator[tuple[str, str]]:
    """Each option that is not in its range, and what is wrong with it: the web page takes any number."""
    for name, allowed in ranges.items():
        try:
            allowed.check(getattr(options, name))
        except ValueError as error:
            yield name, f"--{name.replace('_', '-')}: {error}"


def check(options: Any, most_bytes: float) -> str:
    """What is wrong with what the web page has set, or with what these users cannot send; "" if nothing is.

    What is wrong goes back to its default: the page would send it again with the next run.
    """
    ranges = {"message_rate": MESSAGE_RATE, "message_size": Range(STAMP_BYTES, most_bytes)}
    for name, wrong in beyond(options, ranges):
        setattr(options, name, DEFAULTS[name])
        return wrong
    if options.pairing not in PAIRINGS:
        pairing, options.pairing = options.pairing, DEFAULTS["pairing"]
        return f"--pairing: {pairing!r} is none of {', '.join(PAIRINGS)}"
    return ""


def number(kind: Callable[[str], float], allowed: Range) -> Callable[[str], float]:
    """What argparse calls for a number in this range."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
            allowed.check(value)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None
        return value

    return parse


def _writable(text: str) -> str:
    """Found out before the run, not after it."""
    file = Path(text)
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ArgumentTypeError(f"{text} cannot be written")
    return text


def _condition(text: str) -> str:
    """Stays a string: options travel to the workers."""
    try:
        parse_condition(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return text
