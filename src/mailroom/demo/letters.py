"""Reads the mails and the counts from the inbox's API, as an end-to-end test would."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

from mailroom.demo.programs import RUN, DemoError, Programs

PATIENCE_S: Final = 30.0
# How long one request waits. Between requests the programs are checked.
WAIT_S: Final = 1
ANSWER_S: Final = 20.0
PAGE: Final = 1000

Letter = dict[str, Any]


class Letters:
    """The mails of an inbox.

    Args:
        url: the inbox's address.
        programs: the programs that must run for mails to arrive.
    """

    def __init__(self, url: str, programs: Programs) -> None:
        self._url = url
        self._programs = programs
        self._last = ""
        self._opener = build_opener(ProxyHandler({}))

    def wait_for(self, recipient: str, action: str) -> Letter:
        """Return the next mail to a recipient.

        Raises:
            DemoError: it does not arrive.
        """
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            if found := self.new(WAIT_S, recipient=recipient, action=action):
                return found[0]
        raise self._programs.failure(
            f"no {action} mail to {recipient} arrived within {PATIENCE_S:.0f} s", RUN
        )

    def new(self, timeout_s: int = 0, **wanted: str) -> list[Letter]:
        """Return up to 100 mails that arrived since the last call; wait up to ``timeout_s`` for one.

        Raises:
            DemoError: a program has ended, or the API does not answer.
        """
        self._programs.check()
        since = {"since": self._last} if self._last else {}
        found: list[Letter] = self._get("mails/wait", timeout=timeout_s, **since, **wanted)["mails"]
        if found:
            self._last = found[-1]["id"]
        return found

    def all(self) -> Iterator[Letter]:
        """Yield all kept mails, the oldest first; ``new`` returns only later ones."""
        after = ""
        while found := self._get("mails", limit=PAGE, after=after)["mails"]:
            yield from found
            self._last = after = found[-1]["id"]

    def accepted(self) -> int:
        """Return how many mails arrived."""
        return int(self._get("counts")["accepted"])

    def recipients(self) -> dict[str, int]:
        """Return how many mails arrived for each address."""
        return dict(self._get("counts/recipients"))

    def _get(self, path: str, **query: str | int) -> Any:
        try:
            with self._opener.open(f"{self._url}/api/{path}?{urlencode(query)}", timeout=ANSWER_S) as answer:
                return json.load(answer)
        except (URLError, OSError) as error:
            raise DemoError(f"the inbox's API does not answer: {error}") from None


def link_of(letter: Letter) -> str:
    """Return the link in a mail that holds its token.

    Raises:
        DemoError: there is none.
    """
    for link in letter["links"]:
        if "token" in link:
            return str(link["url"])
    raise DemoError(f"the mail to {letter['recipient']} holds no link with a token")


def cut(link: str) -> str:
    """Return a link without most of its token, so that it may be printed."""
    return re.sub(r"(token=.{12}).*", r"\1…", link)
