"""Locust's web page in a real browser, used the way a person uses it."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from testkit import HarnessError
from testkit.loadtests import GENEROUS, start_locust
from testkit.ports import answers, free_port
from testkit.processes import DEADLINE, wait_for
from testkit.server import ServerProcess

PROGRAMS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
MISSING = ", ".join(name for name, path in PROGRAMS.items() if path is None)
HOW_TO_GET = "Debian, Ubuntu: sudo apt install chromium chromium-driver"

T = TypeVar("T")

FLAGS = [
    "--headless",
    "--no-sandbox",  # not available to root in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no requests to other machines
    "--blink-settings=preferredColorScheme=1",  # the light theme
    "--window-size=1280,1000",
]

# How many points the drawing library was given. Only the component that holds it gives access to it.
DRAWN_POINTS = """
const element = document.querySelector("[_echarts_instance_]");
if (!element) return 0;
const component = element[Object.keys(element).find(key => key.startsWith("__reactFiber$"))].return;
for (let state = component.memoizedState; state; state = state.next)
    if (state.memoizedState && state.memoizedState.getOption)
        return state.memoizedState.getOption().series[0].data.length;
return 0;
"""
CANVASES = "return [...document.querySelectorAll('canvas')].map(canvas => canvas.toDataURL())"
ROWS = """
return [...document.querySelectorAll("table tbody tr")].map(row => [...row.cells].map(cell => cell.textContent))
"""


class LocustPage:
    """Locust's web page, open in a browser."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser = browser
        self.url = url
        browser.get(url)

    def until(self, what: str, condition: Callable[[], T]) -> T:
        """Wait until the condition holds; returns its value. Raises TimeoutException, which names `what`."""
        wait = WebDriverWait(self.browser, DEADLINE, 0.1, [NoSuchElementException, StaleElementReferenceException])
        return wait.until(lambda _: condition(), f"waited {DEADLINE} s in vain: {what}")

    def find(self, xpath: str) -> WebElement:
        """The element, once it is visible and no longer moves: a click on a moving one would miss it."""
        place: dict[str, int] = {}

        def at_rest() -> WebElement | None:
            nonlocal place
            element = self.browser.find_element(By.XPATH, xpath)
            before, place = place, element.rect if element.is_displayed() else {}
            return element if place and place == before else None

        element = self.until(xpath, at_rest)
        if not element:
            raise HarnessError(f"not found: {xpath}")
        return element

    def press(self, button: str) -> None:
        self.find(f"//button[normalize-space()='{button}']").click()

    def field(self, option: str) -> WebElement:
        """The field of an option; the page calls message_rate messageRate."""
        first, *others = option.split("_")
        return self.find(f"//form//*[@name='{first}{''.join(map(str.title, others))}']")

    def fill_in(self, option: str, value: object) -> None:
        self.field(option).send_keys(Keys.CONTROL + "a")  # Ctrl stays down until the call ends
        self.field(option).send_keys(str(value))

    def start(self, users: int, ramp_up: int) -> None:
        self.fill_in("user_count", users)
        self.fill_in("spawn_rate", ramp_up)
        self.press("Start")

    def open_tab(self, title: str) -> None:
        self.find(f"//*[@role='tab'][normalize-space()='{title}']").click()

    def headline(self, title: str) -> str:
        """A figure in the page's header, for instance Status."""
        return str(self.find(f"//header//*[text()='{title}']/following-sibling::*").get_property("textContent"))

    def requests(self) -> dict[str, int]:
        """Each row's number of requests. Read in one script, since the page keeps replacing its rows."""
        return {name: int(count) for _, name, count, *_ in self.browser.execute_script(ROWS)}

    def drawn_points(self) -> int:
        """How many points the first line of the first chart has."""
        points: int = self.browser.execute_script(DRAWN_POINTS)
        return points

    def wait_for_points(self, count: int) -> None:
        """Wait until the first line of the first chart has this many points."""
        self.until(f"{count} points", lambda: self.drawn_points() >= count)

    def drawn(self) -> list[str]:
        """A picture of each chart, as a data URL."""
        pictures: list[str] = self.browser.execute_script(CANVASES)
        return pictures


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """A headless browser with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS["chromium"] or ""
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    with patch.dict(os.environ, no_proxy="localhost"):  # the driver listens there
        browser = webdriver.Chrome(options, webdriver.ChromeService(PROGRAMS["chromedriver"]))
    try:
        yield browser
    finally:
        browser.quit()


@contextmanager
def run_locust_page(folder: Path, server: ServerProcess) -> Iterator[str]:
    """Start Locust with its web page; yields the page's URL. Locust must end with status 0 and without a traceback."""
    port = free_port()
    options = ("--host", f"tcp://{server.address}", "--web-host", "127.0.0.1", "--web-port", port)
    with start_locust(folder, *options, *GENEROUS, headless=False) as locust:
        wait_for("the web page", lambda: answers(port) or locust.process.poll() is not None)
        if locust.process.poll() is not None:
            raise HarnessError(locust.log)
        yield f"http://127.0.0.1:{port}"
        locust.process.terminate()
        run = locust.end(DEADLINE)
    if run.status or "Traceback" in run.explain():
        raise HarnessError(run.explain())


@contextmanager
def locust_page(folder: Path, server: ServerProcess, failure_picture: Path | None = None) -> Iterator[LocustPage]:
    """Locust's web page, open in a browser. On a failure the exception's note names a picture of the page."""
    with run_locust_page(folder, server) as url, chromium(folder / "profile") as browser:
        try:
            yield LocustPage(browser, url)
        except Exception as failure:
            picture = failure_picture or folder / "failure.png"
            browser.save_screenshot(str(picture))
            failure.add_note(f"picture of the page: {picture}")
            raise
