"""Takes the docs' pictures of the load tester: `python -m testkit.screenshots FOLDER`."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from selenium.webdriver.common.by import By

from testkit.browser import HOW_TO_GET, MISSING, LocustPage, locust_page
from testkit.server import run_server

USERS = 20  # the server's number of places
POINTS = 7  # of a chart's line: about 20 seconds
WIDTH = 1280


def fit(page: LocustPage) -> None:
    """Make the window as high as its page."""
    for height in (100, 0):
        needed = page.browser.execute_script("return document.documentElement.scrollHeight")
        page.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": WIDTH, "height": height or needed, "deviceScaleFactor": 1, "mobile": False},
        )


def take(page: LocustPage, file: Path) -> None:
    """Take a picture once the page no longer changes."""
    fit(page)
    picture = b""

    def at_rest() -> bool:
        nonlocal picture
        before, picture = picture, page.browser.get_screenshot_as_png()
        return before == picture

    page.until("nothing that moves", at_rest)
    file.write_bytes(picture)
    print(file)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        with (
            run_server(scratch / "data") as server,
            locust_page(scratch, server, folder / "failure.png") as page,
        ):
            page.start(users=USERS, ramp_up=4)
            page.open_tab("Charts")
            for points in range(1, POINTS + 1):
                page.wait_for_points(points)
            take(page, folder / "web-charts.png")
            page.open_tab("Statistics")
            page.until("rows", page.requests)
            take(page, folder / "web-page.png")
            page.press("Stop")
            page.until("the end", lambda: page.headline("Status") == "stopped")
            page.browser.get(f"{page.url}/stats/report?theme=light")
            page.until("the report", lambda: page.browser.find_elements(By.TAG_NAME, "canvas"))
            take(page, folder / "report.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m testkit.screenshots FOLDER")
    if MISSING:
        sys.exit(f"{MISSING} not found; {HOW_TO_GET}")
    main(Path(sys.argv[1]))
