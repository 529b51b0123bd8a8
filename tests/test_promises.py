"""The tests, Make targets, options and figures that docs/RELIABILITY.md names exist."""

import re
import urllib.request

import pytest

from chatserver.operations.options import parse_options
from testkit.processes import DEADLINE, ROOT
from testkit.server import StartServer

PAGE = (ROOT / "docs" / "RELIABILITY.md").read_text()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+|test_storage_\*)\.py`", PAGE))))
def test_each_named_test_exists(name: str) -> None:
    assert list((ROOT / "tests").glob(f"{name}.py"))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([\w-]+)", PAGE))))
def test_each_named_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`--([\w-]+)", PAGE))))
def test_each_named_option_exists(option: str) -> None:
    assert option.replace("-", "_") in vars(parse_options([]))


def test_each_named_figure_is_served(start_server: StartServer) -> None:
    with urllib.request.urlopen(f"{start_server('--metrics-port', 0).metrics_url}/metrics", timeout=DEADLINE) as answer:
        served = answer.read().decode()
    for figure in sorted(set(re.findall(r"chat_\w+", PAGE))):
        assert figure in served, figure
