"""The pages to read: the picture of the queue, the story of a mail, the dead letters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mailroom.console.chart import HEIGHT, draw, heights
from mailroom.console.ledger import LOOK, MINUTE, OUTCOMES, STEP_S, Interval, Recent, recent, summed
from mailroom.console.reader import ConsoleReader
from mailroom.console.snapshot import Look, Snapshot, Snapshots
from mailroom.operations.dead import NEWEST, WHY_NOT, Decided, dead_letters
from mailroom.operations.reports import UnknownPerson, stories
from mailroom.operations.story import span, utc
from mailroom.queue.pulse import COUNT_LIMIT
from mailroom.settings.sender import MAX_RATE
from mailroom.web.pages import Pages

DRAWN: Final = 10 * MINUTE
DEAD_PAGE: Final = 50
# What a verdict and an outcome look like; others are plain.
LOOKS: Final = {
    "sent": "good",
    "renewed": "good",
    "in flight": "accent",
    "waiting": "accent",
    "retried": "warn",
    "retrying": "warn",
    "unknown": "warn",
    "unsettled": "warn",
    "rejected": "bad",
    "expired": "bad",
    "not sent": "bad",
    "not handed out": "bad",
}
DECIDED: Final = {"retried", "renewed", "dropped", "valid", "not-dead", *WHY_NOT}
_DECIDED: Final = re.compile(r"([0-9]{1,19})\.([a-z-]{1,20})(?:\.([0-9]{1,19}))?")


class ConsolePages:
    """The pages; each method answers a request."""

    def __init__(self, reader: ConsoleReader, snapshots: Snapshots, *, read_only: bool) -> None:
        self._reader = reader
        self._snapshots = snapshots
        self._read_only = read_only
        self._pages = Pages("mailroom.console")

    async def index(self, request: Request) -> Response:
        """The picture of the queue."""
        return self._pages.answer("index.html", await self._picture(request))

    async def live(self, request: Request) -> Response:
        """What changes in it, alone."""
        return self._pages.answer("live.html", await self._picture(request))

    async def why(self, request: Request) -> Response:
        """What became of somebody's last mails, or of one."""
        who = request.query_params.get("who", "").strip().replace("\0", "")[:300]
        values: dict[str, Any] = {"who": who, "told": [], "unknown": "", "hint": ""}
        if who:
            try:
                told = await self._reader.ask(lambda connection: stories(connection, who))
                values["told"] = [(story, _moments(story.events)) for story in reversed(told)]
            except UnknownPerson as error:
                values |= {"unknown": str(error), "hint": error.hint}
        return self._pages.answer("why.html", await self._around("/why") | values)

    async def dead(self, request: Request) -> Response:
        """What was rejected for good."""
        before = _dead_place(request.query_params.get("before", ""))
        letters = await self._reader.ask(
            lambda connection: dead_letters(connection, None, None, DEAD_PAGE + 1, before)
        )
        older = ""
        if len(letters) > DEAD_PAGE:
            last = letters[DEAD_PAGE - 1]
            older = f"/dead?{urlencode({'before': f'{last.at.isoformat()}_{last.id}'})}"
        values = {
            "letters": [(letter, _moment(letter.at)) for letter in letters[:DEAD_PAGE]],
            "older": older,
            "newest": "/dead" if before != NEWEST else "",
            "decided": _decided(request.query_params.get("decided", "")),
        }
        return self._pages.answer("dead.html", await self._around("/dead") | values)

    def explain(self, status: int, detail: str) -> Response:
        """An error as a page."""
        return self._pages.answer("error.html", {"status": status, "detail": detail}, status)

    async def _around(self, here: str, look: Look | None = None) -> dict[str, Any]:
        """What stands on every page."""
        look = look or await self._snapshots.look()
        return {
            "here": here,
            "read_only": self._read_only,
            "who": "",
            "now": look.snapshot,
            "away": look.away,
            "state": _state(look),
            "looks": LOOKS,
            "number": _number,
            "span": span,
            "utc": utc,
            "most": COUNT_LIMIT,
        }

    async def _picture(self, request: Request) -> dict[str, Any]:
        outcome, before, addresses = _wanted(request)
        look = await self._snapshots.look(outcome if before is None else None)
        snapshot = look.snapshot
        page: Recent | None = None
        if before is not None:
            page = await self._reader.ask(lambda connection: recent(connection, outcome, before))
        elif snapshot:
            page = snapshot.recent.get(outcome)
        place = {"outcome": outcome or "", "before": str(before or ""), "addresses": "1" if addresses else ""}

        def link(path: str = "/", **changes: str) -> str:
            return _url(path, place | changes)

        rows = [(row.shown(addresses=addresses), _moment(row.at)) for row in page.rows] if page else []
        drawn = snapshot.traffic[-DRAWN:] if snapshot else (None,) * DRAWN
        return await self._around("/", look) | {
            "outcomes": OUTCOMES,
            "outcome": outcome,
            "before": before,
            "addresses": addresses,
            "link": link,
            "rows": rows,
            "look": f"{LOOK:,}",
            "older": link(before=str(page.older)) if page and page.older else "",
            "chart": draw(drawn, STEP_S),
            "height": HEIGHT,
            "step_s": STEP_S,
            "minutes": _minutes(drawn),
            "rate": _rate(drawn),
            "limit": _limit(look.snapshot),
        }


def _wanted(request: Request) -> tuple[str | None, int | None, bool]:
    """Which outcome, before which row, and whether with addresses."""
    outcome = request.query_params.get("outcome", "")
    before = request.query_params.get("before", "")
    if (outcome and outcome not in OUTCOMES) or (
        before and not (before.isascii() and before.isdigit() and 0 < int(before[:20]) < 2**63)
    ):
        raise HTTPException(404, "the list has no such page")
    return outcome or None, int(before) if before else None, request.query_params.get("addresses") == "1"


def _state(look: Look) -> tuple[str, str]:
    """The queue in a word or two, and how it looks."""
    now = look.snapshot
    if look.away:
        return "No answer from the database", "bad"
    if now is None:
        return "Looking", ""
    if now.pause.paused_at:
        return "Paused", "warn"
    if now.nobody_sends:
        return "Nobody sends", "bad"
    if now.troubled:
        return "Sending is in trouble", "warn"
    if now.pulse.retrying:
        return "Retrying", "warn"
    if now.left:
        return "Sending", "accent"
    return "All is sent", "good"


def _rate(drawn: Sequence[Interval | None]) -> float | None:
    """Mails sent a second, over the last whole half minute that is known."""
    known = [each for each in drawn[-MINUTE // 2 - 1 : -1] if each]
    return sum(each.sent for each in known) / (len(known) * STEP_S) if known else None


def _limit(snapshot: Snapshot | None) -> str:
    """Recipients a second that may be sent to; empty where there is no limit to speak of."""
    rate = snapshot.pulse.rate if snapshot else None
    if rate is None or rate >= MAX_RATE:
        return ""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.4g}"


def _minutes(drawn: Sequence[Interval | None]) -> list[tuple[str, tuple[int, ...] | None]]:
    """The chart's numbers by the minute, newest first; None where one is not known."""
    found: list[tuple[str, tuple[int, ...] | None]] = []
    for back in range(len(drawn) // MINUTE):
        part = drawn[len(drawn) - (back + 1) * MINUTE : len(drawn) - back * MINUTE]
        known = [each for each in part if each]
        label = "this minute" if not back else f"{back} min ago"
        found.append((label, heights(summed(known)) if len(known) == len(part) else None))
    return found


def _moments(events: Sequence[tuple[datetime, str]]) -> list[tuple[dict[str, str], str]]:
    return [(_moment(at), text) for at, text in events]


def _moment(at: datetime) -> dict[str, str]:
    """A time in UTC, for people and for machines."""
    day = at.astimezone(UTC)
    is_old = datetime.now(UTC) - day > timedelta(hours=20)
    return {
        "iso": day.isoformat(timespec="milliseconds"),
        "short": f"{day:%d %b %H:%M}" if is_old else f"{day:%H:%M:%S}",
        "long": utc(at),
    }


def _number(value: int) -> str:
    return f"{value:,}"


def _dead_place(text: str) -> tuple[datetime, int]:
    if not text:
        return NEWEST
    at, _, number = text.rpartition("_")
    try:
        place = datetime.fromisoformat(at), int(number)
    except ValueError:
        raise HTTPException(404, "the list has no such page") from None
    if place[0].tzinfo is None or not 0 <= place[1] < 2**63:
        raise HTTPException(404, "the list has no such page")
    return place


def _decided(text: str) -> tuple[int, str, bool] | None:
    """What became of a dead letter: its token, the words, and whether it is done."""
    found = _DECIDED.fullmatch(text)
    if not found or found[2] not in DECIDED:
        return None
    decided = Decided(int(found[1]), found[2].replace("-", " "), int(found[3]) if found[3] else None)
    return decided.token, decided.text(), decided.done


def _url(path: str, query: dict[str, str]) -> str:
    text = urlencode({name: value for name, value in query.items() if value})
    return f"{path}?{text}" if text else path
