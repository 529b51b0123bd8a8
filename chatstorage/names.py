"""Names that look alike (docs/PROTOCOL.md, section 6): each name has a few looks, and each look belongs to one user."""

import unicodedata
from functools import cache
from pathlib import Path

DATA = Path(__file__).parent / "confusables.txt"
UNICODE = "17.0.0"  # the version of these data
MOST_LOOKS = 3


def skeleton(name: str) -> str:
    """The first look: compatibility forms and case are folded away. No two users have the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def looks(name: str) -> list[str]:
    """The skeleton, then the name in letters of another script that look alike (UTS 39), if that is something else.

    Capitals count as they are written: Cyrillic ve looks like B, but small ve like no b. A stroke counts as I and as l.
    """
    found = [skeleton(name)]
    if not name.isascii():
        letters = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", name))
        found += [skeleton(letters.translate(_look_alikes(stroke))) for stroke in "li"]
    return list(dict.fromkeys(found))


@cache
def _look_alikes(stroke: str) -> dict[int, str]:
    """By code point: what looks like it. What looks like a stroke becomes this letter."""
    found = {}
    for line in DATA.read_text("ascii").splitlines():
        if not line.startswith("#"):
            target, *sources = line.split()
            letters = "".join(chr(int(point, 16)) for point in target.split("+"))
            found.update({int(source, 16): stroke if letters == "l" else letters for source in sources})
    return found
