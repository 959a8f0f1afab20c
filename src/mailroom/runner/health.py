"""Serves a worker's health and its metrics over HTTP.

``/livez`` succeeds as long as the process runs its tasks; a task that fails ends the process. ``/readyz``
succeeds when a mail that is committed now would be sent now; otherwise it names what prevents that. It warns
of what prevents no sending.
``/metrics`` is for Prometheus.

Promises: an answer about the database is at most a second old, uses a connection of its own, and takes at
most two seconds when the database does not answer.
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
Warnings = Callable[[], Mapping[str, str]]
Exposition = Callable[[], Awaitable[bytes]]


class HealthError(MailroomError):
    """Health cannot be served: its packages are missing."""

    exit_code = 78


class ListenError(HealthError):
    """Health cannot be served at this address now; a supervisor can retry until the port is free."""

    exit_code = 69


def listen_on(address: tuple[str, int]) -> socket.socket:
    """A socket on an address.

    Raises:
        ListenError: it is in use, or not an address of this machine.
    """
    return listen(
        *address,
        fault=ListenError,
        setting="MAILROOM_HTTP: ",
        taken="choose another port, or stop the process that listens there",
        elsewhere="use an address of this machine, such as 127.0.0.1:8027 or 0.0.0.0:8027",
    )


async def serve(listening: socket.socket, check: Check, warnings: Warnings, exposition: Exposition) -> None:
    """Serve until cancelled.

    Args:
        listening: a socket that listens; it is closed at the end.
        check: returns the faults, by the name of the part; none means ready.
        warnings: returns what is wrong and prevents no sending, by the name of the part.
        exposition: returns the body of ``/metrics``.

    Raises:
        HealthError: the extra is not installed.
    """
    with extra_installed("http", HealthError, "MAILROOM_HTTP is set, and "):
        from mailroom.web.server import Server

        server = Server(_app(check, warnings, exposition), ends_in_s=ENDS_IN_S)
    log.info("serving", address=authority(listening))
    await server.serve_on(listening)


def _app(check: Check, warnings: Warnings, exposition: Exposition) -> Starlette:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    from mailroom.runner.metrics import CONTENT_TYPE

    async def livez(_: Request) -> Response:
        await asyncio.sleep(0)  # shows that the loop runs its tasks
        return JSONResponse({"alive": True})

    async def readyz(_: Request) -> Response:
        found = dict(await check())
        content = {"ready": not found, "faults": found, "warnings": dict(warnings())}
        return JSONResponse(content, 503 if found else 200)

    async def metrics(_: Request) -> Response:
        return Response(await exposition(), media_type=CONTENT_TYPE)

    return Starlette(
        routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)],
    )
