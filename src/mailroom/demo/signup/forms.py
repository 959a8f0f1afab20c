"""A posted form: read with suspicion, then checked field by field."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl

import idna
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request

LARGEST_BYTES: Final = 16_384
MIN_PASSWORD: Final = 10
MAX_PASSWORD: Final = 200
# What the schema takes, and somewhat less: what is refused here never becomes an error there.
# Only what any provider can mail: a plain local part, and a name that DNS could have.
_EMAIL: Final = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*"
)
_LOGIN: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,31}")


async def read(request: Request, *names: str) -> dict[str, str]:
    """The fields of a form that was posted by one of our own pages.

    Raises:
        HTTPException: it comes from elsewhere, is too large, or is none that a browser would send.
    """
    if not _from_our_page(request.headers):
        raise HTTPException(403)
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise HTTPException(415)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BYTES:
            raise HTTPException(413)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise HTTPException(400) from None
    fields = {name: value if name == "password" else value.strip() for name, value in pairs}
    if len(fields) < len(pairs) or any("\0" in value for value in fields.values()):
        raise HTTPException(400)
    if "email" in fields:
        fields["email"] = _ascii_domain(fields["email"])
    return {name: fields.get(name, "") for name in names}


def faults(fields: dict[str, str]) -> dict[str, str]:
    """What is wrong with a form's fields, each in a sentence."""
    found = {}
    if "email" in fields:
        email = fields["email"]
        if not _EMAIL.fullmatch(email) or len(email) > 254:
            found["email"] = "Type an e-mail address that takes mail from anybody, such as zoe@example.com."
    if "login" in fields and not _LOGIN.fullmatch(fields["login"]):
        found["login"] = "A login has 2 to 32 letters a–z, digits or . - _ and begins with a letter or digit."
    if "code" in fields and not re.fullmatch("[0-9]{5}", fields["code"]):
        found["code"] = "Type the five digits from the mail."
    if "password" in fields and not MIN_PASSWORD <= len(fields["password"]) <= MAX_PASSWORD:
        found["password"] = f"A password has {MIN_PASSWORD} to {MAX_PASSWORD} characters."
    return found


def _ascii_domain(email: str) -> str:
    """The address as it is mailed, so that one mailbox has one spelling: the limit counts by it.

    What has no such form stays as it is, which ``faults`` refuses.
    """
    local, at, domain = email.rpartition("@")
    if domain.isascii():
        return email
    try:
        return f"{local}{at}{idna.encode(domain, uts46=True).decode()}"
    except idna.IDNAError:
        return email


def _from_our_page(headers: Headers) -> bool:
    """Whether no other site's page made the browser send this, by headers that no page can set.

    From a page that tells no referrer the origin is ``null``; hence Sec-Fetch-Site comes first.
    """
    if site := headers.get("sec-fetch-site"):
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")
