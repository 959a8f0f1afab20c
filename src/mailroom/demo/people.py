"""Plays five people who use the example application through its forms, and read their mails in the inbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mailroom.demo.letters import Letters, cut, link_of
from mailroom.demo.programs import DemoError, Programs
from mailroom.demo.visitor import Page, Visitor

PASSWORD: Final = "correct horse battery"  # noqa: S105 - a made-up person's
NEW_PASSWORD: Final = "staple and some more"  # noqa: S105 - a made-up person's
SENT: Final = "Look for our mail"
NOBODY: Final = "nobody@example.com"

Tell = Callable[[str], None]


class Person:
    """A person who visits the application at ``url`` with their own browser session."""

    def __init__(self, name: str, url: str, letters: Letters, programs: Programs, tell: Tell) -> None:
        self.email = f"{name}@example.com"
        self._name = name
        self._letters = letters
        self._tell = tell
        self._browser = Visitor(url, programs)

    def sign_up(self) -> None:
        """Ask for an account."""
        form = self._browser.open("/signup")
        page = self._browser.submit(form, email=self.email, login=self._name, password=PASSWORD)
        _expect(page, SENT)

    def read(self, action: str) -> tuple[str, str]:
        """Wait for a mail, and return its link and its code."""
        letter = self._letters.wait_for(self.email, action)
        link = link_of(letter)
        self._tell(f"  mail: {letter['subject']}\n        {cut(link)}")
        return link, str(letter["data"].get("code", ""))

    def look_at(self, link: str) -> Page:
        """Open a link without pressing its button."""
        return self._browser.open(link)

    def activate(self, link: str, *, leads_to: str = "Sign in") -> None:
        """Open the link and press its button."""
        form = self.look_at(link)
        _expect(form, "Activate your account")
        self._see(self._browser.submit(form), leads_to)

    def forget(self) -> None:
        """Ask for a new password."""
        _expect(self._browser.submit(self._browser.open("/forgot"), email=self.email), SENT)

    def recover(self, link: str, code: str, *, leads_to: str = "Sign in") -> None:
        """Open the link and enter the code and a new password."""
        form = self.look_at(link)
        _expect(form, "Set a new password")
        self._see(self._browser.submit(form, code=code, password=NEW_PASSWORD), leads_to)

    def sign_in(self, password: str = PASSWORD, *, leads_to: str) -> Page:
        """Try to sign in, and return the page."""
        page = self._browser.submit(self._browser.open("/signin"), email=self.email, password=password)
        self._see(page, leads_to)
        return page

    def resend(self, page: Page) -> None:
        """Press the button that sends the mail again."""
        _expect(self._browser.submit(page), SENT)

    def _see(self, page: Page, headline: str) -> None:
        _expect(page, headline)
        self._tell(f"  page: {page.notice or page.headline}")


def _expect(page: Page, headline: str) -> None:
    if page.headline != headline:
        raise DemoError(
            f"the example application shows {page.headline!r} ({page.status}) in place of {headline!r};"
            f" {page.notice or 'the page gives no reason'}"
        )


def meet(people: Callable[[str], Person], tell: Tell) -> None:
    """Play all five stories.

    Args:
        people: makes a person from a name.
        tell: prints what happens.

    Raises:
        DemoError: the application or a mail is not as expected.
    """
    for story in (activates, is_scanned, recovers, asks_again, asks_for_nobody):
        story(people, tell)


def activates(people: Callable[[str], Person], tell: Tell) -> None:
    """The usual way."""
    tell("\nAda signs up, opens the link, clicks the button, and signs in.")
    ada = people("ada")
    ada.sign_up()
    link, _ = ada.read("activation")
    ada.activate(link)
    ada.sign_in(leads_to="Hello ada")


def is_scanned(people: Callable[[str], Person], tell: Tell) -> None:
    """A GET consumes nothing, and a link works once."""
    tell("\nA mail scanner opens the link in Grace's mail. Her link still works, once.")
    grace, scanner = people("grace"), people("scanner")
    grace.sign_up()
    link, _ = grace.read("activation")
    for _ in range(3):
        scanner.look_at(link)
    grace.activate(link)
    grace.activate(link, leads_to="This link was used before")


def recovers(people: Callable[[str], Person], tell: Tell) -> None:
    """A link and a code."""
    tell("\nLinus has an account and forgets his password. He mistypes the code, then enters the right one.")
    linus = people("linus")
    linus.sign_up()
    link, _ = linus.read("activation")
    linus.activate(link)
    linus.forget()
    link, code = linus.read("password_recovery")
    linus.recover(link, f"{(int(code) + 1) % 100_000:05}", leads_to="Set a new password")
    linus.recover(link, code)
    linus.sign_in(NEW_PASSWORD, leads_to="Hello linus")


def asks_again(people: Callable[[str], Person], tell: Tell) -> None:
    """A mail that is sent again."""
    tell("\nMary overlooks her mail and tries to sign in. The page offers to send the mail again.")
    mary = people("mary")
    mary.sign_up()
    mary.read("activation")
    mary.resend(mary.sign_in(leads_to="Sign in"))
    link, _ = mary.read("activation")
    mary.activate(link)


def asks_for_nobody(people: Callable[[str], Person], tell: Tell) -> None:
    """An address without an account."""
    tell(f"\nMallory asks whether {NOBODY} has an account. The page is the same as for an existing account.")
    people("nobody").forget()
    tell(f"  page: {SENT}\n  mail: none")
