"""How somebody gets into their account: with a password or a magic link, and with a new password."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

import mailroom
from mailroom.demo.signup import forms, passwords
from mailroom.demo.signup.accounts import Session
from mailroom.demo.signup.site import Site, begin_session, to

REFUSED: Final = "Wrong address or password, or an account that is not active yet."


@dataclass(frozen=True)
class SignInPages:
    """The pages for those who have an account."""

    site: Site

    async def sign_in(self, request: Request) -> Response:
        """Start a session.

        Anybody can sign up with somebody else's address and then try to sign in. So an account that was
        never active gets the same answer as no account, and a suspension is shown only if the password is
        right and the account was active before.
        """
        fields = await forms.read(request, "email", "password")
        account = await self.site.accounts.find(fields["email"])
        right = await passwords.matches(fields["password"], account and account.hash, self.site.scrypt_cost)
        if account is None or account.stamp is None or not right or not account.was_active:
            return self.site.again(request, fields, {"email": REFUSED})
        if account.status == "suspended":
            return self.site.page(request, "suspended", 403)
        begin_session(request, Session(account.id, account.stamp))
        return to("/")

    async def magic_link(self, request: Request) -> Response:
        """Consume the token and start a session, when the button on the page behind the link is pressed."""
        fields = await forms.read(request, "token")
        begin_session(request, await self.site.links.sign_in(fields["token"]))
        return to("/")

    async def sign_out(self, request: Request) -> Response:
        """End all sessions of the account, so that a copied cookie ends too."""
        await forms.read(request)
        if account := await self.site.signed_in(request):
            await self.site.accounts.end_sessions(account.id)
        request.session.clear()
        return to("/signin?done=out")

    async def recovery_form(self, request: Request) -> Response:
        """The page behind the link. Only the token's form is checked: its signature covers the code too."""
        token = request.query_params.get("token", "")
        with suppress(mailroom.ForgedToken):
            mailroom.verify(token, "password_recovery", keys=self.site.keys, code="00000")
        return self.site.page(request, "recover", token=token)

    async def recover(self, request: Request) -> Response:
        """Set the new password of the user who has the link and the code."""
        fields = await forms.read(request, "token", "code", "password")
        if faults := forms.faults(fields):
            return self.site.again(request, fields, faults)
        password_hash = await passwords.hashed(fields["password"], self.site.scrypt_cost)
        try:
            await self.site.links.recover(fields["token"], fields["code"], password_hash)
        except mailroom.WrongCode as error:
            fault = f"The code is wrong. Tries left: {error.codes_left}."
            return self.site.again(request, fields, {"code": fault})
        return to("/signin?done=password")
