"""Whether a worker does what it is there for, and its numbers, over HTTP.

``/livez`` is green as long as the process does its work at all: starting it anew would not help. A
task that failed ends the process. ``/readyz`` is green when a mail that is committed now would be
sent now; else it says what is in the way. ``/metrics`` is for Prometheus.

Promises: nothing here is remembered from better days. Each answer looks anew, at most a second ago,
over a connection of its own, and takes at most two seconds when the database is deaf.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

from mailroom.errors import MailroomError
from mailroom.logs import EventLogger
from mailroom.web.listening import authority, extra_installed, listen

if TYPE_CHECKING:
    from starlette.applications import Starlette

ENDS_IN_S: Final = 2

log = EventLogger("health")

Check = Callable[[], Awaitable[Mapping[str, str]]]
Exposition = Callable[[], Awaitable[bytes]]


class HealthError(MailroomError):
    """Health cannot be served: its packages are missing."""

    exit_code = 78


class ListenError(HealthError):
    """Health cannot be served at this address now: a supervisor tries again until the port is free."""

    exit_code = 69


def listen_on(address: tuple[str, int]) -> socket.socket:
    """A socket on an address.

    Raises:
        ListenError: it is taken, or not this machine's.
    """
    return listen(
        *address,
        fault=ListenError,
        setting="MAILROOM_HTTP: ",
        taken="choose another port, or end what listens there",
        elsewhere="write an address of this machine's, such as 127.0.0.1:8027 or 0.0.0.0:8027",
    )


async def serve(listening: socket.socket, check: Check, exposition: Exposition, content_type: str) -> None:
    """Serve until cancelled.

    Args:
        listening: a socket that listens; it is closed in the end.
        check: gives back what is in the way, by the name of the part: none is green.
        exposition: what ``/metrics`` answers.
        content_type: and its type.

    Raises:
        HealthError: the extra is not installed.
    """
    with extra_installed("http", HealthError, "MAILROOM_HTTP is set, and "):
        from mailroom.web.server import Server

        server = Server(_app(check, exposition, content_type), ends_in_s=ENDS_IN_S)
    log.info("serving", address=authority(listening))
    await server.serve_on(listening)


def _app(check: Check, exposition: Exposition, content_type: str) -> Starlette:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def livez(_: Request) -> Response:
        await asyncio.sleep(0)  # the loop takes its turns
        return JSONResponse({"alive": True})

    async def readyz(_: Request) -> Response:
        found = dict(await check())
        return JSONResponse({"ready": not found, "faults": found}, 503 if found else 200)

    async def metrics(_: Request) -> Response:
        return Response(await exposition(), media_type=content_type)

    return Starlette(
        routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)],
    )
