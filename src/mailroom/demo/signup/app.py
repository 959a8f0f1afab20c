"""Serves the pages: each GET shows one, each POST does something and redirects to the next.

A page that asks for an address gives the same answer, after the same time, with and without an account.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import mailroom
from mailroom.demo.signup import forms, passwords
from mailroom.demo.signup.accounts import Account, Accounts

T = TypeVar("T")

HERE: Final = Path(__file__).parent
# A distinct name, because a browser shares the cookies of localhost between all ports.
COOKIE: Final = "mailroom_example"
SESSION_SECONDS: Final = 24 * 3600
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
# The address of a page behind a mailed link holds the token, and must not reach other sites.
TOKEN_PAGE: Final = {"Referrer-Policy": "no-referrer"}

# The status of a refused link, by the error's reason; refused.html has the texts.
STATUSES: Final = {
    "unknown": 404,
    "used": 409,
    "ineligible": 409,
    "expired": 410,
    "exhausted": 410,
    "suspended": 403,
}
REFUSED: Final = "Wrong address or password, or an account that is not active yet."
# The path of a form that asks for a mail, and the mail's action.
MAILS: Final = {"/resend": "activation", "/forgot": "password_recovery"}


def create_app(
    database_url: str,
    keys: str,
    *,
    session_secret: str,
    app_name: str = "Acme",
    inbox_url: str = "",
    mail_limit: int = 3,
    mail_minutes: int = 15,
    https: bool = False,
    uniform_s: float = 0.4,
    scrypt_cost: int = passwords.COST,
) -> Starlette:
    """Return the example as an ASGI application.

    Args:
        database_url: a database with Mailroom's migrations.
        keys: ``MAILROOM_SECRET_KEY``, as the collector has it.
        session_secret: signs the session's cookie; not one of the keys.
        app_name: shown on each page.
        inbox_url: where a demonstration shows the mails.
        mail_limit: how many mails of one kind an account gets in ``mail_minutes``.
        mail_minutes: see ``mail_limit``.
        https: whether browsers use HTTPS; then they send the cookie only over HTTPS.
        uniform_s: the least time that an answer about an address takes.
        scrypt_cost: scrypt's N.

    Raises:
        ValueError: a key is not valid.
    """
    mailroom.sign(bytes(32), "activation", keys=keys)  # checks the keys now, not at the first request
    accounts = Accounts(database_url, keys, mail_limit, mail_minutes)
    templates = Jinja2Templates(HERE / "templates")
    templates.env.globals |= {"app_name": app_name, "inbox_url": inbox_url, "forms": forms}
    templates.env.globals |= {"mail_limit": mail_limit, "mail_minutes": mail_minutes}
    pages = SignupPages(accounts, keys, templates, uniform_s, scrypt_cost)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await accounts.prepare()
        yield

    return Starlette(
        routes=[
            Route("/", pages.home),
            Route("/signup", pages.form),
            Route("/signup", pages.sign_up, methods=["POST"]),
            Route("/activate", pages.activation_form),
            Route("/activate", pages.activate, methods=["POST"]),
            Route("/resend", pages.form),
            Route("/resend", pages.mail, methods=["POST"]),
            Route("/signin", pages.form),
            Route("/signin", pages.sign_in, methods=["POST"]),
            Route("/signout", pages.sign_out, methods=["POST"]),
            Route("/forgot", pages.form),
            Route("/forgot", pages.mail, methods=["POST"]),
            Route("/recover", pages.recovery_form),
            Route("/recover", pages.recover, methods=["POST"]),
            Route("/sent/{about}", pages.sent),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[
            Middleware(StrictHeaders),
            Middleware(
                SessionMiddleware,
                session_cookie=COOKIE,
                secret_key=session_secret,
                max_age=SESSION_SECONDS,
                https_only=https,
            ),
        ],
        exception_handlers={
            mailroom.TokenError: pages.refused,
            HTTPException: pages.failed,
            psycopg.OperationalError: pages.failed,
            500: pages.failed,
        },
        lifespan=lifespan,
    )


@dataclass(frozen=True)
class SignupPages:
    """The pages; see ``create_app`` for the attributes."""

    accounts: Accounts
    keys: str
    templates: Jinja2Templates
    uniform_s: float
    scrypt_cost: int

    async def home(self, request: Request) -> Response:
        """The account that is signed in, or a welcome."""
        return self._page(request, "home", account=await self._signed_in(request))

    async def form(self, request: Request) -> Response:
        """An empty form."""
        return self._page(request, request.url.path[1:], done=request.query_params.get("done"))

    async def sent(self, request: Request) -> Response:
        """What happens next, with the same text whether or not there is an account."""
        about = request.path_params["about"]
        if about not in ("signup", "resend", "forgot"):
            raise HTTPException(404)
        return self._page(request, "sent", about=about)

    async def sign_up(self, request: Request) -> Response:
        """Add an account. Logins are public, so the page reports a taken login, but not a known address."""
        fields = await forms.read(request, "email", "login", "password")
        fields["login"] = fields["login"].lower()
        if faults := forms.faults(fields):
            return self._again(request, fields, **faults)
        password_hash = await passwords.hashed(fields["password"], self.scrypt_cost)
        if not await self._slowly(self.accounts.sign_up(fields["email"], fields["login"], password_hash)):
            return self._again(
                request, fields, login="This login is taken. If you took it, look for our mail."
            )
        return _to("/sent/signup")

    async def mail(self, request: Request) -> Response:
        """Send an activation link again, or a recovery link, if the account's status allows it."""
        fields = await forms.read(request, "email")
        if faults := forms.faults(fields):
            return self._again(request, fields, **faults)
        await self._slowly(self.accounts.mail(fields["email"], MAILS[request.url.path]))
        return _to(f"/sent{request.url.path}")

    async def activation_form(self, request: Request) -> Response:
        """The page behind the link. It changes nothing, because mail scanners follow links."""
        token = request.query_params.get("token", "")
        mailroom.verify(token, "activation", keys=self.keys)
        return self._page(request, "activate", token=token)

    async def activate(self, request: Request) -> Response:
        """Consume the token, when the button on that page is pressed."""
        fields = await forms.read(request, "token")
        await self.accounts.activate(fields["token"])
        return _to("/signin?done=active")

    async def sign_in(self, request: Request) -> Response:
        """Start a session.

        Anybody can sign up with somebody else's address and then try to sign in. So an account that was
        never active gets the same answer as no account, and a suspension is shown only if the password is
        right and the account was active before.
        """
        fields = await forms.read(request, "email", "password")
        account = await self.accounts.find(fields["email"])
        right = await passwords.matches(fields["password"], account and account.hash, self.scrypt_cost)
        if account is None or not right or not account.was_active:
            return self._again(request, fields, email=REFUSED)
        if account.status == "suspended":
            return self._page(request, "suspended", 403)
        request.session.clear()
        request.session.update(account=account.id, stamp=account.stamp)
        return _to("/")

    async def sign_out(self, request: Request) -> Response:
        """End all sessions of the account, so that a copied cookie ends too."""
        await forms.read(request)
        if account := await self._signed_in(request):
            await self.accounts.end_sessions(account.id)
        request.session.clear()
        return _to("/signin?done=out")

    async def recovery_form(self, request: Request) -> Response:
        """The page behind the link. Only the token's form is checked: its signature covers the code too."""
        token = request.query_params.get("token", "")
        with suppress(mailroom.ForgedToken):
            mailroom.verify(token, "password_recovery", keys=self.keys, code="00000")
        return self._page(request, "recover", token=token)

    async def recover(self, request: Request) -> Response:
        """Set the new password of the user who has the link and the code."""
        fields = await forms.read(request, "token", "code", "password")
        if faults := forms.faults(fields):
            return self._again(request, fields, **faults)
        password_hash = await passwords.hashed(fields["password"], self.scrypt_cost)
        try:
            await self.accounts.recover(fields["token"], fields["code"], password_hash)
        except mailroom.WrongCode as error:
            return self._again(request, fields, code=f"The code is wrong. Tries left: {error.codes_left}.")
        return _to("/signin?done=password")

    async def refused(self, request: Request, error: Exception) -> Response:
        """Why a link was refused, and what to do."""
        reason = error.reason if isinstance(error, mailroom.TokenError) else ""
        return self._page(request, "refused", STATUSES.get(reason, 400), reason=reason)

    async def failed(self, request: Request, error: Exception) -> Response:
        """Any other error, without its details."""
        status = HTTPStatus(error.status_code if isinstance(error, HTTPException) else 500)
        if isinstance(error, psycopg.OperationalError):
            status = HTTPStatus.SERVICE_UNAVAILABLE
        page = self._page(request, "failed", status, title=status.phrase)
        page.headers.update(getattr(error, "headers", None) or {})  # the header Allow
        return page

    async def _signed_in(self, request: Request) -> Account | None:
        account, stamp = request.session.get("account"), request.session.get("stamp")
        return await self.accounts.of_session(account, stamp) if account and stamp else None

    async def _slowly(self, work: Awaitable[T]) -> T:
        """Do the work in a fixed time, so that the time does not reveal whether there is an account."""
        done, _ = await asyncio.gather(work, asyncio.sleep(self.uniform_s))
        return done

    def _again(self, request: Request, fields: dict[str, str], **faults: str) -> Response:
        """Return the form with its errors, and with what was entered except the password."""
        kept = {name: value for name, value in fields.items() if name != "password"}
        return self._page(request, request.url.path[1:], 422, faults=faults, **kept)

    def _page(self, request: Request, name: str, status: int = 200, **context: Any) -> Response:
        secretive = TOKEN_PAGE if request.url.path in ("/activate", "/recover") else {}
        return self.templates.TemplateResponse(
            request, f"{name}.html", context, status_code=status, headers=HEADERS | secretive
        )


def _to(path: str) -> Response:
    return RedirectResponse(path, 303)


class StrictHeaders:
    """Adds the headers to answers that are not pages: redirects and the style sheet."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with the headers."""

        async def strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if scope["path"].startswith("/static/"):
                    headers["Cache-Control"] = "max-age=600"
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, strictly)
