"""Every page of the documentation's site, served and opened in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

import pytest

from project.test_site import site_fixture  # noqa: F401
from support.browser import (  # noqa: F401
    DESK,
    PHONE,
    BrowserPages,
    accessibility_faults,
    browser_fixture,
    overflow,
    pages_fixture,
)

# The page has heard of its new width, and its transitions are through.
SETTLED: Final = """
new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))
    .then(() => Promise.allSettled(document.getAnimations().map(one => one.finished)))
    .then(() => null)
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(name="url")
def url_fixture(site: Path) -> Iterator[str]:
    """Where the site is served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("size", "opened", "scheme"), [(PHONE, DESK, "dark"), (DESK, PHONE, "light")], ids=["360", "1440"]
)
def test_every_page_fits_and_is_accessible(
    site: Path, url: str, pages: BrowserPages, size: Any, opened: Any, scheme: Any
) -> None:
    """Opened in the other width and then resized, as a reader does who zooms."""
    written = sorted(site.rglob("*.html"))
    assert written
    page = pages.open("about:blank", color_scheme=scheme, bypass_csp=True)
    faults = []
    for path in written:
        page.set_viewport_size(opened)
        page.goto(f"{url}/{path.relative_to(site)}")
        page.set_viewport_size(size)
        page.evaluate(SETTLED)
        found = path.name, overflow(page), accessibility_faults(page)
        if found[1:] != (0, []):
            faults.append(found)
    assert [] == faults
