"""The inbox's own API: mails, counts, calls, faults and settings as JSON.

A request that cannot be understood gets a 4xx with ``{"error": …}``, which names what is at fault.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from itertools import islice
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mailroom.inbox.bodies import read_body
from mailroom.inbox.calls import Call
from mailroom.inbox.faults import read_fault
from mailroom.inbox.limits import FASTEST
from mailroom.inbox.mails import Mail
from mailroom.inbox.state import Inbox

LARGEST_BODY: Final = 1_000_000
PAGE: Final = 100
LARGEST_PAGE: Final = 1000
SETTINGS: Final = ("rate", "quota_24h", "paused")


def api_routes(inbox: Inbox) -> list[Route]:
    """The routes under ``/api``."""
    api = _Api(inbox)

    def route(method: str, path: str, answer: Callable[[Any], Any]) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                given = await _read_json(request) if method in ("POST", "PATCH") else None
                return _json(answer(request if given is None else given))
            except ValueError as error:
                raise HTTPException(400, str(error)) from None

        return Route(path, endpoint, methods=[method])

    return [
        route("GET", "/api/mails", api.mails),
        route("DELETE", "/api/mails", api.clear_mails),
        route("GET", "/api/mails/{id}", api.mail),
        route("GET", "/api/counts", api.counts),
        route("GET", "/api/counts/recipients", api.recipients),
        route("GET", "/api/calls", api.calls),
        route("GET", "/api/faults", api.faults),
        route("POST", "/api/faults", api.add_fault),
        route("DELETE", "/api/faults", api.clear_faults),
        route("DELETE", "/api/faults/{id}", api.remove_fault),
        route("GET", "/api/settings", api.settings),
        route("PATCH", "/api/settings", api.change_settings),
    ]


async def explain(_request: Request, error: Exception) -> Response:
    """An HTTP error as JSON."""
    if not isinstance(error, HTTPException):
        raise error
    return _json({"error": error.detail}, error.status_code, dict(error.headers or {}))


class _Api:
    """Each method takes a request (or the JSON of its body) and gives back what is to be JSON.

    A ``ValueError`` is the client's fault.
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def mails(self, request: Request) -> Any:
        query = request.query_params
        found = self._inbox.mails.find(
            recipient=query.get("recipient", ""),
            template=query.get("template", ""),
            after=query.get("after", ""),
            limit=_whole(request, "limit", PAGE, LARGEST_PAGE),
        )
        return {"mails": [self._summary(mail) for mail in found]}

    def mail(self, request: Request) -> Any:
        mail = self._inbox.mails.get(request.path_params["id"])
        if mail is None:
            raise HTTPException(404, "no such mail is kept")
        rendered = self._inbox.render(mail)
        parts = {"text": rendered.text, "html": rendered.html} if rendered else {"text": None, "html": None}
        return self._summary(mail) | parts

    def clear_mails(self, _: Request) -> Any:
        self._inbox.mails.clear()
        return {"mails": []}

    def counts(self, _: Request) -> Any:
        counts = self._inbox.counts
        return {
            "calls": counts.calls,
            "recipients": counts.recipients,
            "accepted": counts.accepted,
            "refused": counts.refused,
            "unanswered": counts.unanswered,
            "throttled": counts.throttled,
            "dropped": counts.dropped,
            "duplicates": counts.duplicates,
            "kept": len(self._inbox.mails),
        }

    def recipients(self, _: Request) -> Any:
        return self._inbox.counts.by_recipient

    def calls(self, request: Request) -> Any:
        after = _whole(request, "after", 0, 10**15, least=0)
        newer = (call for call in self._inbox.calls if call.number > after)
        return {
            "calls": [_call(call) for call in islice(newer, _whole(request, "limit", PAGE, LARGEST_PAGE))]
        }

    def faults(self, _: Request) -> Any:
        return {"faults": self._inbox.faults.listing()}

    def add_fault(self, given: dict[str, Any]) -> Any:
        fault = read_fault(given)
        return {"id": self._inbox.faults.add(fault), "used": 0} | asdict(fault)

    def clear_faults(self, _: Request) -> Any:
        self._inbox.faults.clear()
        return {"faults": []}

    def remove_fault(self, request: Request) -> Any:
        text = request.path_params["id"]
        if not (
            text.isascii() and text.isdigit() and len(text) < 16 and self._inbox.faults.remove(int(text))
        ):
            raise HTTPException(404, "no such fault is in force")
        return {"faults": self._inbox.faults.listing()}

    def settings(self, _: Request | None) -> Any:
        limits = self._inbox.limits
        return {"rate": limits.rate, "quota_24h": limits.quota_24h, "paused": self._inbox.account.paused}

    def change_settings(self, given: dict[str, Any]) -> Any:
        for name, value in given.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name not in SETTINGS:
                raise ValueError(f"{name}: the settings are {', '.join(SETTINGS)}")
            if name == "paused" and not isinstance(value, bool):
                raise ValueError("paused: true or false")
            if name == "rate" and not (number and 0 < value <= FASTEST):
                raise ValueError(f"rate: a number above 0 and up to {FASTEST:.0f}")
            if name == "quota_24h" and value is not None and not (type(value) is int and 0 <= value < 10**12):
                raise ValueError("quota_24h: a whole number from 0, or null")
        if "rate" in given:
            self._inbox.limits.rate = float(given["rate"])
        if "quota_24h" in given:
            self._inbox.limits.quota_24h = given["quota_24h"]
        if "paused" in given:
            self._inbox.account.paused = given["paused"]
        return self.settings(None)

    def _summary(self, mail: Mail) -> dict[str, Any]:
        rendered = self._inbox.render(mail)
        return {
            "id": mail.id,
            "time": _time(mail.time),
            "source": mail.source,
            "recipient": mail.recipient,
            "template": mail.template.name,
            "data": mail.data,
            "subject": rendered.subject if rendered else None,
            "dropped": mail.dropped,
            "failure": mail.failure,
        }


def _call(call: Call) -> dict[str, Any]:
    return call._asdict() | {"time": _time(call.time)}


def _time(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _whole(request: Request, name: str, otherwise: int, most: int, *, least: int = 1) -> int:
    text = request.query_params.get(name, "")
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1
    if text and not least <= number <= most:
        raise ValueError(f"{name}: {text!r} is not a whole number from {least} to {most}")
    return number if text else otherwise


async def _read_json(request: Request) -> dict[str, Any]:
    body = await read_body(request, LARGEST_BODY)
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is no JSON: {error}") from None
    if not isinstance(given, dict):
        raise ValueError("the body is no JSON object")  # noqa: TRY004 - the client's fault, as all are here
    return given


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """ASCII: data may hold half a surrogate pair, which UTF-8 cannot."""
    return Response(json.dumps(content).encode(), status, headers, media_type="application/json")
