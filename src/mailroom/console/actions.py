"""What people do on the page: pause the queue and go on, mail dead letters again or let them rest.

Each is what the command of the same name does, and is told in the log. Read-only, all are refused.
"""

from __future__ import annotations

from typing import Final

import psycopg
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from mailroom.console.reader import ConsoleReader, Question, Value
from mailroom.console.snapshot import Snapshots
from mailroom.logs import EventLogger
from mailroom.operations.dead import Decided, drop, retry
from mailroom.operations.pause import pause, resume
from mailroom.operations.story import plain
from mailroom.settings.collector import QueueSettings
from mailroom.web.bodies import read_form

MAX_REASON: Final = 500
DEEDS: Final = ("retry", "renew", "drop")

log = EventLogger("console")


class ConsoleActions:
    """The forms; each method answers one."""

    def __init__(
        self, reader: ConsoleReader, snapshots: Snapshots, settings: QueueSettings, *, read_only: bool
    ) -> None:
        self._reader = reader
        self._snapshots = snapshots
        self._channel = settings.channel_name
        self._read_only = read_only

    async def pause(self, request: Request) -> Response:
        """Stop handing out mail, for a reason."""
        reason = _reason(await self._form(request))
        if not reason:
            raise HTTPException(400, "say why, for whoever asks later")
        await self._do(lambda connection: pause(connection, reason))
        log.info("paused")
        return RedirectResponse("/", 303)

    async def resume(self, request: Request) -> Response:
        """Go on."""
        await self._form(request)
        await self._do(lambda connection: resume(connection, self._channel))
        log.info("resumed")
        return RedirectResponse("/", 303)

    async def decide(self, request: Request) -> Response:
        """Decide about a dead letter."""
        form = await self._form(request)
        token, deed = request.path_params["token"], request.path_params["deed"]
        if deed not in DEEDS or not (token.isascii() and token.isdigit() and len(token) < 20):
            raise HTTPException(404, "there is no such deed")
        number, reason = int(token), _reason(form) or "on the queue's page"

        def question(connection: psycopg.Connection) -> list[Decided]:
            if deed == "drop":
                return drop(connection, [number], reason=reason)
            renew = deed == "renew"
            return retry(connection, self._channel, [number], renew=renew, reason=reason)

        (decided,) = await self._do(question)
        log.info("decided", token=number, outcome=decided.outcome)
        other = f".{decided.other}" if decided.other is not None else ""
        outcome = decided.outcome.replace(" ", "-")
        return RedirectResponse(f"/dead?decided={number}.{outcome}{other}", 303)

    async def _form(self, request: Request) -> dict[str, str]:
        if self._read_only:
            raise HTTPException(403, "this page is read-only: nothing can be changed here")
        return await read_form(request)

    async def _do(self, question: Question[Value]) -> Value:
        answer = await self._reader.ask(question)
        self._snapshots.forget()
        return answer


def _reason(form: dict[str, str]) -> str:
    return plain(form.get("reason", "").replace("\0", ""))[:MAX_REASON]
