"""Serves the inbox's pages: the list, a mail, and the switches for faults.

They work without JavaScript; with it, ``inbox.js`` updates the page from ``/list`` and ``/switches``. A
mail's HTML is a page of its own in a sandbox: without scripts, forms, the inbox's origin, and the network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from mailroom.inbox.changes import Changes
from mailroom.inbox.event_queue import NAME
from mailroom.inbox.events import EVENT_TYPES
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.links import find_links
from mailroom.inbox.mails import KeptMail
from mailroom.inbox.messages import read_headers
from mailroom.inbox.switches import BY_NAME, other_rules, states, turn
from mailroom.web.bodies import read_form
from mailroom.web.pages import Pages

PAGE: Final = 100
# A longer request is offered as a download.
MAX_SHOWN: Final = 200_000
VIEWS: Final = {"html": "HTML", "text": "Text", "headers": "Headers", "request": "Raw request"}
# The events that a button on a mail's page publishes.
PUBLISHABLE: Final = {
    "bounce": "Bounce",
    "soft_bounce": "Bounce temporarily",
    "complaint": "Complain",
    "delay": "Delay",
    "delivery": "Deliver",
    "rendering_failure": "Fail to render",
}
FRAME_POLICY: Final = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
)
# A browser cannot show one frame in another colour scheme, so the mail's media queries are replaced.
ALWAYS, NEVER = "(min-width: 0px)", "(max-width: 0px)"
_SCHEME: Final = re.compile(
    r"\(\s{0,9}prefers-color-scheme\s{0,9}:\s{0,9}(dark|light)\s{0,9}\)", re.IGNORECASE
)
# The sandbox opens no windows, so this disables links, which would show the browser's error in the frame.
NOWHERE: Final = '<base target="_blank">'
_HEAD: Final = re.compile(r"<head(?:\s[^<>]{0,2000})?>|\A\s{0,100}<!doctype[^<>]{0,1000}>", re.IGNORECASE)
_TARGET: Final = re.compile(
    r"""(<a(?:rea)?\s[^<>]{0,2000}?)\btarget\s{0,9}=\s{0,9}(?:"[^"]{0,99}"|'[^']{0,99}'|[^\s"'<>]{1,99})""",
    re.IGNORECASE,
)
_BACK: Final = re.compile(r"/(mails/[0-9a-f-]+)?(\?[A-Za-z0-9%&=+._~-]*)?")


def page_routes(pages: InboxPages) -> list[Route]:
    """Return the routes of all pages but the first, which shares its address with SES's endpoint."""
    return [
        Route("/list", pages.rows),
        Route("/switches", pages.switches),
        Route("/switches/{name}", pages.turn, methods=["POST"]),
        Route("/faults/{id:int}/delete", pages.remove_fault, methods=["POST"]),
        Route("/mails/delete", pages.delete_all, methods=["POST"]),
        Route("/mails/{id}", pages.mail),
        Route("/mails/{id}/delete", pages.delete, methods=["POST"]),
        Route("/mails/{id}/events", pages.publish, methods=["POST"]),
        Route("/mails/{id}/html", pages.html),
        Route("/mails/{id}/eml", pages.eml),
        Route("/mails/{id}/request", pages.request),
    ]


class InboxPages:
    """The pages; each public method answers a request."""

    def __init__(self, inbox: Inbox, changes: Changes) -> None:
        self._inbox = inbox
        self._changes = changes
        self._pages = Pages("mailroom.inbox")

    async def index(self, request: Request) -> Response:
        """The first page: the list, and how to point a client here."""
        url = str(request.base_url).rstrip("/")
        return self._pages.answer("index.html", self._around(request) | {"url": url, "queue": NAME})

    async def rows(self, request: Request) -> Response:
        """The list alone."""
        return self._pages.answer("list.html", self._listing(request, request.query_params.get("open", "")))

    async def switches(self, request: Request) -> Response:
        """The switches alone."""
        return self._pages.answer("switches.html", self._switches(request.query_params.get("back", "/")))

    async def mail(self, request: Request) -> Response:
        """A mail beside the list."""
        mail = self._mail(request)
        rendered = self._inbox.render(mail)
        asked = request.query_params.get("view", "")
        usual = "request" if rendered is None else "html" if rendered.html else "text"
        view = asked if asked in VIEWS else usual
        around = self._around(request, mail.id)
        choice = {
            "view": view,
            "width": "narrow" if request.query_params.get("width") == "narrow" else "wide",
            "scheme": "dark" if request.query_params.get("scheme") == "dark" else "light",
        }

        def link(**changes: str) -> str:
            return _url(f"/mails/{mail.id}", around["place"] | choice | changes)

        shown = {
            "mail": mail,
            "brief": self._inbox.brief(mail),
            "time": _moment(mail.time),
            "rendered": rendered,
            "links": find_links(rendered),
            "views": VIEWS,
            "link": link,
            "longest": MAX_SHOWN,
            "headers": read_headers(mail.as_message(rendered)) if view == "headers" else [],
            "parameters": self._parameters(mail) if view == "request" else [],
            "events": [(event, EVENT_TYPES[event.kind], _moment(event.at)) for event in mail.events],
            "publishable": PUBLISHABLE,
            "raw": (self._inbox.requests.get(mail.call) or b"").decode("utf-8", "replace"),
        }
        return self._pages.answer("mail.html", around | choice | shown)

    async def html(self, request: Request) -> Response:
        """A mail's HTML, in the same sandbox if it is opened by itself."""
        rendered = self._inbox.render(self._mail(request))
        if not rendered or not rendered.html:
            raise HTTPException(404, "this mail has no HTML")
        headers = {"Content-Security-Policy": FRAME_POLICY}
        html = rendered.html
        if (scheme := request.query_params.get("scheme", "")) in ("light", "dark"):
            html = _SCHEME.sub(lambda found: ALWAYS if found[1].lower() == scheme else NEVER, html)
        return Response(
            _leading_nowhere(html).encode("utf-8", "replace"), headers=headers, media_type="text/html"
        )

    async def eml(self, request: Request) -> Response:
        """A mail as a file."""
        mail = self._mail(request)
        content = mail.as_message(self._inbox.render(mail))
        if not content:
            raise HTTPException(404, "this mail was dropped, so there is no message")
        return _download(content, f"{mail.id}.eml", "message/rfc822")

    async def request(self, request: Request) -> Response:
        """The request that brought a mail, as a file."""
        mail = self._mail(request)
        content = self._inbox.requests.get(mail.call)
        if content is None:
            raise HTTPException(404, "the request is no longer kept")
        return _download(content, f"{mail.id}.request.txt", "application/octet-stream")

    async def publish(self, request: Request) -> Response:
        """Publish an event about a mail."""
        form, mail = await read_form(request), self._mail(request)
        if form.get("event") not in PUBLISHABLE:
            raise HTTPException(400, f"event: one of {', '.join(PUBLISHABLE)}")
        try:
            self._inbox.publish_event(mail, form["event"])
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        return self._done(form)

    async def delete(self, request: Request) -> Response:
        """Forget a mail."""
        form = await read_form(request)
        self._inbox.mails.remove(request.path_params["id"])
        return self._done(form)

    async def delete_all(self, request: Request) -> Response:
        """Forget all mails."""
        form = await read_form(request)
        self._inbox.forget()
        return self._done(form)

    async def turn(self, request: Request) -> Response:
        """Turn a switch."""
        switch, form = BY_NAME.get(request.path_params["name"]), await read_form(request)
        if switch is None or form.get("on") not in ("0", "1"):
            raise HTTPException(400, f"turn one of {', '.join(BY_NAME)}, with on=0 or on=1")
        turn(self._inbox, switch, form["on"] == "1")
        return self._done(form)

    async def remove_fault(self, request: Request) -> Response:
        """Remove a rule that was added over the API."""
        form = await read_form(request)
        self._inbox.faults.remove(request.path_params["id"])
        return self._done(form)

    async def explain(self, error: HTTPException) -> Response:
        """An error as a page."""
        values = {"status": error.status_code, "detail": error.detail}
        return self._pages.answer("error.html", values, error.status_code)

    def _done(self, form: dict[str, str]) -> Response:
        self._changes.notify()
        back = form.get("back", "/")
        return RedirectResponse(back if _BACK.fullmatch(back) else "/", 303)

    def _mail(self, request: Request) -> KeptMail:
        mail = self._inbox.mails.get(request.path_params["id"])
        if mail is None:
            raise HTTPException(404, "this mail is no longer kept")
        return mail

    def _around(self, request: Request, open: str = "") -> dict[str, Any]:
        """Return the values for the frame of every page."""
        path = request.url.path
        back = f"{path}?{request.url.query}" if request.url.query else path
        return self._listing(request, open) | self._switches(back)

    def _listing(self, request: Request, open: str) -> dict[str, Any]:
        query = request.query_params.get("q", "").strip()[:200]
        before = request.query_params.get("before", "")
        try:
            found = self._inbox.mails.newest(containing=query, before=before, limit=PAGE + 1)
        except ValueError:
            raise HTTPException(404, "the list has no such page") from None
        rows, place = found[:PAGE], {"q": query, "before": before}
        more = len(found) > PAGE
        return {
            "rows": [(mail, self._inbox.brief(mail), _moment(mail.time)) for mail in rows],
            "query": query,
            "before": before,
            "place": place,
            "open": open,
            "kept": len(self._inbox.mails),
            "suffix": _url("", place),
            "older": _url("/", {"q": query, "before": rows[-1].id}) if more else "",
            "newest": _url("/", {"q": query}) if before else "",
            "fragment": _url("/list", place | {"open": open}),
        }

    def _switches(self, back: str) -> dict[str, Any]:
        switches = states(self._inbox)
        rules = other_rules(self._inbox)
        return {
            "switches": switches,
            "rules": rules,
            "wrong": [switch.label for switch, on in switches if on]
            + [f"Rule {rule['id']}" for rule in rules],
            "back": back if _BACK.fullmatch(back) else "/",
        }

    def _parameters(self, mail: KeptMail) -> list[tuple[str, str]]:
        """Return the parameters of an SES call, in their order."""
        raw = self._inbox.requests.get(mail.call)
        if raw is None or mail.message:
            return []
        body = raw.partition(b"\r\n\r\n")[2][:MAX_SHOWN]
        if body.startswith(b"{"):
            return _members(body)
        return parse_qsl(body.decode("ascii", "replace"), keep_blank_values=True, errors="replace")


def _leading_nowhere(html: str) -> str:
    """Return HTML whose links do nothing in a sandbox that opens no windows."""
    html = _TARGET.sub(r"\1", html)
    heads = list(_HEAD.finditer(html))
    at = next(
        (each.end() for each in heads if each[0][1:5].lower() == "head"), heads[0].end() if heads else 0
    )
    return html[:at] + NOWHERE + html[at:]


def _members(body: bytes) -> list[tuple[str, str]]:
    """Return the members of a JSON object by their paths; nothing if it cannot be read."""

    def each(path: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict | list):
            inner = value.items() if isinstance(value, dict) else enumerate(value, start=1)
            for name, member in inner:
                yield from each(f"{path}.{name}" if path else str(name), member)
        else:
            yield path, value if isinstance(value, str) else json.dumps(value)

    try:
        return list(each("", json.loads(body)))
    except (ValueError, RecursionError):
        return []


def _download(content: bytes, name: str, type: str) -> Response:
    headers = {
        "Content-Disposition": f'attachment; filename="{name}"',
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    return Response(content, headers=headers, media_type=type)


def _moment(time: datetime) -> dict[str, str]:
    """Return a time for machines, and in two lengths for people, in this machine's time zone."""
    local = time.astimezone()
    return {
        "iso": time.isoformat(timespec="milliseconds"),
        "short": f"{local:%H:%M:%S}" if local.date() == _today(local) else f"{local:%d %b %H:%M}",
        "long": f"{local:%a %d %b %Y, %H:%M:%S %Z}",
    }


def _today(like: datetime) -> Any:
    return datetime.now(like.tzinfo).date()


def _url(path: str, query: dict[str, str]) -> str:
    text = urlencode({name: value for name, value in query.items() if value}, errors="replace")
    return f"{path}?{text}" if text else path
