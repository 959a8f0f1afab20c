"""Serves style sheets, scripts and icons: a fixed set of files, read once.

Each has an ETag made from its content. Starlette's StaticFiles makes it from time and size, and the files of
a reproducible wheel all have the same time: after an upgrade a browser could keep an old file.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import PurePath
from typing import Final, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
CACHE: Final = "private, max-age=60, must-revalidate"


class _Asset(NamedTuple):
    content: bytes
    type: str
    etag: str


def asset_routes(*packages: str) -> list[Route]:
    """Routes under ``/static`` for the files of these packages' folders ``static``."""
    known = {
        file.name: _asset(file.name, file.read_bytes())
        for package in packages
        for file in files(package).joinpath("static").iterdir()
        if PurePath(file.name).suffix in TYPES
    }

    async def asset(request: Request) -> Response:
        found = known.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404, "there is no such file")
        headers = {"ETag": found.etag, "Cache-Control": CACHE}
        asked = request.headers.get("if-none-match", "")
        if found.etag in (tag.strip().removeprefix("W/") for tag in asked.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(found.content, headers=headers, media_type=found.type)

    return [Route("/static/{name}", asset)]


def _asset(name: str, content: bytes) -> _Asset:
    return _Asset(content, TYPES[PurePath(name).suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
