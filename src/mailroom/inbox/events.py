"""Server-sent events for the page: one says that something changed, and the page looks what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mailroom.inbox.changes import Changes

KEEP_ALIVE_S: Final = 15.0
# However many mails come, a page looks so often at most.
PAUSE_S: Final = 0.2


def event_routes(changes: Changes) -> list[Route]:
    """The stream."""

    async def stream() -> AsyncIterator[str]:
        number = changes.number
        yield f"retry: 1000\ndata: {number}\n\n"
        while True:
            changed = await changes.after(number, asyncio.get_running_loop().time() + KEEP_ALIVE_S)
            number = changes.number
            yield f"data: {number}\n\n" if changed else ": nothing new\n\n"
            await asyncio.sleep(PAUSE_S)

    class Events(StreamingResponse):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            with changes.place():
                await super().__call__(scope, receive, send)

    async def events(_: Request) -> StreamingResponse:
        return Events(stream(), media_type="text/event-stream")

    return [Route("/events", events)]
