"""The inbox over HTTP: SES's endpoint at ``POST /``, the API under ``/api``, and the pages beside them.

Whatever a client sends, it gets an answer of its own making (4xx) and never a traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mailroom.inbox.api import api_routes, explain
from mailroom.inbox.calls import KEPT_HEADERS
from mailroom.inbox.changes import Changes, event_routes
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.losses import lose
from mailroom.inbox.pages import Front, page_routes
from mailroom.inbox.ses import reply
from mailroom.inbox.ses_protocol import Refusal, write_error
from mailroom.web.assets import asset_routes
from mailroom.web.bodies import read_body
from mailroom.web.guard import Guard

LARGEST_CALL: Final = 10_000_000
ABOUT: Final = """\
This is the inbox of `mailroom inbox`: an SES endpoint that keeps mail instead of sending it.

  AWS_ENDPOINT_URL_SES={url}  points a client here
  {url}/  shows the mails, in a browser
  {url}/api/mails  the mails that arrived, as JSON
  {url}/api/mails/wait?recipient=  the same, once there is one
  {url}/api/counts  what was accepted, refused, lost
"""


def create_app(
    inbox: Inbox, told: Callable[[], None], changes: Changes, address: str, names: Iterable[str]
) -> ASGIApp:
    """The application.

    Args:
        inbox: what it shows.
        told: is called after each call of SES's, before it is answered.
        changes: is told of whatever changes here.
        address: the one that it is bound to, and
        names: its other names: see ``Guard``.
    """
    front = Front(inbox, changes)

    async def ses(request: Request) -> Response:
        try:
            body = await read_body(request, LARGEST_CALL)
        except HTTPException as error:
            refusal = Refusal("RequestEntityTooLarge", str(error.detail), error.status_code)
            return Response(
                write_error(refusal), refusal.status, dict(error.headers or {}), media_type="text/xml"
            )
        content_type = request.headers.get("content-type", "")
        status, answer, fault = reply(inbox, content_type, body, _head(request))
        told()
        changes.tell()
        return lose(fault, status, answer) if fault else Response(answer, status, media_type="text/xml")

    async def index(request: Request) -> Response:
        if _is_browser(request):
            return await front.index(request)
        return PlainTextResponse(ABOUT.format(url=str(request.base_url).rstrip("/")))

    async def failed(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and _is_browser(request):
            return await front.explain(error)
        return await explain(request, error)

    app = Starlette(
        routes=[
            Route("/", ses, methods=["POST"]),
            Route("/", index, methods=["GET"]),
            *api_routes(inbox, changes),
            *event_routes(changes),
            *page_routes(front),
            *asset_routes("mailroom.web", "mailroom.inbox"),
        ],
        exception_handlers={HTTPException: failed, ClientDisconnect: _gone},
    )
    return Guard(app, address, names)


def _head(request: Request) -> bytes:
    """A request up to its body, without what it was signed with."""
    kept = [
        f"{name.title()}: {request.headers[name]}\r\n" for name in KEPT_HEADERS if name in request.headers
    ]
    return f"{request.method} {request.url.path} HTTP/1.1\r\n{''.join(kept)}\r\n".encode("latin-1", "replace")


def _is_browser(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


async def _gone(_request: Request, _error: Exception) -> Response:
    """An answer for nobody: the client left before it had said everything."""
    return Response(status_code=400)
