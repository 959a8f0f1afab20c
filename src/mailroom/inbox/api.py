"""Serves the inbox's own API under ``/api``: mails, counts, calls, faults and settings as JSON.

An invalid request is answered with a 4xx and ``{"error": …}``, which names the parameter or field at fault.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mailroom.inbox.changes import Changes
from mailroom.inbox.events import EVENT_TYPES, Event
from mailroom.inbox.faults import read_fault
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.limits import MAX_RATE
from mailroom.inbox.links import find_links
from mailroom.inbox.mails import KeptMail
from mailroom.inbox.messages import read_headers
from mailroom.inbox.records import CallRecord
from mailroom.web.bodies import read_body

MAX_BODY: Final = 1_000_000
PAGE: Final = 100
MAX_PAGE: Final = 1000
WAIT_S: Final = 30
MAX_WAIT_S: Final = 300
MAX_AWAITED: Final = 100
SETTINGS: Final = ("rate", "quota_24h", "paused")


def api_routes(inbox: Inbox, changes: Changes) -> list[Route]:
    """Return the routes under ``/api``."""
    api = _Api(inbox)

    def route(method: str, path: str, answer: Callable[[Any], Any]) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                given = await _read_json(request) if method in ("POST", "PATCH") else None
                content = answer(request if given is None else given)
                if method != "GET":
                    changes.notify()
                return _json(content)
            except ValueError as error:
                raise HTTPException(400, str(error)) from None

        return Route(path, endpoint, methods=[method])

    async def wait(request: Request) -> Response:
        try:
            until_s = asyncio.get_running_loop().time() + _whole(
                request, "timeout", WAIT_S, MAX_WAIT_S, least=0
            )
            wanted = api.wanted(request)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        while True:
            number = changes.number
            mails = wanted()
            if mails or not await changes.after(number, until_s, request.receive):
                return _json({"mails": mails})

    async def publish(request: Request) -> Response:
        try:
            content = api.publish(request, await _read_json(request))
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        changes.notify()
        return _json(content)

    return [
        Route("/api/mails/wait", wait),
        Route("/api/mails/{id}/events", publish, methods=["POST"]),
        route("GET", "/api/mails", api.mails),
        route("DELETE", "/api/mails", api.clear_mails),
        route("GET", "/api/mails/{id}", api.mail),
        route("DELETE", "/api/mails/{id}", api.remove_mail),
        route("GET", "/api/counts", api.counts),
        route("GET", "/api/counts/recipients", api.recipients),
        route("GET", "/api/calls", api.calls),
        route("GET", "/api/faults", api.faults),
        route("POST", "/api/faults", api.add_fault),
        route("DELETE", "/api/faults", api.clear_faults),
        route("DELETE", "/api/faults/{id:int}", api.remove_fault),
        route("GET", "/api/settings", api.settings),
        route("PATCH", "/api/settings", api.change_settings),
    ]


async def explain(_request: Request, error: Exception) -> Response:
    """Return an HTTP error as JSON."""
    if not isinstance(error, HTTPException):
        raise error
    return _json({"error": error.detail}, error.status_code, dict(error.headers or {}))


class _Api:
    """The endpoints: each takes a request, or the JSON of its body, and returns its answer to become JSON.

    A ``ValueError`` means that the request is invalid.
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def mails(self, request: Request) -> Any:
        query = request.query_params
        found = self._inbox.mails.find(
            recipient=query.get("recipient", ""),
            template=query.get("template", ""),
            after=query.get("after", ""),
            limit=_whole(request, "limit", PAGE, MAX_PAGE),
        )
        return {"mails": [self._summary(mail) for mail in found]}

    def mail(self, request: Request) -> Any:
        return self._whole_mail(self._kept(request))

    def publish(self, request: Request, given: dict[str, Any]) -> Any:
        mail, unknown = self._kept(request), given.keys() - {"event", "after_s"}
        if unknown:
            raise ValueError(f"{min(unknown)}: not a field; an event has event, after_s")
        rule = read_fault({"kind": "event"} | given)
        self._inbox.publish_event(mail, rule.event, rule.after_s)
        return {"events": [_event(event) for event in mail.events]}

    def wanted(self, request: Request) -> Callable[[], Any]:
        """Return a function that returns the mails which match and have arrived since its last call."""
        query = request.query_params
        recipient, template = query.get("recipient", ""), query.get("template", "")
        action, after, start = query.get("action", ""), "", None
        if action and not self._inbox.knows(action):
            known = ", ".join(self._inbox.kinds.names)
            raise ValueError(f"action: {action!r} has no template here, and is not one of {known}")
        if since := query.get("since", ""):
            try:
                self._inbox.mails.find(after=since, limit=1)
                after = since
            except ValueError:
                start = _moment(since)

        def find() -> Any:
            nonlocal after
            new = self._inbox.mails.find(recipient=recipient, template=template, after=after)
            if new:
                after = new[-1].id
            found = (
                mail
                for mail in new
                if (start is None or mail.time >= start) and (not action or self._inbox.is_of(mail, action))
            )
            return [self._whole_mail(mail) for mail in islice(found, MAX_AWAITED)]

        return find

    def remove_mail(self, request: Request) -> Any:
        if not self._inbox.mails.remove(request.path_params["id"]):
            raise HTTPException(404, "no mail of this id is kept")
        return {}

    def clear_mails(self, _: Request) -> Any:
        self._inbox.forget()
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
        return {"calls": [_call(call) for call in islice(newer, _whole(request, "limit", PAGE, MAX_PAGE))]}

    def faults(self, _: Request) -> Any:
        return {"faults": self._inbox.faults.listing()}

    def add_fault(self, given: dict[str, Any]) -> Any:
        fault = read_fault(given)
        return {"id": self._inbox.faults.add(fault), "used": 0} | asdict(fault)

    def clear_faults(self, _: Request) -> Any:
        self._inbox.faults.clear()
        return {"faults": []}

    def remove_fault(self, request: Request) -> Any:
        if not self._inbox.faults.remove(request.path_params["id"]):
            raise HTTPException(404, "no rule of this id is in force")
        return {"faults": self._inbox.faults.listing()}

    def settings(self, _: Request | None) -> Any:
        limits = self._inbox.limits
        return {"rate": limits.rate, "quota_24h": limits.quota_24h, "paused": self._inbox.account.paused}

    def change_settings(self, given: dict[str, Any]) -> Any:
        for name, value in given.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name not in SETTINGS:
                raise ValueError(f"{name}: not a setting; the settings are {', '.join(SETTINGS)}")
            if name == "paused" and not isinstance(value, bool):
                raise ValueError(f"paused: {value!r} is not true or false")
            if name == "rate" and not (number and 0 < value <= MAX_RATE):
                raise ValueError(f"rate: {value!r} is not a number above 0 and up to {MAX_RATE:.0f}")
            if name == "quota_24h" and value is not None and not (type(value) is int and 0 <= value < 10**12):
                raise ValueError(f"quota_24h: {value!r} is not a whole number from 0, or null")
        if "rate" in given:
            self._inbox.limits.rate = float(given["rate"])
        if "quota_24h" in given:
            self._inbox.limits.quota_24h = given["quota_24h"]
        if "paused" in given:
            self._inbox.account.paused = given["paused"]
        return self.settings(None)

    def _kept(self, request: Request) -> KeptMail:
        mail = self._inbox.mails.get(request.path_params["id"])
        if mail is None:
            raise HTTPException(404, "no mail of this id is kept")
        return mail

    def _summary(self, mail: KeptMail) -> dict[str, Any]:
        brief = self._inbox.brief(mail)
        return {
            "id": mail.id,
            "time": _time(mail.time),
            "source": mail.source,
            "recipient": mail.recipient,
            "template": mail.template.name,
            "action": brief.action,
            "language": brief.language,
            "code": brief.code,
            "data": mail.data,
            "subject": brief.subject,
            "dropped": mail.dropped,
            "failure": mail.failure,
        }

    def _whole_mail(self, mail: KeptMail) -> dict[str, Any]:
        rendered = self._inbox.render(mail)
        return self._summary(mail) | {
            "text": rendered.text if rendered else None,
            "html": rendered.html if rendered else None,
            "links": [link.as_json() for link in find_links(rendered)],
            "headers": read_headers(mail.as_message(rendered)),
            "events": [_event(event) for event in mail.events],
        }


def _call(call: CallRecord) -> dict[str, Any]:
    return call._asdict() | {"time": _time(call.time)}


def _event(event: Event) -> dict[str, str]:
    return {"event": event.kind, "type": EVENT_TYPES[event.kind], "time": _time(event.at)}


def _time(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _moment(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"since: {text!r} is neither the id of a mail of this inbox nor a time") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _whole(request: Request, name: str, otherwise: int, most: int, *, least: int = 1) -> int:
    text = request.query_params.get(name, "")
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1
    if text and not least <= number <= most:
        raise ValueError(f"{name}: {text!r} is not a whole number from {least} to {most}")
    return number if text else otherwise


async def _read_json(request: Request) -> dict[str, Any]:
    body = await read_body(request, MAX_BODY)
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise ValueError("the body is not a JSON object")  # noqa: TRY004 - see _Api
    return given


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return JSON in ASCII: data may hold half a surrogate pair, which UTF-8 cannot encode."""
    return Response(json.dumps(content).encode(), status, headers, media_type="application/json")
