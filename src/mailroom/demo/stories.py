"""What eight people do in the tour of the demonstration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mailroom.demo.people import NEW_PASSWORD, SENT, Person, Tell

NOBODY: Final = "nobody@example.com"
NEW_ADDRESS: Final = "grete@neu.example"
# One of SES's mailbox simulator.
BOUNCING: Final = "bounce+tim@simulator.amazonses.com"


def meet(people: Callable[[str], Person], tell: Tell) -> None:
    """Play all stories.

    Args:
        people: makes a person from a name.
        tell: prints what happens.

    Raises:
        DemoError: the application or a mail is not as expected.
    """
    for story in STORIES:
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
    """A link and a code, and a notice."""
    tell("\nLinus has an account and forgets his password. He mistypes the code, then enters the right one.")
    linus = people("linus")
    linus.sign_up()
    link, _ = linus.read("activation")
    linus.activate(link)
    linus.forget()
    link, code = linus.read("password_recovery")
    linus.recover(link, f"{(int(code) + 1) % 100_000:05}", leads_to="Set a new password")
    linus.recover(link, code)
    linus.read_notice("password_changed")
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


def mistypes(people: Callable[[str], Person], tell: Tell) -> None:
    """A mail that bounces, and a corrected address."""
    tell(f"\nTim signs up as {BOUNCING}. The mail bounces; the page says so, and he corrects the address.")
    tim = people("tim")
    tim.sign_up_mistyped(BOUNCING)
    tim.correct_address()
    link, _ = tim.read("activation")
    tim.activate(link)


def asks_for_nobody(people: Callable[[str], Person], tell: Tell) -> None:
    """An address without an account."""
    tell(f"\nMallory asks whether {NOBODY} has an account. The page is the same as for an existing account.")
    people("nobody").forget()
    tell(f"  page: {SENT}\n  mail: none")


def changes_address(people: Callable[[str], Person], tell: Tell) -> None:
    """Mails in German, a link instead of a password, a link to a new address, a notice to the old one."""
    tell("\nGrete signs up in German. From then on she signs in with a link, without her password.")
    grete = people("grete")
    grete.sign_up("de")
    link, _ = grete.read("activation")
    grete.activate(link)
    grete.ask_for_link()
    link, _ = grete.read("magic_link")
    grete.follow_link(link)
    tell("\nGrete has a new address. A link goes there, and a notice to the old one.")
    grete.ask_for_address(NEW_ADDRESS)
    link, _ = grete.read("email_change", at=NEW_ADDRESS)
    grete.confirm_address(link)
    grete.read_notice("email_changed")


def invites(people: Callable[[str], Person], tell: Tell) -> None:
    """Mails to somebody without an account, and another language."""
    tell("\nHedy invites Bob, and then reads her own mails in English.")
    hedy, bob = people("hedy"), people("bob")
    hedy.sign_up("de")
    link, _ = hedy.read("activation")
    hedy.activate(link)
    hedy.sign_in(leads_to="Hello hedy")
    hedy.invite(bob.email)
    link, _ = bob.read("invitation")
    bob.join(link)
    hedy.choose_language("en")
    hedy.ask_for_link()
    link, _ = hedy.read("magic_link")
    hedy.follow_link(link)


STORIES: Final = (
    activates,
    is_scanned,
    recovers,
    asks_again,
    mistypes,
    asks_for_nobody,
    changes_address,
    invites,
)
