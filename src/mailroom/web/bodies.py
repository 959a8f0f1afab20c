"""Reads the body of a request, or the form in it, up to a size."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_FORM_BYTES: Final = 10_000
MAX_FIELDS: Final = 20


async def read_body(request: Request, largest: int) -> bytes:
    """A request's body.

    Raises:
        HTTPException: it is larger than ``largest`` bytes. The connection is closed then.
    """
    declared = request.headers.get("content-length", "")
    body = bytearray()
    if not declared.isdigit() or int(declared[:20]) <= largest:
        async for piece in request.stream():
            body += piece
            if len(body) > largest:
                break
        else:
            return bytes(body)
    raise HTTPException(413, f"the body is larger than {largest} bytes", {"Connection": "close"})


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a page's form.

    Raises:
        HTTPException: it is too large, or not a form.
    """
    body = await read_body(request, MAX_FORM_BYTES)
    try:
        return dict(parse_qsl(body.decode("ascii"), max_num_fields=MAX_FIELDS))
    except ValueError:
        raise HTTPException(400, "the form cannot be read") from None
