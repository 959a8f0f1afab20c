"""Bodies of requests, up to a size."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request


async def read_body(request: Request, largest: int) -> bytes:
    """A request's body.

    Raises:
        HTTPException: it is larger than so many bytes; the connection is closed then.
    """
    told = request.headers.get("content-length", "")
    body = bytearray()
    if not told.isdigit() or int(told[:20]) <= largest:
        async for piece in request.stream():
            body += piece
            if len(body) > largest:
                break
        else:
            return bytes(body)
    raise HTTPException(413, f"a body has at most {largest} bytes", {"Connection": "close"})
