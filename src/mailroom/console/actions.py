"""Handles the page's forms: pause and resume the queue, retry, renew or drop dead letters.

Each does the same as the command of its name, and is logged. A read-only console refuses all of them.
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
from mailroom.operations.mail_state import plain
from mailroom.operations.pause import pause, resume
from mailroom.settings.collector import QueueSettings
from mailroom.web.bodies import read_form

MAX_REASON: Final = 500
MAX_TOKENS: Final = 500
DECISIONS: Final = ("retry", "renew", "drop")

log = EventLogger("console")


class ConsoleActions:
    """Each method answers one form."""

    def __init__(
        self, reader: ConsoleReader, snapshots: Snapshots, settings: QueueSettings, *, read_only: bool
    ) -> None:
        self._reader = reader
        self._snapshots = snapshots
        self._channel = settings.channel_name
        self._read_only = read_only

    async def pause(self, request: Request) -> Response:
        """Pause the queue, with a reason."""
        reason = _reason(await self._form(request))
        if not reason:
            raise HTTPException(400, "enter a reason: others will see it")
        await self._do(lambda connection: pause(connection, reason))
        log.info("paused")
        return RedirectResponse("/", 303)

    async def resume(self, request: Request) -> Response:
        """Resume the queue."""
        await self._form(request)
        await self._do(lambda connection: resume(connection, self._channel))
        log.info("resumed")
        return RedirectResponse("/", 303)

    async def decide(self, request: Request) -> Response:
        """Retry, renew or drop a dead letter."""
        form = await self._form(request)
        token, decision = request.path_params["token"], request.path_params["decision"]
        if decision not in DECISIONS or not _is_token(token):
            raise HTTPException(404, "there is no such page")
        number, reason = int(token), _reason(form) or "in the console"

        def question(connection: psycopg.Connection) -> list[Decided]:
            if decision == "drop":
                return drop(connection, [number], reason=reason)
            renew = decision == "renew"
            return retry(connection, self._channel, [number], renew=renew, reason=reason)

        (decided,) = await self._do(question)
        log.info("decided", token=number, outcome=decided.outcome)
        other = f".{decided.other}" if decided.other is not None else ""
        outcome = decided.outcome.replace(" ", "-")
        return RedirectResponse(f"/dead?decided={number}.{outcome}{other}", 303)

    async def retry_shown(self, request: Request) -> Response:
        """Retry the dead letters of a page, and renew those that have expired."""
        form = await self._form(request)
        words = form.get("tokens", "").split(",")
        if len(words) > MAX_TOKENS or not all(_is_token(word) for word in words):
            raise HTTPException(400, "the form does not name dead letters")
        tokens, reason = [int(word) for word in words], _reason(form) or "in the console"
        decided = await self._do(
            lambda connection: retry(connection, self._channel, tokens, renew=True, reason=reason)
        )
        retried = sum(one.done for one in decided)
        log.info("decided_all", tokens=len(decided), retried=retried)
        return RedirectResponse(f"/dead?retried={retried}.{len(decided) - retried}", 303)

    async def _form(self, request: Request) -> dict[str, str]:
        if self._read_only:
            raise HTTPException(403, "this console is read-only")
        return await read_form(request)

    async def _do(self, question: Question[Value]) -> Value:
        answer = await self._reader.ask(question)
        self._snapshots.forget()
        return answer


def _is_token(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _reason(form: dict[str, str]) -> str:
    return plain(form.get("reason", "").replace("\0", ""))[:MAX_REASON]
