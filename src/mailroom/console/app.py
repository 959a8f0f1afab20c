"""The console as an ASGI application: the overview, a mail's story, the dead letters, pause and resume.

The pages work without JavaScript. With it, ``console.js`` requests ``/live`` every second and updates what
has changed. No request, however malformed, is answered with a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mailroom.console.actions import ConsoleActions
from mailroom.console.pages import ConsolePages
from mailroom.console.reader import ConsoleReader
from mailroom.console.snapshot import Snapshots
from mailroom.errors import MailroomError
from mailroom.settings.collector import QueueSettings
from mailroom.web.assets import asset_routes
from mailroom.web.guard import Guard


def create_app(
    reader: ConsoleReader,
    snapshots: Snapshots,
    settings: QueueSettings,
    address: str,
    names: Iterable[str],
    *,
    read_only: bool,
) -> ASGIApp:
    """The application.

    Args:
        reader: answers what only one viewer asks.
        snapshots: what all viewers see.
        settings: where the queue is.
        address: the address that it is bound to; see ``Guard``.
        names: more names of this server; see ``Guard``.
        read_only: refuse all changes.
    """
    pages = ConsolePages(reader, snapshots, read_only=read_only)
    actions = ConsoleActions(reader, snapshots, settings, read_only=read_only)

    async def refused(_request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        return pages.explain(error.status_code, str(error.detail))

    async def unavailable(_request: Request, error: Exception) -> Response:
        return pages.explain(503, str(error))

    app = Starlette(
        routes=[
            Route("/", pages.index),
            Route("/live", pages.live),
            Route("/why", pages.why),
            Route("/dead", pages.dead),
            Route("/pause", actions.pause, methods=["POST"]),
            Route("/resume", actions.resume, methods=["POST"]),
            Route("/dead/retry", actions.retry_shown, methods=["POST"]),
            Route("/dead/{token}/{decision:str}", actions.decide, methods=["POST"]),
            *asset_routes("mailroom.web", "mailroom.console"),
        ],
        exception_handlers={HTTPException: refused, MailroomError: unavailable, ClientDisconnect: _gone},
    )
    return Guard(app, address, names)


async def _gone(_request: Request, _error: Exception) -> Response:
    """Answer a client that left before its request was complete."""
    return Response(status_code=400)
