"""How somebody gets an account: by signing up and activating it, or by an invitation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mailroom.demo.signup import forms, passwords
from mailroom.demo.signup.site import Site, begin_session, to

TAKEN: Final = "This login is taken. If you took it, look for our mail."
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
        if not await self.site.slowly(
            self.site.accounts.sign_up(fields["email"], fields["login"], fields["locale"], password_hash)
        ):
            return self.site.again(request, fields, {"login": TAKEN})
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
        return self.site.page(request, "sent", about=about, account=await self.site.signed_in(request))

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
