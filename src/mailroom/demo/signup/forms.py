"""Reads and checks posted forms."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl

import idna
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_BYTES: Final = 16_384
MIN_PASSWORD: Final = 10
MAX_PASSWORD: Final = 200
# The fields that are never trimmed and never shown again.
PASSWORDS: Final = ("password", "current")
# The languages of the mails. The pages themselves stay in English.
LANGUAGES: Final = {"en": "English", "de": "Deutsch"}
# Stricter than the schema, so that a valid field never causes a database error.
# An address that any provider can mail: a plain local part, and a valid DNS name.
_EMAIL: Final = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*"
)
_LOGIN: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,31}")


async def read(request: Request, *names: str) -> dict[str, str]:
    """Return the fields of a form that was posted by one of the application's own pages.

    Raises:
        HTTPException: it comes from another site, is too large, or is not a valid form.
    """
    if not _from_our_page(request.headers):
        raise HTTPException(403)
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise HTTPException(415)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise HTTPException(413)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise HTTPException(400) from None
    fields = {name: value if name in PASSWORDS else value.strip() for name, value in pairs}
    if len(fields) < len(pairs) or any("\0" in value for value in fields.values()):
        raise HTTPException(400)
    if "email" in fields:
        fields["email"] = _ascii_domain(fields["email"])
    return {name: fields.get(name, "") for name in names}


def faults(fields: dict[str, str]) -> dict[str, str]:
    """Return the errors of a form by its fields."""
    found = {}
    if "email" in fields:
        email = fields["email"]
        if not _EMAIL.fullmatch(email) or len(email) > 254:
            found["email"] = "Enter an e-mail address such as zoe@example.com."
    if "login" in fields and not _LOGIN.fullmatch(fields["login"]):
        found["login"] = "A login has 2 to 32 letters a–z, digits or . - _ and begins with a letter or digit."
    if fields.get("locale") and fields["locale"] not in LANGUAGES:
        found["locale"] = f"Choose one of {', '.join(LANGUAGES.values())}."
    if "code" in fields and not re.fullmatch("[0-9]{5}", fields["code"]):
        found["code"] = "Enter the five digits from the mail."
    if "password" in fields and not MIN_PASSWORD <= len(fields["password"]) <= MAX_PASSWORD:
        found["password"] = f"A password has {MIN_PASSWORD} to {MAX_PASSWORD} characters."
    return found


def preferred_language(accepted: str) -> str:
    """Return the first of our languages that a browser's header Accept-Language names, else English."""
    named = (re.split("[-;]", part.strip().lower())[0] for part in accepted.split(","))
    return next((language for language in named if language in LANGUAGES), "en")


def _ascii_domain(email: str) -> str:
    """Return an address with its domain in ASCII, so that one mailbox has one spelling for the limit.

    An address without such a form is returned unchanged, and ``faults`` refuses it.
    """
    local, at, domain = email.rpartition("@")
    if domain.isascii():
        return email
    try:
        return f"{local}{at}{idna.encode(domain, uts46=True).decode()}"
    except idna.IDNAError:
        return email


def _from_our_page(headers: Headers) -> bool:
    """Whether no other site's page caused this request, by headers that no page can set.

    A page with the policy no-referrer sends the origin ``null``, so Sec-Fetch-Site is read first.
    """
    if site := headers.get("sec-fetch-site"):
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")
