"""Makes the answers that faults cause: none, half of one, or an unreadable one."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mailroom.inbox.changes import disconnected
from mailroom.inbox.faults import Fault

HTTP_STATUS: Final = 503


def lose(fault: Fault, status: int, body: bytes) -> Response:
    """Return what is sent in place of an answer."""
    if fault.kind == "http":
        return _text(fault.http_status or HTTP_STATUS, fault.body)
    if fault.kind == "garbage":
        return _text(200, fault.body)
    return _Broken(fault, status, body)


def _text(status: int, body: str) -> Response:
    return Response(body.encode("utf-8", "replace"), status, media_type="text/plain")


class _Broken(Response):
    """Closes the connection, which ``protocol`` puts into the request's state."""

    def __init__(self, fault: Fault, status: int, body: bytes) -> None:
        super().__init__(body, status, media_type="text/xml")
        self._fault = fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport: asyncio.Transport = scope["state"]["transport"]
        if self._fault.kind == "hang":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._fault.seconds):
                    await disconnected(receive)
        elif self._fault.kind == "cut_body":
            half = self.body[: len(self.body) // 2]
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            await send({"type": "http.response.body", "body": bytes(half), "more_body": True})
        transport.abort()
        await disconnected(receive)
