"""Renders the pages: the overview, the story of a mail, the dead letters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mailroom.console.chart import HEIGHT, draw, heights
from mailroom.console.ledger import LOOK, MINUTE, STEP_S, Interval, Recent, recent, summed
from mailroom.console.reader import ConsoleReader
from mailroom.console.snapshot import Look, Snapshot, Snapshots
from mailroom.operations.dead import NEWEST, WHY_NOT, Decided, dead_letters
from mailroom.operations.fates import percent
from mailroom.operations.mail_state import span, utc
from mailroom.operations.reports import UnknownPerson, stories
from mailroom.operations.verdicts import Outcome, StoryVerdict
from mailroom.queue.pulse import COUNT_LIMIT
from mailroom.settings.sender import MAX_RATE
from mailroom.web.pages import Pages

DRAWN: Final = 10 * MINUTE
DEAD_PAGE: Final = 50
# A badge's class; empty for a plain one.
LOOKS: Final[Mapping[str, str]] = {
    Outcome.SENT: "good",
    Outcome.RETRIED: "warn",
    Outcome.UNKNOWN: "warn",
    Outcome.REJECTED: "bad",
    Outcome.EXPIRED: "bad",
    Outcome.SKIPPED: "",
    Outcome.SUPPRESSED: "bad",
    StoryVerdict.DELIVERED: "good",
    StoryVerdict.DELAYED: "warn",
    StoryVerdict.BOUNCED: "bad",
    StoryVerdict.COMPLAINED: "bad",
    StoryVerdict.IN_FLIGHT: "accent",
    StoryVerdict.WAITING: "accent",
    StoryVerdict.SCHEDULED: "",
    StoryVerdict.RETRYING: "warn",
    StoryVerdict.UNSETTLED: "warn",
    StoryVerdict.HANDED_OUT: "",
    StoryVerdict.NOT_SENT: "bad",
    StoryVerdict.RENEWED: "good",
    StoryVerdict.DROPPED: "",
}
DECIDED: Final = {"retried", "renewed", "dropped", "valid", "not dead", *WHY_NOT}
_RETRIED: Final = re.compile(r"([0-9]{1,6})\.([0-9]{1,6})")
_DECIDED: Final = re.compile(r"([0-9]{1,19})\.([a-z-]{1,20})(?:\.([0-9]{1,19}))?")


class ConsolePages:
    """Each method answers requests for one page."""

    def __init__(self, reader: ConsoleReader, snapshots: Snapshots, *, read_only: bool) -> None:
        self._reader = reader
        self._snapshots = snapshots
        self._read_only = read_only
        self._pages = Pages("mailroom.console")

    async def index(self, request: Request) -> Response:
        """The overview."""
        return self._pages.answer("index.html", await self._overview(request))

    async def live(self, request: Request) -> Response:
        """The parts of the overview that change."""
        return self._pages.answer("live.html", await self._overview(request))

    async def why(self, request: Request) -> Response:
        """The story of a person's last mails, or of one token."""
        who = request.query_params.get("who", "").strip().replace("\0", "")[:300]
        values: dict[str, Any] = {"who": who, "stories": [], "unknown": "", "hint": ""}
        if who:
            try:
                found = await self._reader.ask(lambda connection: stories(connection, who))
                values["stories"] = [(story, _moments(story.events)) for story in reversed(found)]
            except UnknownPerson as error:
                values |= {"unknown": str(error), "hint": error.hint}
        return self._pages.answer("why.html", await self._shared("/why") | values)

    async def dead(self, request: Request) -> Response:
        """The dead letters."""
        before = _dead_place(request.query_params.get("before", ""))
        letters = await self._reader.ask(
            lambda connection: dead_letters(connection, None, None, DEAD_PAGE + 1, before)
        )
        older = ""
        if len(letters) > DEAD_PAGE:
            last = letters[DEAD_PAGE - 1]
            older = f"/dead?{urlencode({'before': f'{last.at.isoformat()}_{last.id}'})}"
        again = [one for one in letters[:DEAD_PAGE] if one.why_not_mailable in (None, "expired")]
        values = {
            "letters": [(letter, _moment(letter.at)) for letter in letters[:DEAD_PAGE]],
            "older": older,
            "newest": "/dead" if before != NEWEST else "",
            "decided": _decided(request.query_params.get("decided", "")),
            "retried": _RETRIED.fullmatch(request.query_params.get("retried", "")),
            "again": [str(letter.token) for letter in again],
            "renews": any(letter.why_not_mailable for letter in again),
        }
        return self._pages.answer("dead.html", await self._shared("/dead") | values)

    def explain(self, status: int, detail: str) -> Response:
        """An error page."""
        return self._pages.answer("error.html", {"status": status, "detail": detail}, status)

    async def _shared(self, here: str, look: Look | None = None) -> dict[str, Any]:
        """The values that every page needs."""
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
            "percent": lambda share: "–" if share is None else percent(share),
        }

    async def _overview(self, request: Request) -> dict[str, Any]:
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
        return await self._shared("/", look) | {
            "outcomes": list(Outcome),
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
    """The requested outcome, the row before which the list begins, and whether to show addresses."""
    outcome = request.query_params.get("outcome", "")
    before = request.query_params.get("before", "")
    if (outcome and outcome not in list(Outcome)) or (
        before and not (before.isascii() and before.isdigit() and 0 < int(before[:20]) < 2**63)
    ):
        raise HTTPException(404, "there is no such page")
    return outcome or None, int(before) if before else None, request.query_params.get("addresses") == "1"


def _state(look: Look) -> tuple[str, str]:
    """The queue's state in a few words, and its look."""
    now = look.snapshot
    if look.away:
        return "The database does not answer", "bad"
    if now is None:
        return "Loading", ""
    if now.pause.paused_at:
        return "Paused", "warn"
    if now.no_worker:
        return "No worker", "bad"
    if now.paused_actions:
        return "An action is paused", "bad"
    if now.fates.alarms or now.events_alarms:
        return "Alarm", "bad"
    if now.troubled:
        return "Workers in trouble", "warn"
    if now.pulse.retrying:
        return "Retrying", "warn"
    if now.left:
        return "Sending", "accent"
    return "All sent", "good"


def _rate(drawn: Sequence[Interval | None]) -> float | None:
    """Mails sent per second in the last half minute, without the current interval."""
    known = [each for each in drawn[-MINUTE // 2 - 1 : -1] if each]
    return sum(each.sent for each in known) / (len(known) * STEP_S) if known else None


def _limit(snapshot: Snapshot | None) -> str:
    """The limit in recipients per second; empty if there is none."""
    rate = snapshot.pulse.rate if snapshot else None
    if rate is None or rate >= MAX_RATE:
        return ""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.4g}"


def _minutes(drawn: Sequence[Interval | None]) -> list[tuple[str, tuple[int, ...] | None]]:
    """The chart's numbers by the minute, newest first; None if a minute is not fully known."""
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
    """A time in UTC, in several formats."""
    day = at.astimezone(UTC)
    return {
        "iso": day.isoformat(timespec="milliseconds"),
        "short": f"{day:%d %b %H:%M:%S}",
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
        raise HTTPException(404, "there is no such page") from None
    if place[0].tzinfo is None or not 0 <= place[1] < 2**63:
        raise HTTPException(404, "there is no such page")
    return place


def _decided(text: str) -> tuple[int, str, bool] | None:
    """The result of a decision: the token, the result in words, and whether it succeeded."""
    found = _DECIDED.fullmatch(text)
    if not found or (outcome := found[2].replace("-", " ")) not in DECIDED:
        return None
    decided = Decided(int(found[1]), outcome, int(found[3]) if found[3] else None)
    return decided.token, decided.text(), decided.done


def _url(path: str, query: dict[str, str]) -> str:
    text = urlencode({name: value for name, value in query.items() if value})
    return f"{path}?{text}" if text else path
