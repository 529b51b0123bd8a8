"""The load tester's web page, in a real browser, with the real server."""

from pathlib import Path

import pytest

from testkit.browser import HOW_TO_GET, MISSING, locust_page
from testkit.server import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.measured]

CUSTOM_PARAMETERS = ["message_rate", "message_size", "pairing"]  # what the locustfile adds to the page's form


@pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} not found; {HOW_TO_GET}")
def test_a_run_is_started_watched_and_stopped_from_the_web_page(server: ServerProcess, tmp_path: Path) -> None:
    with locust_page(tmp_path, server) as page:
        assert page.field("host").get_property("value") == f"tcp://{server.address}"
        page.press("Custom parameters")
        for option in CUSTOM_PARAMETERS:
            assert page.field(option).get_property("value"), option

        page.start(users=4, ramp_up=2)
        page.until("4 users", lambda: page.headline("Users") == "4")
        page.until("rows", lambda: {"login", "deliver"} <= page.requests().keys())
        before = page.requests()["deliver"]
        page.until("more messages", lambda: page.requests()["deliver"] > before)

        page.open_tab("Charts")
        page.wait_for_points(2)
        points, drawn = page.drawn_points(), page.drawn()
        page.wait_for_points(points + 1)
        page.until("a new picture", lambda: page.drawn() != drawn)

        page.press("Stop")
        page.until("the end", lambda: page.headline("Status") == "stopped")
