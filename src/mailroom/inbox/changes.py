"""Wakes the requests that wait for a change in the inbox, and streams the changes to the pages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import Receive

KEEP_ALIVE_S: Final = 15.0
# A page is updated at most this often, however many mails arrive.
PAUSE_S: Final = 0.2


class Changes:
    """Counts changes, in the event loop of the server.

    Read ``number`` before you read the inbox, then wait with ``after`` that number: no change is missed.
    """

    def __init__(self) -> None:
        self.number = 0
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Count a change and wake all that wait."""
        self.number += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def after(self, number: int, until_s: float, receive: Receive | None = None) -> bool:
        """Wait for a change after a number, and return whether there was one in time.

        Args:
            number: the number of the last change that was seen.
            until_s: the end of the wait, on the loop's clock.
            receive: of the request, to notice that its client has left.

        Raises:
            ClientDisconnect: the client has left.
        """
        if number != self.number:
            return True
        changed = asyncio.ensure_future(self._changed.wait())
        gone = asyncio.ensure_future(disconnected(receive)) if receive else None
        waiting = {changed, gone} if gone else {changed}
        try:
            timeout_s = max(0.0, until_s - asyncio.get_running_loop().time())
            await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if gone and gone.done():
                raise ClientDisconnect
            return changed.done()
        finally:
            for task in waiting:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def disconnected(receive: Receive) -> None:
    """Wait until the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


def event_routes(changes: Changes) -> list[Route]:
    """Return the route of the stream of changes."""

    async def stream() -> AsyncIterator[str]:
        number = changes.number
        yield f"retry: 1000\ndata: {number}\n\n"
        while True:
            changed = await changes.after(number, asyncio.get_running_loop().time() + KEEP_ALIVE_S)
            number = changes.number
            yield f"data: {number}\n\n" if changed else ": nothing new\n\n"
            await asyncio.sleep(PAUSE_S)

    async def events(_: Request) -> StreamingResponse:
        return StreamingResponse(stream(), media_type="text/event-stream")

    return [Route("/events", events)]
