"""A line of a CSV file: a user id and a text."""

import csv
from collections.abc import Callable
from pathlib import Path

from chatstorage.interface import DamagedFile


def line(user_id: int, text: str) -> bytes:
    """A line, LF included. Raises ValueError for an empty text, or one that could not be read back."""
    if not text:
        raise ValueError("the text is empty, which would mean a removal")
    quoted = '"' + text.replace('"', '""') + '"' if '"' in text or "," in text else text
    whole = f"{user_id},{quoted}".encode()
    parse(whole)
    return whole + b"\n"


def end_line(user_id: int) -> bytes:
    """The line, LF included, that removes the text of this id."""
    return b"%d,\n" % user_id


def parse(line: bytes) -> tuple[int, str]:
    """(user id, text) of a line without its LF; the text "" removes what earlier lines said of this id.

    Raises ValueError, whose text helps to mend the file.
    """
    text = line.decode()
    if stray := [character for character in "\0\r\n" if character in text]:
        raise ValueError(f"{stray[0]!r} is not allowed in a line")
    try:
        fields = next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise ValueError(f"this is not CSV: {error}") from error
    if len(fields) != 2:
        raise ValueError(f"{len(fields)} fields instead of 2")
    user_id, value = fields
    if not (user_id.isascii() and user_id.isdecimal() and int(user_id) > 0):
        raise ValueError(f"user id {user_id!r} is not a number from 1 up")
    if not value and not text.endswith(","):
        raise ValueError("the text after the user id is empty")
    return int(user_id), value


def read_lines(path: Path, add: Callable[[int, str], None]) -> bytes:
    """Pass each whole line to `add`, which raises ValueError for an invalid one; returns a torn last line.

    Unlike in CSV, a line end in quotes ends the line: none is ever written, and a quote left open by hand would
    otherwise swallow all lines after it, which would then be cut off as torn. Raises DamagedFile.
    """
    *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines, start=1):
        try:
            add(*parse(line))
        except ValueError as error:
            raise DamagedFile(path, number, str(error)) from error
    return torn
