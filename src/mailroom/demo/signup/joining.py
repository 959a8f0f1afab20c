"""How somebody gets an account: by signing up and activating it, or by an invitation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from mailroom.demo.signup import forms, passwords
from mailroom.demo.signup.accounts import SignUp
from mailroom.demo.signup.site import HEADERS, Site, begin_session, to

TAKEN: Final = "This login is taken. If you took it, look for our mail."
# A browser asks again when the stream of news ends.
NEWS_S: Final = 60.0
KEEP_ALIVE_S: Final = 15.0
# The path of a form that asks for a mail, and the mail's action.
MAILS: Final = {"/resend": "activation", "/forgot": "password_recovery", "/signin-link": "magic_link"}


@dataclass(frozen=True)
class JoiningPages:
    """The pages for those who have no account yet, or whose account is not active."""

    site: Site

    async def sign_up(self, request: Request) -> Response:
        """Add an account. Logins are public, so the page reports a taken login, but not a known address."""
        fields = await forms.read(request, "email", "login", "locale", "password")
        fields["login"] = fields["login"].lower()
        if faults := forms.faults(fields):
            return self.site.again(request, fields, faults)
        password_hash = await passwords.hashed(fields["password"], self.site.scrypt_cost)
        new = SignUp(fields["login"], fields["email"], fields["locale"], password_hash)
        sign_up = await self.site.slowly(self.site.accounts.sign_up(new))
        if sign_up is None:
            return self.site.again(request, fields, {"login": TAKEN})
        request.session["sign_up"] = sign_up
        return to("/sent/signup")

    async def ask_for_mail(self, request: Request) -> Response:
        """Send a link if the account's status allows it."""
        fields = await forms.read(request, "email")
        if faults := forms.faults(fields):
            return self.site.again(request, fields, faults)
        await self.site.slowly(self.site.mails.ask(fields["email"], MAILS[request.url.path]))
        return to(f"/sent{request.url.path}")

    async def sent(self, request: Request) -> Response:
        """What happens next, with the same text whether or not a mail was sent."""
        about = request.path_params["about"]
        if about not in ("signup", "resend", "forgot", "signin-link", "email", "invite"):
            raise HTTPException(404)
        if about == "signup" and await self._bounced(request):
            return to("/correct")
        return self.site.page(request, "sent", about=about, account=await self.site.signed_in(request))

    async def news(self, request: Request) -> Response:
        """Stream the news about the sign-up: that its mail bounced."""

        async def stream() -> AsyncIterator[str]:
            yield "retry: 1000\n\n"
            until_s = time.monotonic() + NEWS_S
            while time.monotonic() < until_s:
                next_one = self.site.news.next
                if await self._bounced(request):
                    yield "event: bounced\ndata:\n\n"
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        await next_one.wait()
                yield ": nothing yet\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream", headers=HEADERS)

    async def correction_form(self, request: Request) -> Response:
        """The page that a sign-up is led to when its mail bounced."""
        bounced = await self._bounced(request)
        return self.site.page(request, "correct", wrong=bounced.email) if bounced else to("/sent/signup")

    async def correct(self, request: Request) -> Response:
        """Send the mail to a corrected address. The answer is the same if that address is known."""
        fields = await forms.read(request, "email")
        bounced = await self._bounced(request)
        if bounced is None:
            return to("/sent/signup")
        if faults := forms.faults(fields):
            return self.site.again(request, fields, faults, wrong=bounced.email)
        await self.site.slowly(self.site.accounts.correct(request.session["sign_up"], fields["email"]))
        return to("/sent/signup")

    async def _bounced(self, request: Request) -> SignUp | None:
        """Return the sign-up of this visitor if its mail bounced."""
        sign_up = request.session.get("sign_up")
        return await self.site.accounts.bounced(sign_up) if sign_up else None

    async def activate(self, request: Request) -> Response:
        """Consume the token, when the button on the page behind the link is pressed."""
        fields = await forms.read(request, "token")
        await self.site.links.activate(fields["token"])
        return to("/signin?done=active")

    async def accept_invitation(self, request: Request) -> Response:
        """Add an account with the address that was invited. Its link proves the address, so it is active."""
        fields = await forms.read(request, "token", "login", "locale", "password")
        fields["login"] = fields["login"].lower()
        if faults := forms.faults(fields):
            return self.site.again(request, fields, faults)
        password_hash = await passwords.hashed(fields["password"], self.site.scrypt_cost)
        session = await self.site.links.accept_invitation(
            fields["token"], fields["login"], fields["locale"], password_hash
        )
        if session is None:
            return self.site.again(request, fields, {"login": TAKEN})
        begin_session(request, session)
        return to("/")
