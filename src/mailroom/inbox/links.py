"""The links that a mail holds, and which of our actions it serves.

It reads what anybody wrote, in time that grows with its length: hence expressions with bounds, where
an HTML parser of Python's takes quadratic time over a mail that is made for that.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from mailroom.actions import ACTIONS
from mailroom.inbox.messages import Rendered

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
        text: what it shows, on one line; empty when that is its address.
        url: where it leads, of whatever scheme.
        token: its parameter ``token``; empty without one.
    """

    text: str
    url: str
    token: str

    @property
    def is_web(self) -> bool:
        """Whether it leads to a web page, so that one may click it."""
        return re.match(r"https?://[^/\s]", self.url, re.IGNORECASE) is not None

    def as_json(self) -> dict[str, str]:
        """Without a token where there is none."""
        return {"text": self.text, "url": self.url} | ({"token": self.token} if self.token else {})


def find_links(rendered: Rendered | None) -> list[Link]:
    """The links of a mail, each address once: those of the HTML part first, then those of the text."""
    if rendered is None:
        return []
    found: dict[str, str] = {}
    for url, text in [*_anchors(rendered.html[:MAX_PART]), *_addresses(rendered.text[:MAX_PART])]:
        if len(found) < MAX_LINKS:
            found.setdefault(url, text)
    return [Link("" if text == url else text, url, _token(url)) for url, text in found.items()]


def action_of(template: str, links: Iterable[Link]) -> str | None:
    """The name of the action of ours that a mail serves: by its template, else by where a token leads."""
    for action in ACTIONS:
        if template == action.template:
            return action.name
    for link in links:
        for action in ACTIONS:
            if link.token and _path(link.url).endswith(action.prefix.decode()):
                return action.name
    return None


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


def _path(url: str) -> str:
    try:
        return urlsplit(url).path.rstrip("/")
    except ValueError:
        return ""
