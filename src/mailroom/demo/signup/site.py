"""What the pages have in common: how a page is rendered, who is signed in, and how an error is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeVar

import psycopg
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.templating import Jinja2Templates

import mailroom
from mailroom.demo.signup import forms
from mailroom.demo.signup.accounts import Account, Accounts, Session
from mailroom.demo.signup.links import Links
from mailroom.demo.signup.mails import Mails
from mailroom.demo.signup.news import News

T = TypeVar("T")
Page = Callable[[Request], Awaitable[Response]]

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
# The page that waits for news of its mail has the only script.
SCRIPTED: Final = {
    "Content-Security-Policy": f"{HEADERS['Content-Security-Policy']}; script-src 'self'; connect-src 'self'"
}
# The pages behind mailed links. Their addresses hold the token, and must not reach other sites.
TOKEN_PATHS: Final = ("/activate", "/recover", "/magic-link", "/change-email", "/accept-invitation")
# The status of a refused link, by the error's reason; refused.html has the texts.
STATUSES: Final = {
    "unknown": 404,
    "used": 409,
    "ineligible": 409,
    "expired": 410,
    "exhausted": 410,
    "suspended": 403,
}


@dataclass(frozen=True)
class Site:
    """What the pages share; see ``create_app`` for ``keys``, ``uniform_s`` and ``scrypt_cost``."""

    accounts: Accounts
    mails: Mails
    links: Links
    news: News
    templates: Jinja2Templates
    keys: str
    uniform_s: float
    scrypt_cost: int

    def page(self, request: Request, name: str, status: int = 200, **context: Any) -> Response:
        """Return a page."""
        secretive = {"Referrer-Policy": "no-referrer"} if request.url.path in TOKEN_PATHS else {}
        scripted = SCRIPTED if request.url.path == "/sent/signup" else {}
        headers = HEADERS | secretive | scripted
        return self.templates.TemplateResponse(
            request, f"{name}.html", context, status_code=status, headers=headers
        )

    def again(
        self, request: Request, fields: dict[str, str], faults: dict[str, str], **context: Any
    ) -> Response:
        """Return the form with its errors, and with what was entered except passwords."""
        kept = {name: text for name, text in fields.items() if name not in forms.PASSWORDS}
        return self.page(request, request.url.path[1:], 422, faults=faults, **kept, **context)

    async def form(self, request: Request) -> Response:
        """An empty form."""
        language = forms.preferred_language(request.headers.get("accept-language", ""))
        done = request.query_params.get("done")
        return self.page(request, request.url.path[1:], done=done, locale=language)

    def token_form(self, action: str) -> Page:
        """Return the page behind a link. It changes nothing, because mail scanners follow links."""

        async def form(request: Request) -> Response:
            token = request.query_params.get("token", "")
            mailroom.verify(token, action, keys=self.keys)
            language = forms.preferred_language(request.headers.get("accept-language", ""))
            return self.page(request, request.url.path[1:], token=token, locale=language)

        return form

    def for_members(self, page: Callable[[Request, Account], Awaitable[Response]]) -> Page:
        """Return a page that others are sent away from, to sign in."""

        async def member_page(request: Request) -> Response:
            account = await self.signed_in(request)
            return await page(request, account) if account else to("/signin")

        return member_page

    async def signed_in(self, request: Request) -> Account | None:
        """Return the account of the request's session."""
        account, stamp = request.session.get("account"), request.session.get("stamp")
        return await self.accounts.of_session(Session(account, stamp)) if account and stamp else None

    async def slowly(self, work: Awaitable[T]) -> T:
        """Do the work in a fixed time, so that the time does not reveal whether there is an account."""
        done, _ = await asyncio.gather(work, asyncio.sleep(self.uniform_s))
        return done

    async def refused(self, request: Request, error: Exception) -> Response:
        """Why a link was refused, and what to do."""
        reason = error.reason if isinstance(error, mailroom.TokenError) else ""
        return self.page(request, "refused", STATUSES.get(reason, 400), reason=reason)

    async def taken(self, request: Request, _: Exception) -> Response:
        """That another account has the address."""
        return self.page(request, "taken", 409)

    async def failed(self, request: Request, error: Exception) -> Response:
        """Any other error, without its details."""
        status = HTTPStatus(error.status_code if isinstance(error, HTTPException) else 500)
        if isinstance(error, psycopg.OperationalError):
            status = HTTPStatus.SERVICE_UNAVAILABLE
        page = self.page(request, "failed", status, title=status.phrase)
        page.headers.update(getattr(error, "headers", None) or {})  # the header Allow
        return page


def to(path: str) -> Response:
    """Return a redirect to one of the pages."""
    return RedirectResponse(path, 303)


def begin_session(request: Request, session: Session) -> None:
    """Sign in: replace whatever session there was."""
    request.session.clear()
    request.session.update(session._asdict())
