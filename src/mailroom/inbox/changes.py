"""Wakes whoever waits, in the event loop of the server, for something in the inbox to change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

MAX_WAITING: Final = 200


class Changes:
    """Counts changes. ``number`` read before looking, and ``after`` it: so none is missed."""

    def __init__(self) -> None:
        self.number = 0
        self._waiting = 0
        self._changed = asyncio.Event()

    def tell(self) -> None:
        """Something changed."""
        self.number += 1
        self._changed.set()
        self._changed = asyncio.Event()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places for those who wait, each of whom keeps a connection open.

        Raises:
            HTTPException: all are taken.
        """
        if self._waiting >= MAX_WAITING:
            raise HTTPException(503, f"{MAX_WAITING} wait already", {"Retry-After": "1"})
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def after(self, number: int, until_s: float, receive: Receive | None = None) -> bool:
        """Wait for a change after that one; False when there was none in time.

        Args:
            number: the one.
            until_s: on the loop's clock.
            receive: the request's; its client may leave meanwhile.

        Raises:
            ClientDisconnect: it did.
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
    """Wait for a client to leave."""
    while (await receive())["type"] != "http.disconnect":
        pass


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
