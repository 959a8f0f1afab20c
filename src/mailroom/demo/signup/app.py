"""The pages: each GET shows one, each POST does something and leads on to the next.

Whoever asks about an address is told the same, and as slowly, whether it has an account or not.
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
# A name of its own, for a browser knows one localhost, whatever the port.
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
# The address of a page that a mail leads to holds the token, and must not be told to anyone.
TOKEN_PAGE: Final = {"Referrer-Policy": "no-referrer"}

# A link that is refused, by the error's reason; refused.html has the words.
STATUSES: Final = {
    "unknown": 404,
    "used": 409,
    "ineligible": 409,
    "expired": 410,
    "exhausted": 410,
    "suspended": 403,
}
REFUSED: Final = "Wrong address or password, or an account that is not active yet."
# The form that asks for a mail, and the mail.
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
    """The example as an ASGI application.

    Args:
        database_url: a database with Mailroom's migrations.
        keys: ``MAILROOM_SECRET_KEY``, as the collector has it.
        session_secret: signs the session's cookie; not one of the keys.
        app_name: shown on each page.
        inbox_url: where the mails can be read, in a demonstration.
        mail_limit: how many mails of one kind an account gets in ``mail_minutes``.
        mail_minutes: see ``mail_limit``.
        https: whether browsers come by HTTPS; then the cookie is sent by no other way.
        uniform_s: how long an answer about an address takes at least.
        scrypt_cost: scrypt's N.

    Raises:
        ValueError: a key has not its shape.
    """
    mailroom.sign(bytes(32), "activation", keys=keys)  # else the first visitor would find out
    accounts = Accounts(database_url, keys, mail_limit, mail_minutes)
    templates = Jinja2Templates(HERE / "templates")
    templates.env.globals |= {"app_name": app_name, "inbox_url": inbox_url, "forms": forms}
    templates.env.globals |= {"mail_limit": mail_limit, "mail_minutes": mail_minutes}
    pages = Pages(accounts, keys, templates, uniform_s, scrypt_cost)

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
class Pages:
    """The pages, and what they need; see ``create_app``."""

    accounts: Accounts
    keys: str
    templates: Jinja2Templates
    uniform_s: float
    scrypt_cost: int

    async def home(self, request: Request) -> Response:
        """Who is signed in, if anyone is."""
        return self._page(request, "home", account=await self._signed_in(request))

    async def form(self, request: Request) -> Response:
        """An empty form."""
        return self._page(request, request.url.path[1:], done=request.query_params.get("done"))

    async def sent(self, request: Request) -> Response:
        """What happens next, in words that fit whether there is an account or not."""
        about = request.path_params["about"]
        if about not in ("signup", "resend", "forgot"):
            raise HTTPException(404)
        return self._page(request, "sent", about=about)

    async def sign_up(self, request: Request) -> Response:
        """Add an account. A taken login is told, since logins are public; a known address is not."""
        fields = await forms.read(request, "email", "login", "password")
        fields["login"] = fields["login"].lower()
        if faults := forms.faults(fields):
            return self._again(request, fields, **faults)
        password_hash = await passwords.hashed(fields["password"], self.scrypt_cost)
        if not await self._slowly(self.accounts.sign_up(fields["email"], fields["login"], password_hash)):
            return self._again(request, fields, login="This login is taken. By you? Look for our mail.")
        return _to("/sent/signup")

    async def mail(self, request: Request) -> Response:
        """Mail a link once more, or for recovery, where the account is in the state for it."""
        fields = await forms.read(request, "email")
        if faults := forms.faults(fields):
            return self._again(request, fields, **faults)
        await self._slowly(self.accounts.mail(fields["email"], MAILS[request.url.path]))
        return _to(f"/sent{request.url.path}")

    async def activation_form(self, request: Request) -> Response:
        """Where the link leads. Scanners follow links, so nothing happens yet; the database is not asked."""
        token = request.query_params.get("token", "")
        mailroom.verify(token, "activation", keys=self.keys)
        return self._page(request, "activate", token=token)

    async def activate(self, request: Request) -> Response:
        """The button on that page."""
        fields = await forms.read(request, "token")
        await self.accounts.activate(fields["token"])
        return _to("/signin?done=active")

    async def sign_in(self, request: Request) -> Response:
        """Start a session.

        Anybody may sign up with anybody's address and a password, and then try both here. So an account
        that was never active is answered as none is, and a suspension is told to whoever has the password
        of one that was.
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
        """End the session, and all others: a copy of a cookie must not outlive it."""
        await forms.read(request)
        if account := await self._signed_in(request):
            await self.accounts.end_sessions(account.id)
        request.session.clear()
        return _to("/signin?done=out")

    async def recovery_form(self, request: Request) -> Response:
        """Where the link leads. Its signature covers the code as well, so only its shape can be checked."""
        token = request.query_params.get("token", "")
        with suppress(mailroom.ForgedToken):
            mailroom.verify(token, "password_recovery", keys=self.keys, code="00000")
        return self._page(request, "recover", token=token)

    async def recover(self, request: Request) -> Response:
        """Set the new password, for whoever has link and code."""
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
        """A link that is not honoured, and what to do about it."""
        reason = error.reason if isinstance(error, mailroom.TokenError) else ""
        return self._page(request, "refused", STATUSES.get(reason, 400), reason=reason)

    async def failed(self, request: Request, error: Exception) -> Response:
        """Anything else that went wrong, without its details."""
        status = HTTPStatus(error.status_code if isinstance(error, HTTPException) else 500)
        if isinstance(error, psycopg.OperationalError):
            status = HTTPStatus.SERVICE_UNAVAILABLE
        page = self._page(request, "failed", status, title=status.phrase)
        page.headers.update(getattr(error, "headers", None) or {})  # what is allowed instead
        return page

    async def _signed_in(self, request: Request) -> Account | None:
        account, stamp = request.session.get("account"), request.session.get("stamp")
        return await self.accounts.of_session(account, stamp) if account and stamp else None

    async def _slowly(self, work: Awaitable[T]) -> T:
        """Do the work and take a fixed time, so that the time does not tell what was to be done."""
        done, _ = await asyncio.gather(work, asyncio.sleep(self.uniform_s))
        return done

    def _again(self, request: Request, fields: dict[str, str], **faults: str) -> Response:
        """The form once more, with what is wrong and with all that was typed but the password."""
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
    """Adds the headers to what is not a page: redirects, the style sheet."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back with the headers."""

        async def strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if scope["path"].startswith("/static/"):
                    headers["Cache-Control"] = "max-age=600"
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, strictly)
