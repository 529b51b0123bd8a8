"""README and docs/ agree with the programs: links, options, defaults, commands."""

import re
from math import inf
from pathlib import Path

import pytest

from admin import COMMANDS
from chatserver.operations.options import parse_options
from testkit.processes import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
OPTION_TABLES = ("README.md", "docs/SERVICE.md", "docs/CLUSTER.md")
DEFAULTS = {key: value for key, value in vars(parse_options([])).items() if key not in ("max_id", "config")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_readme_is_at_most_130_lines_long() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def option_rows(page: str) -> list[tuple[str, str]]:
    """(option, default) of a page's tables; a row may have several options, each with its default."""
    rows: list[tuple[str, str]] = []
    for line in (ROOT / page).read_text().splitlines():
        if line.startswith("| `--"):
            options, default = (cell.strip() for cell in line.split("|")[1:3])
            names = re.findall(r"`--([a-z-]+)`", options)
            shown = [part.strip("` ") for part in default.split(", ")]
            rows += zip(names, shown if len(shown) == len(names) else shown * len(names), strict=True)
    return rows


@pytest.mark.parametrize("page", OPTION_TABLES)
def test_the_tables_of_options_show_the_defaults_of_the_server(page: str) -> None:
    rows = option_rows(page)
    assert rows
    for name, shown in rows:
        default = DEFAULTS[name.replace("-", "_")]
        expected = "off" if default in (None, False, inf) else default
        number = shown.removesuffix(" s")
        assert str(expected) in (shown, number) or str(expected) == f"{number}.0", f"--{name}: {shown}, not {expected}"


def test_the_readme_and_service_page_name_the_commands_of_admin() -> None:
    for page in ("README.md", "docs/SERVICE.md"):
        named = set(re.findall(r"python admin\.py (?:--\S+ \S+ )*([a-z]+)", (ROOT / page).read_text()))
        assert named <= COMMANDS.keys()
        assert {"users", "add", "passwd", "kick", "ban", "remove", "export", "backup"} <= named
