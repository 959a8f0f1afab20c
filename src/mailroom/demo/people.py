"""A person who uses the example application through its forms, and reads their mails in the inbox."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from mailroom.demo.letters import PATIENCE_S, Letter, Letters, cut, link_of
from mailroom.demo.programs import DemoError, Programs
from mailroom.demo.stage import APP_NAME
from mailroom.demo.visitor import Page, Visitor

PASSWORD: Final = "correct horse battery"  # noqa: S105 - a made-up person's
NEW_PASSWORD: Final = "staple and some more"  # noqa: S105 - a made-up person's
SENT: Final = "Look for our mail"
WRONG: Final = "Your address seems to be wrong"
LOOK_S: Final = 0.1

Tell = Callable[[str], None]


class Person:
    """A person who visits the application at ``url`` with their own browser session."""

    def __init__(self, name: str, url: str, letters: Letters, programs: Programs, tell: Tell) -> None:
        self.email = f"{name}@example.com"
        self._name = name
        self._letters = letters
        self._tell = tell
        self._browser = Visitor(url, programs)

    def sign_up(self, language: str = "en") -> None:
        """Ask for an account."""
        expect(self._ask_for_account(self.email, language), SENT)

    def sign_up_mistyped(self, email: str) -> None:
        """Ask for an account with a wrong address, and wait until the page says that it is wrong."""
        page, until_s = self._ask_for_account(email), time.monotonic() + PATIENCE_S
        while page.headline == SENT and time.monotonic() < until_s:
            time.sleep(LOOK_S)
            page = self._browser.open("/sent/signup")
        self._see(page, WRONG)

    def correct_address(self) -> None:
        """Type the right address on that page."""
        expect(self._browser.submit(self._browser.open("/correct"), email=self.email), SENT)

    def read(self, action: str, at: str = "") -> tuple[str, str]:
        """Wait for a mail, by default at the address of the sign-up, and return its link and its code."""
        letter = self._receive(action, at or self.email)
        link = link_of(letter)
        self._tell(f"        {cut(link)}")
        return link, str(letter["code"] or "")

    def read_notice(self, action: str) -> None:
        """Wait for a mail that has no link."""
        self._receive(action, self.email)

    def look_at(self, link: str) -> Page:
        """Open a link without pressing its button."""
        return self._browser.open(link)

    def activate(self, link: str, *, leads_to: str = "Sign in") -> None:
        """Open the link and press its button."""
        form = self.look_at(link)
        expect(form, "Activate your account")
        self._see(self._browser.submit(form), leads_to)

    def forget(self) -> None:
        """Ask for a new password."""
        expect(self._browser.submit(self._browser.open("/forgot"), email=self.email), SENT)

    def recover(self, link: str, code: str, *, leads_to: str = "Sign in") -> None:
        """Open the link and enter the code and a new password."""
        form = self.look_at(link)
        expect(form, "Set a new password")
        self._see(self._browser.submit(form, code=code, password=NEW_PASSWORD), leads_to)

    def sign_in(self, password: str = PASSWORD, *, leads_to: str) -> Page:
        """Try to sign in, and return the page."""
        page = self._browser.submit(self._browser.open("/signin"), email=self.email, password=password)
        self._see(page, leads_to)
        return page

    def resend(self, page: Page) -> None:
        """Press the button that sends the mail again."""
        expect(self._browser.submit(page), SENT)

    def ask_for_link(self) -> None:
        """Ask for a link to sign in with."""
        expect(self._browser.submit(self._browser.open("/signin-link"), email=self.email), SENT)

    def follow_link(self, link: str) -> None:
        """Open the link and press the button that signs in."""
        form = self.look_at(link)
        expect(form, f"Sign in to {APP_NAME}")
        self._see(self._browser.submit(form), f"Hello {self._name}")

    def choose_language(self, language: str) -> None:
        """Choose the language of the mails."""
        page = self._browser.submit(self._browser.open("/"), locale=language)
        self._see(page, f"Hello {self._name}")

    def ask_for_address(self, email: str) -> None:
        """Ask for a link to another address."""
        page = self._browser.submit(self._browser.open("/email"), email=email, current=PASSWORD)
        expect(page, SENT)

    def confirm_address(self, link: str) -> None:
        """Open the link that came to the other address, and press its button."""
        form = self.look_at(link)
        expect(form, "Confirm your new address")
        self._see(self._browser.submit(form), f"Hello {self._name}")

    def invite(self, email: str) -> None:
        """Invite somebody."""
        expect(self._browser.submit(self._browser.open("/invite"), email=email), SENT)

    def join(self, link: str) -> None:
        """Accept an invitation."""
        form = self.look_at(link)
        expect(form, "Accept the invitation")
        self._see(self._browser.submit(form, login=self._name, password=PASSWORD), f"Hello {self._name}")

    def _ask_for_account(self, email: str, language: str = "en") -> Page:
        form = self._browser.open("/signup")
        fields = {"email": email, "login": self._name, "locale": language, "password": PASSWORD}
        return self._browser.submit(form, **fields)

    def _receive(self, action: str, email: str) -> Letter:
        letter = self._letters.wait_for(email, action)
        self._tell(f"  mail: {letter['subject']}")
        return letter

    def _see(self, page: Page, headline: str) -> None:
        expect(page, headline)
        self._tell(f"  page: {page.notice or page.headline}")


def expect(page: Page, headline: str) -> None:
    """Check the headline of a page.

    Raises:
        DemoError: it is another one.
    """
    if page.headline != headline:
        raise DemoError(
            f"the example application shows {page.headline!r} ({page.status}) in place of {headline!r};"
            f" {page.notice or 'the page gives no reason'}"
        )
