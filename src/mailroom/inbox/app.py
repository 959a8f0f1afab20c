"""The inbox over HTTP: SES's endpoint at ``POST /``, and the API beside it under ``/api``.

Whatever a client sends, it gets an answer of its own making (4xx) and never a traceback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mailroom.inbox.actions import reply
from mailroom.inbox.api import api_routes, explain
from mailroom.inbox.bodies import read_body
from mailroom.inbox.losses import lose
from mailroom.inbox.query import Refusal, write_error
from mailroom.inbox.state import Inbox

LARGEST_CALL: Final = 10_000_000
ABOUT: Final = """\
This is the inbox of `mailroom inbox`: an SES endpoint that keeps mail instead of sending it.

  AWS_ENDPOINT_URL_SES={url}  points a client here
  {url}/api/mails  the mails that arrived, as JSON
  {url}/api/counts  what was accepted, refused, lost
"""


def create_app(inbox: Inbox, told: Callable[[], None]) -> Starlette:
    """The application; ``told`` is called after each call of SES's, before it is answered."""

    async def ses(request: Request) -> Response:
        try:
            body = await read_body(request, LARGEST_CALL)
        except HTTPException as error:
            refusal = Refusal("RequestEntityTooLarge", str(error.detail), error.status_code)
            return Response(
                write_error(refusal), refusal.status, dict(error.headers or {}), media_type="text/xml"
            )
        status, answer, fault = reply(inbox, request.headers.get("content-type", ""), body)
        told()
        return lose(fault, status, answer) if fault else Response(answer, status, media_type="text/xml")

    async def about(request: Request) -> Response:
        return PlainTextResponse(ABOUT.format(url=str(request.base_url).rstrip("/")))

    return Starlette(
        routes=[
            Route("/", ses, methods=["POST"]),
            Route("/", about, methods=["GET"]),
            *api_routes(inbox),
        ],
        exception_handlers={HTTPException: explain, ClientDisconnect: _gone},
    )


async def _gone(_request: Request, _error: Exception) -> Response:
    """An answer for nobody: the client left before it had said everything."""
    return Response(status_code=400)
