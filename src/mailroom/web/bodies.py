"""Bodies of requests, up to a size, and forms in them."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

LARGEST_FORM: Final = 10_000
MAX_FIELDS: Final = 20


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


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a page's form.

    Raises:
        HTTPException: it is too large, or is none.
    """
    body = await read_body(request, LARGEST_FORM)
    try:
        return dict(parse_qsl(body.decode("ascii"), max_num_fields=MAX_FIELDS))
    except ValueError:
        raise HTTPException(400, "the form cannot be read") from None
