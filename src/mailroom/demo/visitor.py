"""Visits the example application, with as much of a browser as its forms need.

It follows redirects, keeps cookies, and sends a form's hidden fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.cookiejar import CookieJar
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import HTTPCookieProcessor, ProxyHandler, Request, build_opener

from mailroom.demo.programs import APP, DemoError, Programs

ANSWER_S: Final = 20.0


@dataclass
class Page:
    """A page as a visitor sees it.

    Attributes:
        url: its address, which may hold a token.
        headline: its heading.
        notice: the text above the heading, or the error in the form.
        action: the address of its form; of the last one if it has several.
        fields: the form's fields and their values.
    """

    url: str
    status: int
    headline: str = ""
    notice: str = ""
    action: str = ""
    fields: dict[str, str] = field(default_factory=dict)


class Visitor:
    """A visitor with their own browser session.

    Args:
        url: the application's address.
        programs: the programs, of which the application is one.
    """

    def __init__(self, url: str, programs: Programs) -> None:
        self._url = url
        self._programs = programs
        # Without a proxy: the application is on loopback.
        self._opener = build_opener(ProxyHandler({}), HTTPCookieProcessor(CookieJar()))

    def open(self, address: str) -> Page:
        """Open an address or a path, and return the page.

        Raises:
            DemoError: there is no answer, or a server error.
        """
        return self._ask(Request(urljoin(self._url, address)))  # noqa: S310 - ours, by HTTP

    def submit(self, page: Page, **fields: str) -> Page:
        """Fill in and send the page's form, and return the next page.

        Raises:
            DemoError: the form lacks a field; or as ``open``.
        """
        if unknown := sorted(fields.keys() - page.fields.keys()):
            raise DemoError(f"the page {urlsplit(page.url).path} has no field {', '.join(unknown)}")
        body = urlencode(page.fields | fields).encode()
        return self._ask(
            Request(urljoin(page.url, page.action), body, {"Origin": self._url})  # noqa: S310 - ours
        )

    def _ask(self, request: Request) -> Page:
        path = urlsplit(request.full_url).path
        try:
            with self._opener.open(request, timeout=ANSWER_S) as answer:
                url, status, text = answer.url, answer.status, answer.read().decode()
        except HTTPError as refusal:
            with refusal:
                url, status, text = refusal.url, refusal.code, refusal.read().decode()
        except (URLError, OSError) as error:
            self._programs.check()
            raise self._programs.failure(f"there is no answer at {path}: {error}", APP) from None
        if status >= 500:
            raise self._programs.failure(f"the answer is {status} at {path}", APP)
        page = Page(url, status)
        _PageParser(page).feed(text)
        return page


class _PageParser(HTMLParser):
    """Reads a page of the example application into a ``Page``."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        self._page = page
        self._in_main = False
        self._select = ""
        self._part = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self._in_main |= tag == "main"
        if not self._in_main:
            return
        if tag == "h1":
            self._part = "headline"
        elif given.get("role") == "status" or (given.get("href", "").startswith("#") and tag == "a"):
            self._part = "notice"
        elif tag == "form":
            self._page.action, self._page.fields = given["action"], {}
        elif tag == "input":
            self._page.fields[given["name"]] = given.get("value", "")
        elif tag == "select":
            self._select = given["name"]
        elif tag == "option" and ("selected" in given or self._select not in self._page.fields):
            self._page.fields[self._select] = given["value"]

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - as the parser calls it
        self._part = ""

    def handle_data(self, data: str) -> None:
        if self._part:
            setattr(self._page, self._part, getattr(self._page, self._part) + data.strip())
