"""The queue's page over HTTP: the picture, the story of a mail, the dead letters, and the brake.

The pages are read without JavaScript; with it, ``console.js`` asks ``/live`` every second for what
changes. Whatever a client sends, it gets an answer of ours and never a traceback.
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
        reader: whom to ask for what only one viewer wants.
        snapshots: what all see.
        settings: where the queue is.
        address: the one that it is bound to, and
        names: its other names: see ``Guard``.
        read_only: let nobody change anything.
    """
    pages = ConsolePages(reader, snapshots, read_only=read_only)
    actions = ConsoleActions(reader, snapshots, settings, read_only=read_only)

    async def refused(_request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        return pages.explain(error.status_code, str(error.detail))

    async def away(_request: Request, error: Exception) -> Response:
        return pages.explain(503, str(error))

    app = Starlette(
        routes=[
            Route("/", pages.index),
            Route("/live", pages.live),
            Route("/why", pages.why),
            Route("/dead", pages.dead),
            Route("/pause", actions.pause, methods=["POST"]),
            Route("/resume", actions.resume, methods=["POST"]),
            Route("/dead/{token}/{deed:str}", actions.decide, methods=["POST"]),
            *asset_routes("mailroom.web", "mailroom.console"),
        ],
        exception_handlers={HTTPException: refused, MailroomError: away, ClientDisconnect: _gone},
    )
    return Guard(app, address, names)


async def _gone(_request: Request, _error: Exception) -> Response:
    """An answer for nobody: the client left before it had said everything."""
    return Response(status_code=400)
