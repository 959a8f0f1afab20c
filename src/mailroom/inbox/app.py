"""Serves the inbox over HTTP: the endpoint of SES and SQS, the inbox's own API under ``/api``, and pages.

SQS and version 1 of SES's API are at ``POST /``, version 2 under ``/v2``. An invalid request
is answered with a 4xx, and never raises.
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

from mailroom.inbox import sesv2
from mailroom.inbox.api import api_routes, explain
from mailroom.inbox.changes import Changes, event_routes
from mailroom.inbox.event_queue import NAME
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.losses import lose
from mailroom.inbox.pages import InboxPages, page_routes
from mailroom.inbox.ses import Reply, reply
from mailroom.inbox.ses_protocol import Refusal, write_error
from mailroom.inbox.sqs import SqsCalls
from mailroom.web.assets import asset_routes
from mailroom.web.bodies import read_body
from mailroom.web.guard import Guard

MAX_CALL: Final = 10_000_000
# Without the headers that hold the signature and the access key.
KEPT_HEADERS: Final = ("host", "content-type", "content-length", "user-agent", "x-amz-date")
ABOUT: Final = """\
This is the inbox of `mailroom inbox`: an SES endpoint that keeps mail instead of sending it.

  AWS_ENDPOINT_URL_SES={url}  points a client here
  AWS_ENDPOINT_URL_SESV2={url}  points a client of SES's API v2 here
  AWS_ENDPOINT_URL_SQS={url}  points a reader of SES's events here, with MAILROOM_EVENTS={queue}
  {url}/  shows the mails in a browser
  {url}/api/mails  returns the mails as JSON
  {url}/api/mails/wait?recipient=  waits for a mail and returns it
  {url}/api/counts  counts accepted, refused and unanswered recipients
"""


def create_app(
    inbox: Inbox, on_call: Callable[[], None], changes: Changes, address: str, names: Iterable[str]
) -> ASGIApp:
    """Return the application.

    Args:
        inbox: the inbox.
        on_call: is called after each SES call, before it is answered.
        changes: is notified of changes over the API and the pages; ``on_call`` must notify it of calls.
        address: the address that the server is bound to.
        names: its other names; see ``Guard``.
    """
    pages = InboxPages(inbox, changes)
    queue = SqsCalls(inbox.queue, changes)

    async def aws(request: Request) -> Response:
        target = request.headers.get("x-amz-target", "")
        try:
            body = await read_body(request, MAX_CALL)
        except HTTPException as error:
            refusal = Refusal("RequestEntityTooLarge", str(error.detail), error.status_code)
            return Response(
                write_error(refusal), refusal.status, dict(error.headers or {}), media_type="text/xml"
            )
        if target:
            return await queue.answer(request, target, body)
        content_type = request.headers.get("content-type", "")
        found = reply(inbox, content_type, body, _head(request))
        on_call()
        if found.fault:
            return lose(found.fault, found.status, found.body)
        return Response(found.body, found.status, media_type="text/xml")

    async def send(request: Request) -> Response:
        """A call of SES's second API that sends mails."""
        found = sesv2.send(inbox, await read_body(request, MAX_CALL), _head(request))
        on_call()
        return lose(found.fault, found.status, found.body) if found.fault else _in_json(found)

    def look(path: str) -> Route:
        """A call of SES's second API that reads."""

        async def endpoint(request: Request) -> Response:
            return _in_json(sesv2.look(inbox, path, request.path_params.get("name", "")))

        return Route(path, endpoint, methods=["GET"])

    async def index(request: Request) -> Response:
        if _is_browser(request):
            return await pages.index(request)
        return PlainTextResponse(ABOUT.format(url=str(request.base_url).rstrip("/"), queue=NAME))

    async def failed(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and _is_browser(request):
            return await pages.explain(error)
        return await explain(request, error)

    app = Starlette(
        routes=[
            Route("/", aws, methods=["POST"]),
            Route("/", index, methods=["GET"]),
            Route(sesv2.SEND, send, methods=["POST"]),
            *map(look, sesv2.LOOKS),
            *api_routes(inbox, changes),
            *event_routes(changes),
            *page_routes(pages),
            *asset_routes("mailroom.web", "mailroom.inbox"),
        ],
        exception_handlers={HTTPException: failed, ClientDisconnect: _gone},
    )
    return Guard(app, address, names)


def _in_json(found: Reply) -> Response:
    """Return an answer of SES's second API."""
    headers = {sesv2.ERROR_TYPE: found.error} if found.error else {}
    return Response(found.body, found.status, headers, media_type=sesv2.JSON_TYPE)


def _head(request: Request) -> bytes:
    """Return a request's text before its body, without its signature."""
    kept = [
        f"{name.title()}: {request.headers[name]}\r\n" for name in KEPT_HEADERS if name in request.headers
    ]
    return f"{request.method} {request.url.path} HTTP/1.1\r\n{''.join(kept)}\r\n".encode("latin-1", "replace")


def _is_browser(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


async def _gone(_request: Request, _error: Exception) -> Response:
    """Answer a client that left before its request was complete."""
    return Response(status_code=400)
