"""Finds the links of a mail.

The expressions are bounded, so that a large mail takes linear time.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from mailroom.templates.mails import RenderedMail

MAX_PART: Final = 200_000
MAX_LINKS: Final = 100

_ANCHOR: Final = re.compile(
    r"""<a\s[^<>]{0,2000}?\bhref\s{0,20}=\s{0,20}(?:"([^"]{1,4000})"|'([^']{1,4000})'|([^\s"'<>]{1,4000}))"""
    r"""[^<>]{0,2000}>(?:(.{0,2000}?)</a\s{0,20}>)?""",
    re.IGNORECASE | re.DOTALL,
)
_TAG: Final = re.compile(r"<[^<>]{0,2000}>")
_ADDRESS: Final = re.compile(r"""\bhttps?://[^\s<>"'`\x00-\x20]{1,4000}""", re.IGNORECASE)


class Link(NamedTuple):
    """A link.

    Attributes:
        text: its text on one line; empty if that is the address.
        url: its address, with any scheme.
        token: its parameter ``token``; empty if it has none.
    """

    text: str
    url: str
    token: str

    @property
    def is_web(self) -> bool:
        """Whether it is a web address, which the page lets you click."""
        return re.match(r"https?://[^/\s]", self.url, re.IGNORECASE) is not None

    @property
    def path(self) -> str:
        """The path of its address, without a slash at the end."""
        try:
            return urlsplit(self.url).path.rstrip("/")
        except ValueError:
            return ""

    def as_json(self) -> dict[str, str]:
        """Return it for the API; the key ``token`` is missing if there is no token."""
        return {"text": self.text, "url": self.url} | ({"token": self.token} if self.token else {})


def find_links(rendered: RenderedMail | None) -> list[Link]:
    """Return the links of a mail, each address once: first those of the HTML part, then those of the text."""
    if rendered is None:
        return []
    found: dict[str, str] = {}
    for url, text in [*_anchors(rendered.html[:MAX_PART]), *_addresses(rendered.text[:MAX_PART])]:
        if len(found) < MAX_LINKS:
            found.setdefault(url, text)
    return [Link("" if text == url else text, url, _token(url)) for url, text in found.items()]


def _anchors(source: str) -> Iterable[tuple[str, str]]:
    for quoted, single, bare, inner in _ANCHOR.findall(source):
        url = html.unescape(quoted or single or bare).strip()
        if url and not url.startswith("#"):
            yield url, " ".join(html.unescape(_TAG.sub(" ", inner)).split())[:200]


def _addresses(text: str) -> Iterable[tuple[str, str]]:
    for url in _ADDRESS.findall(text):
        yield url.rstrip(".,;:!?)]}*_"), ""


def _token(url: str) -> str:
    try:
        return parse_qs(urlsplit(url).query, max_num_fields=100).get("token", [""])[0]
    except ValueError:
        return ""
