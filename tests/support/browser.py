"""A real Chromium, the machine's own: one for the tests of a module, with a fresh context for each page.

The fixtures ``browser`` and ``pages`` are taken by their functions' names:
``from support.browser import browser_fixture, pages_fixture  # noqa: F401``. While the browser is open,
its thread counts as one with a running event loop, so that ``asyncio.run`` is for other threads.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS: Final = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
TIMEOUT_MS: Final = 20_000
PHONE: Final = {"width": 360, "height": 740}
DESK: Final = {"width": 1440, "height": 900}


@pytest.fixture(name="browser", scope="module")
def browser_fixture() -> Iterator[Browser]:
    """The browser; without one, its tests are skipped."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"there is no browser: none of {', '.join(NAMES)} is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield browser
        browser.close()


class BrowserPages:
    """Opens pages.

    Attributes:
        errors: what their consoles tell of errors, violations of a policy among them; a test that
            expects some takes them out, for what is left in the end fails it.
        requests: the addresses that they asked for.
    """

    def __init__(self, browser: Browser) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._browser = browser
        self._contexts: list[BrowserContext] = []

    def open(self, url: str, **options: Any) -> Page:
        """A page in a context of its own; the options are those of ``Browser.new_context``."""
        context = self._browser.new_context(**{"viewport": DESK} | options)
        context.set_default_timeout(TIMEOUT_MS)
        self._contexts.append(context)
        context.on("request", lambda request: self.requests.append(request.url))
        page = context.new_page()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._note)
        page.goto(url)
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)


@pytest.fixture(name="pages")
def pages_fixture(browser: Browser) -> Iterator[BrowserPages]:
    """Pages that must not report an error."""
    pages = BrowserPages(browser)
    yield pages
    pages.close()
    assert [] == pages.errors, pages.errors


def screenshots(otherwise: Path) -> Path:
    """The folder for screenshots: ``MAILROOM_SCREENSHOTS``, else this one."""
    return Path(os.environ.get("MAILROOM_SCREENSHOTS") or otherwise)


def overflow(page: Page) -> int:
    """By how many pixels a page is wider than its window."""
    width: int = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    return width


def accessibility_faults(page: Page) -> list[str]:
    """What axe-core finds wrong; frames are left out, whose scripts it would wait for.

    The page's context has to have ``bypass_csp=True``.
    """
    page.evaluate(AXE_FILE_PATH.read_text())
    found = page.evaluate("axe.run({resultTypes: ['violations'], iframes: false})")
    return [
        f"{rule['id']}: {node['html']} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]
