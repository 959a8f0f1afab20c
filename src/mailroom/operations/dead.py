"""Lists, retries and drops dead letters: tokens whose mail was rejected for good.

A token is a dead letter if its last row in the ledger is ``rejected``, none is ``sent``, and no lease holds
it. ``retry`` puts it into a lease that is due at once, or gives its account a new token. ``drop`` removes it
from the list. Both write a row into the ledger, which `mailroom why` shows.

Promises: two people who retry a dead letter at the same time do not mail it twice. No secret and no code is
read; addresses are masked. Listing and counting read only rejections, and counting at most the newest
``MAX_COUNTED``.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import psycopg

from mailroom.database.sync import one, rows
from mailroom.errors import MailroomError
from mailroom.operations.mail_state import mask, name_beside, plain, span, utc
from mailroom.operations.reports import DEAD_COUNT, MAX_COUNTED, UnknownPerson, stories
from mailroom.operations.story import Story

PAGE: Final = 500
NEWEST: Final = (datetime.max.replace(tzinfo=UTC), 2**63 - 1)
NOT_DEAD: Final = "not dead"

IS_DEAD: Final = "SELECT mailroom.is_dead(%s)"
DEAD_LETTERS: Final = (
    "SELECT id, token, action, email, login, subject, at, attempts, detail, why_not_mailable,"
    " expires_in AS expires_in_s FROM mailroom.dead_letters(%s, %s, %s, %s, %s)"
)
RETRY_DEAD: Final = "SELECT token, outcome, other FROM mailroom.retry_dead(%s, %s::bigint[], %s, %s, %s)"
DROP_DEAD: Final = (
    "SELECT token, outcome, NULL::bigint AS other FROM mailroom.drop_dead(%s::bigint[], %s, %s)"
)

WHY_NOT: Final = {
    "expired": "the token has expired; --renew makes a new one",
    "consumed": "the token was consumed",
    "address changed": "the account's address changed, which ended the token",
    "sibling consumed": "another token of its action was consumed",
    "unknown action": "mailroom.actions has no row for its action; run `mailroom actions apply`",
    "suspended": "the account is suspended",
    "ineligible": "the account's status does not fit the action",
    "suppressed": "the address gets no mail; `mailroom suppressions remove` lifts that",
    "deleted": "the token is gone: its account was deleted, or it was pruned",
    "activated": "the user was activated by other means",
    "user deleted": "the user was deleted",
    "not adopted any more": "the table of users is not adopted any more",
    "other fields": "its data does not have the fields that its action has now; request the mail again",
    "busy": "its account is being changed right now; try again",
}


class NoDeadLetter(MailroomError):
    """A token is not a dead letter, or does not exist; the message says what it is."""

    exit_code = 65


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A token whose mail was rejected for good.

    Attributes:
        id: the id of the rejection in the ledger.
        action: None if the token was deleted.
        at: when it was rejected.
        why_not_mailable: why it must not be mailed again; None if it may be.
    """

    id: int
    token: int
    action: str | None
    email: str | None
    login: str | None
    subject: str | None
    at: datetime
    attempts: int
    detail: str
    why_not_mailable: str | None
    expires_in_s: float | None

    @property
    def state(self) -> str:
        """Whether the token may be mailed again, in words."""
        if self.why_not_mailable == "deleted":
            return "gone"
        if self.why_not_mailable == "expired" and self.expires_in_s is not None:
            return f"expired {span(-self.expires_in_s)} ago"
        if self.why_not_mailable:
            return self.why_not_mailable
        if self.expires_in_s is not None and self.expires_in_s <= 0:
            return f"expired {span(-self.expires_in_s)} ago; a retry renews it"
        return "never expires" if self.expires_in_s is None else f"expires in {span(self.expires_in_s)}"

    @property
    def whose(self) -> str:
        """Whose mail it was, beside the address."""
        return name_beside(self.email, self.login, self.subject)

    def cells(self) -> tuple[str, ...]:
        """The cells of a table's row."""
        return (
            str(self.token),
            self.action or "-",
            self.email or "-",
            utc(self.at),
            str(self.attempts),
            self.state,
            self.detail,
        )


class DeadCount(NamedTuple):
    """The number of dead letters; ``more`` if there are older rejections, which were not counted."""

    dead: int
    more: bool


@dataclass(frozen=True, slots=True)
class Decided:
    """The result of retrying or dropping a token; ``other`` is a newer token of the same account, if any."""

    token: int
    outcome: str
    other: int | None = None

    @property
    def done(self) -> bool:
        """Whether it was retried, renewed or dropped."""
        return self.outcome in {"retried", "renewed", "dropped"}

    def text(self) -> str:
        """The result in words, without the token."""
        match self.outcome:
            case "renewed":
                return f"renewed as token {self.other}"
            case "valid":
                return f"not retried: token {self.other} of the same account and action is still valid"
            case "not dead":
                return "not a dead letter any more"
            case outcome if self.done:
                return outcome
            case outcome:
                return f"not retried: {WHY_NOT.get(outcome, outcome)}"


def dead_letters(
    connection: psycopg.Connection,
    action: str | None,
    since: timedelta | None,
    limit: int,
    before: tuple[datetime, int] = NEWEST,
) -> list[DeadLetter]:
    """The newest dead letters, newest first.

    Args:
        connection: in autocommit mode.
        action: only tokens of this action.
        since: only rejections of this last period.
        limit: the maximum number.
        before: only rejections before this row of the ledger, by its time and id.

    Raises:
        DatabaseError: the schema or a privilege is missing.
        DatabaseUnavailable: the connection was lost.
    """
    found = rows(connection, DeadLetter, DEAD_LETTERS, [action, since, *before, limit])
    return [
        replace(
            letter,
            email=letter.email and plain(mask(letter.email, letter.email)),
            login=letter.login and plain(mask(letter.login, letter.email or "")),
            subject=letter.subject and plain(mask(letter.subject, letter.email or "")),
            detail=plain(mask(letter.detail, letter.email or "")),
        )
        for letter in found
    ]


def all_dead(
    connection: psycopg.Connection, action: str | None, since: timedelta | None
) -> Iterator[list[int]]:
    """All tokens that are dead letters, newest first, in pages, without those rejected meanwhile.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``dead_letters`` does.
    """
    before = NEWEST
    while page := dead_letters(connection, action, since, PAGE, before):
        yield [letter.token for letter in page]
        before = (page[-1].at, page[-1].id)


def count(
    connection: psycopg.Connection, action: str | None = None, since: timedelta | None = None
) -> DeadCount:
    """The number of dead letters among the newest ``MAX_COUNTED`` rejections.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``dead_letters`` does.
    """
    return DeadCount._make(one(connection, DEAD_COUNT, [action, since, MAX_COUNTED]))


def show(connection: psycopg.Connection, token: int) -> Story:
    """The story of a dead letter.

    Raises:
        NoDeadLetter: it is not one.
        DatabaseError, DatabaseUnavailable: as ``dead_letters`` does.
    """
    story = _story(connection, token)
    if not one(connection, IS_DEAD, [token])[0]:
        raise NoDeadLetter(
            f"token {token} is not a dead letter: {story.verdict}: {story.conclusion}",
            hint="`mailroom dead list` lists them",
        )
    return story


def why_not_dead(connection: psycopg.Connection, token: int) -> str:
    """Why a token is not a dead letter.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``dead_letters`` does.
    """
    try:
        story = _story(connection, token)
    except NoDeadLetter as error:
        return str(error)
    return f"not a dead letter: {story.verdict}: {story.conclusion}"


def retry(
    connection: psycopg.Connection,
    channel: str,
    tokens: Sequence[int],
    *,
    renew: bool,
    reason: str,
) -> list[Decided]:
    """Mail dead letters again, and notify the workers, in one transaction.

    Args:
        connection: in autocommit mode.
        channel: the workers' channel.
        tokens: the tokens.
        renew: for an expired token, give its account a new one, if its status fits the action.
        reason: for the ledger; may be empty.

    Raises:
        DatabaseError: the schema or a privilege is missing.
        DatabaseUnavailable: the connection was lost.
    """
    asked = [channel, [token for token in tokens if _fits(token)], renew, reason, operator()]
    return _in_order(tokens, rows(connection, Decided, RETRY_DEAD, asked))


def drop(connection: psycopg.Connection, tokens: Sequence[int], *, reason: str) -> list[Decided]:
    """Drop dead letters without mailing them, in one transaction.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``dead_letters`` does.
    """
    asked = [[token for token in tokens if _fits(token)], reason, operator()]
    return _in_order(tokens, rows(connection, Decided, DROP_DEAD, asked))


def operator() -> str:
    """The machine and the user, for the ledger, in the form of a worker's name."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = "?"
    return f"{socket.gethostname()}:{user}"


def _in_order(tokens: Sequence[int], decided: Sequence[Decided]) -> list[Decided]:
    by_token = {one_of.token: one_of for one_of in decided}
    return [by_token.get(token, Decided(token, NOT_DEAD)) for token in tokens]


def _story(connection: psycopg.Connection, token: int) -> Story:
    try:
        found = [story for story in stories(connection, str(token)) if story.mail.token == token]
    except UnknownPerson:
        found = []
    if not found:  # or the number is somebody's login
        raise NoDeadLetter(f"there is no token {token}", hint="`mailroom dead list` lists the dead letters")
    return found[0]


def _fits(token: int) -> bool:
    """Whether a number fits into a token's id."""
    return -(2**63) <= token < 2**63
