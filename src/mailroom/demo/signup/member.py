"""What a user who is signed in can do: choose a language, change address and password, invite somebody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mailroom.demo.signup import forms, passwords
from mailroom.demo.signup.accounts import Account
from mailroom.demo.signup.site import Site, begin_session, to

WRONG_PASSWORD: Final = "The password is wrong."  # noqa: S105 - a message


@dataclass(frozen=True)
class MemberPages:
    """The pages of an account. A page that takes one is only for users who are signed in."""

    site: Site

    async def home(self, request: Request) -> Response:
        """The account that is signed in, or a welcome."""
        account = await self.site.signed_in(request)
        return self.site.page(request, "home", account=account, done=request.query_params.get("done"))

    async def form(self, request: Request, account: Account) -> Response:
        """An empty form."""
        return self.site.page(request, request.url.path[1:], account=account)

    async def set_language(self, request: Request, account: Account) -> Response:
        """Choose the language of the mails."""
        fields = await forms.read(request, "locale")
        if not fields["locale"] or forms.faults(fields):
            raise HTTPException(400)
        await self.site.accounts.set_language(account.id, fields["locale"])
        return to("/?done=language")

    async def change_password(self, request: Request, account: Account) -> Response:
        """Set a new password. Other sessions end, this one goes on, and a notice goes out."""
        fields = await forms.read(request, "current", "password")
        if faults := forms.faults(fields) | await self._password_faults(fields, account):
            return self.site.again(request, fields, faults, account=account)
        password_hash = await passwords.hashed(fields["password"], self.site.scrypt_cost)
        begin_session(request, await self.site.accounts.change_password(account.id, password_hash))
        return to("/?done=password")

    async def ask_email_change(self, request: Request, account: Account) -> Response:
        """Send a link to the new address. The answer is the same if that address has an account."""
        fields = await forms.read(request, "email", "current")
        faults = forms.faults(fields)
        if fields["email"].lower() == account.email.lower():
            faults["email"] = "This is your address already."
        if faults := faults | await self._password_faults(fields, account):
            return self.site.again(request, fields, faults, account=account)
        await self.site.slowly(self.site.mails.ask_email_change(account.id, fields["email"]))
        return to("/sent/email")

    async def change_email(self, request: Request) -> Response:
        """Consume the token from the new address. Its reader may be signed out in this browser."""
        fields = await forms.read(request, "token")
        await self.site.links.change_email(fields["token"])
        return to("/?done=email")

    async def invite(self, request: Request, account: Account) -> Response:
        """Send an invitation in the inviter's language. The answer is the same for a known address."""
        fields = await forms.read(request, "email")
        if faults := forms.faults(fields):
            return self.site.again(request, fields, faults, account=account)
        await self.site.slowly(self.site.mails.invite(fields["email"], account.login, account.locale))
        return to("/sent/invite")

    async def _password_faults(self, fields: dict[str, str], account: Account) -> dict[str, str]:
        right = await passwords.matches(fields["current"], account.hash, self.site.scrypt_cost)
        return {} if right else {"current": WRONG_PASSWORD}
