"""The inbox's API, as any end-to-end test would ask it: what came, and how much of it."""

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
# One request waits so long: in between, the programs are looked at.
WAIT_S: Final = 1
ANSWER_S: Final = 20.0
PAGE: Final = 1000

Letter = dict[str, Any]


class Letters:
    """The mails of an inbox.

    Args:
        url: the inbox's address.
        programs: those that have to run, or nothing comes.
    """

    def __init__(self, url: str, programs: Programs) -> None:
        self._url = url
        self._programs = programs
        self._last = ""
        self._opener = build_opener(ProxyHandler({}))

    def wait_for(self, recipient: str, action: str) -> Letter:
        """The next mail to somebody.

        Raises:
            DemoError: it does not come.
        """
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            if found := self.new(WAIT_S, recipient=recipient, action=action):
                return found[0]
        raise self._programs.failure(f"no {action} mail came to {recipient} within {PATIENCE_S:.0f} s", RUN)

    def new(self, timeout_s: int = 0, **wanted: str) -> list[Letter]:
        """Mails that came since the last one that was given back, up to 100; waits for one that long.

        Raises:
            DemoError: something is wrong.
        """
        self._programs.check()
        since = {"since": self._last} if self._last else {}
        found: list[Letter] = self._get("mails/wait", timeout=timeout_s, **since, **wanted)["mails"]
        if found:
            self._last = found[-1]["id"]
        return found

    def all(self) -> Iterator[Letter]:
        """Those that are kept, the oldest first; then only later ones are new."""
        after = ""
        while found := self._get("mails", limit=PAGE, after=after)["mails"]:
            yield from found
            self._last = after = found[-1]["id"]

    def accepted(self) -> int:
        """How many came."""
        return int(self._get("counts")["accepted"])

    def recipients(self) -> dict[str, int]:
        """How many came to whom."""
        return dict(self._get("counts/recipients"))

    def _get(self, path: str, **query: str | int) -> Any:
        try:
            with self._opener.open(f"{self._url}/api/{path}?{urlencode(query)}", timeout=ANSWER_S) as answer:
                return json.load(answer)
        except (URLError, OSError) as error:
            raise DemoError(f"the inbox's API does not answer: {error}") from None


def link_of(letter: Letter) -> str:
    """The link in a mail that holds its token.

    Raises:
        DemoError: there is none.
    """
    for link in letter["links"]:
        if "token" in link:
            return str(link["url"])
    raise DemoError(f"the mail to {letter['recipient']} holds no link with a token")


def cut(link: str) -> str:
    """A link that may be shown: most of its token is left out."""
    return re.sub(r"(token=.{12}).*", r"\1…", link)
