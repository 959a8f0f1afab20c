"""The application: its settings, its addresses and its headers.

Each GET shows a page; each POST does something and redirects to the next page. A page that asks for an
address gives the same answer, after the same time, with and without an account.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import psycopg
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import mailroom
from mailroom.demo.signup import forms, passwords
from mailroom.demo.signup.accounts import Accounts
from mailroom.demo.signup.database import Database
from mailroom.demo.signup.joining import JoiningPages
from mailroom.demo.signup.links import AddressTaken, Links
from mailroom.demo.signup.mails import Mails
from mailroom.demo.signup.member import MemberPages
from mailroom.demo.signup.news import News
from mailroom.demo.signup.signing_in import SignInPages
from mailroom.demo.signup.site import HEADERS, Site

HERE: Final = Path(__file__).parent
# A distinct name, because a browser shares the cookies of localhost between all ports.
COOKIE: Final = "mailroom_example"
SESSION_SECONDS: Final = 24 * 3600


def create_app(
    database_url: str,
    keys: str,
    *,
    session_secret: str,
    app_name: str = "Acme",
    inbox_url: str = "",
    https: bool = False,
    uniform_s: float = 0.4,
    scrypt_cost: int = passwords.COST,
) -> Starlette:
    """Return the example as an ASGI application.

    Args:
        database_url: a database with Mailroom's migrations, and with the actions that ``README.md`` names.
        keys: ``MAILROOM_SECRET_KEY``, as the collector has it.
        session_secret: signs the session's cookie; not one of the keys.
        app_name: shown on each page.
        inbox_url: where a demonstration shows the mails.
        https: whether browsers use HTTPS; then they send the cookie only over HTTPS.
        uniform_s: the least time that an answer about an address takes.
        scrypt_cost: scrypt's N.

    Raises:
        ValueError: a key is not valid.
    """
    mailroom.sign(bytes(32), "activation", keys=keys)  # checks the keys now, not at the first request
    database, news = Database(database_url), News(database_url)
    templates = Jinja2Templates(HERE / "templates")
    templates.env.globals |= {"app_name": app_name, "inbox_url": inbox_url, "forms": forms}
    site = Site(
        Accounts(database),
        Mails(database),
        Links(database, keys),
        news,
        templates,
        keys,
        uniform_s,
        scrypt_cost,
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await database.prepare()
        listening = asyncio.create_task(news.listen())
        yield
        listening.cancel()

    return Starlette(
        routes=routes(site),
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
            mailroom.TokenError: site.refused,
            AddressTaken: site.taken,
            HTTPException: site.failed,
            psycopg.OperationalError: site.failed,
            500: site.failed,
        },
        lifespan=lifespan,
    )


def routes(site: Site) -> list[BaseRoute]:
    """Return the addresses: one line shows a page, the next one with the same path acts."""
    joining, signing_in, member = JoiningPages(site), SignInPages(site), MemberPages(site)
    post = ["POST"]
    return [
        Route("/", member.home),
        Route("/signup", site.form),
        Route("/signup", joining.sign_up, methods=post),
        Route("/news", joining.news),
        Route("/correct", joining.correction_form),
        Route("/correct", joining.correct, methods=post),
        Route("/activate", site.token_form("activation")),
        Route("/activate", joining.activate, methods=post),
        Route("/resend", site.form),
        Route("/resend", joining.ask_for_mail, methods=post),
        Route("/accept-invitation", site.token_form("invitation")),
        Route("/accept-invitation", joining.accept_invitation, methods=post),
        Route("/signin", site.form),
        Route("/signin", signing_in.sign_in, methods=post),
        Route("/signout", signing_in.sign_out, methods=post),
        Route("/signin-link", site.form),
        Route("/signin-link", joining.ask_for_mail, methods=post),
        Route("/magic-link", site.token_form("magic_link")),
        Route("/magic-link", signing_in.magic_link, methods=post),
        Route("/forgot", site.form),
        Route("/forgot", joining.ask_for_mail, methods=post),
        Route("/recover", signing_in.recovery_form),
        Route("/recover", signing_in.recover, methods=post),
        Route("/language", site.for_members(member.set_language), methods=post),
        Route("/password", site.for_members(member.form)),
        Route("/password", site.for_members(member.change_password), methods=post),
        Route("/email", site.for_members(member.form)),
        Route("/email", site.for_members(member.ask_email_change), methods=post),
        Route("/change-email", site.token_form("email_change")),
        Route("/change-email", member.change_email, methods=post),
        Route("/invite", site.for_members(member.form)),
        Route("/invite", site.for_members(member.invite), methods=post),
        Route("/sent/{about}", joining.sent),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]


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
