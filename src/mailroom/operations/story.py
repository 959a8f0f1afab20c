"""Explains what happened to one mail, from what the database knows about it.

Promises: nothing is guessed. Where the database cannot know, as with a sender in a pipe, the story says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from mailroom.operations.event_words import fate, lines
from mailroom.operations.mail_state import (
    BY_HAND,
    KNOWN,
    UNRENDERED,
    MailState,
    Pause,
    TokenDelivery,
    plain,
    utc,
)
from mailroom.operations.verdicts import Outcome, StoryVerdict

# The worker of a lease whose tokens wait for their send_at.
SCHEDULED: Final = "scheduled"
NO_WORKER_ALIVE: Final = "no `mailroom run` is alive (a collector in a pipe does not show here)"
# What ended a token, by tokens.ended_as. Any other text there is itself the reason.
ENDED: Final = {
    "address changed": "the address changed",
    "activated": "the user was activated by other means",
    "suspended": "the user was suspended",
    "ineligible": "the user's status did not fit the action",
    "user deleted": "the user was deleted",
    "not adopted any more": "the table is not adopted any more",
}
SUPPRESSED: Final = "the address gets no mail"
LIFT: Final = "`mailroom suppressions show` says why, and `mailroom suppressions remove` lifts it"
PIPE: Final = "to a pipe (`mailroom collector`); see its sender's log and rejected.csv"


@dataclass(frozen=True, slots=True)
class Story:
    """What happened to a mail: a verdict, its reason, and the events with their times."""

    verdict: StoryVerdict
    conclusion: str
    events: tuple[tuple[datetime, str], ...]
    mail: MailState

    def text(self) -> str:
        """The verdict, the token, and a line for each event."""
        mail = self.mail
        about = f"token {mail.token}"
        if mail.action:
            about += f": {mail.action} for " + (f"{mail.login} " if mail.login else "") + f"<{mail.email}>"
            about += f", {mail.whose}"
        elif self.recipients:
            about += f", deleted: mail for <{'>, <'.join(self.recipients)}>"
        told = [f"  {utc(at)}  {text}" for at, text in self.events]
        return "\n".join([f"{self.verdict}: {self.conclusion}", f"  {about}", *told])

    @property
    def recipients(self) -> list[str]:
        """To whom the mail of a deleted token went, by the ledger."""
        if self.mail.action:
            return []
        return list(dict.fromkeys(one.recipient for one in self.mail.deliveries if one.recipient))

    @property
    def message_ids(self) -> list[str]:
        """The provider's ids of the mail, of each time it was accepted."""
        return list(dict.fromkeys(one.message_id for one in self.mail.deliveries if one.message_id))

    def as_dict(self) -> dict[str, Any]:
        """The story for JSON; times are datetimes."""
        return {"verdict": self.verdict, "conclusion": self.conclusion} | asdict(self.mail)


def tell_story(mail: MailState, pause: Pause, *, alive: int, troubles: Sequence[str]) -> Story:
    """The story of a mail.

    Args:
        mail: the mail, with its rows of the ledger.
        pause: the queue's pause.
        alive: the number of workers that are alive.
        troubles: why workers cannot send.
    """
    stopped = f"{pause.what} is {pause.text()}" if pause.paused_at else ""
    if not stopped and not alive:
        stopped = NO_WORKER_ALIVE
    return Story(*_concluded(mail, stopped, troubles), tuple(sorted(_events(mail))), mail)


def _events(mail: MailState) -> list[tuple[datetime, str]]:
    events = []
    if mail.created_at:
        life = f"; it expires at {utc(mail.expires_at)}" if mail.expires_at else "; it never expires"
        if mail.ended_at and mail.expires_at and mail.expires_at < mail.created_at:
            life = ""  # it had ended when it was made
        events.append((mail.created_at, f"made{life}"))
    attempts = 0
    for one in mail.deliveries:
        attempts += one.is_attempt
        what = f"attempt {attempts}" if attempts else "before any attempt"
        if attempts and not one.is_attempt:
            what = f"after attempt {attempts}"
        if one.by_hand:
            what = BY_HAND
        said = f": {one.why}"
        if one.outcome == Outcome.SENT and one.message_id:
            sender = f" by {one.by}" if one.provider else ""
            said = f"{sender}{_to(mail, one)} as {one.message_id}{_made_from(one)}"
        elif one.why == one.outcome:
            said = ""
        by = f", {plain(one.worker)}" if one.worker else ""
        events.append((one.at, f"{what}{by}: {one.outcome}{said}"))
    events += lines(mail.events)
    if mail.consumed_at:
        events.append((mail.consumed_at, "consumed"))
    if mail.why_not_mailable == "address changed" and mail.expires_at and not mail.user_table:
        events.append((mail.expires_at, "ended: the account's address changed"))
    if mail.user_table and mail.ended_at and mail.ended_as in ENDED:
        events.append((mail.ended_at, f"ended: {ENDED[mail.ended_as]}"))
    if mail.changed_since and mail.status_changed_at:
        events.append((mail.status_changed_at, f"the account became {mail.status}"))
    if mail.lease_due_at:
        worker = plain(mail.lease_worker or "")
        what = f"attempt {attempts + 1} is due"
        if worker and worker != SCHEDULED:
            what = f"attempt {mail.attempt_in_hand}: the lease of {worker} ends"
        events.append((mail.lease_due_at, what))
    return events


def _to(mail: MailState, one: TokenDelivery) -> str:
    """To whom an attempt went, if the token does not say the same address."""
    return f" to {one.recipient}" if one.recipient and one.recipient != mail.email else ""


def _made_from(one: TokenDelivery) -> str:
    """Which template and language a mail was made from, and why that is known."""
    known = f", {one.detail}" if one.result == KNOWN else ""
    made = ", ".join(filter(None, (one.template, one.language)))
    return (f" ({made})" if made else "") + known


def _concluded(mail: MailState, stopped: str, troubles: Sequence[str]) -> tuple[StoryVerdict, str]:
    """The verdict and its reason; ``stopped`` is the reason why no mail at all is sent, if there is one."""
    for one in reversed(mail.deliveries):
        if one.result == UNRENDERED:
            break
        if one.outcome == Outcome.SENT:
            accepted = f"{one.by} accepted it at {utc(one.at)} as {one.message_id or '(no id)'}"
            return fate(mail.events, accepted) or (StoryVerdict.SENT, accepted)
    last = mail.deliveries[-1] if mail.deliveries else None
    if last and last.result == UNRENDERED:
        return (
            StoryVerdict.REJECTED,
            (
                f"at {utc(last.at)}: {last.detail}; correct the template, then `mailroom resume` and"
                f" `mailroom dead retry {mail.token}`"
            ),
        )
    if last and last.outcome == Outcome.REJECTED:
        if not last.provider and not last.result:
            return StoryVerdict.REJECTED, f"at {utc(last.at)}: {last.why}"
        tried = "" if last.result == "rejected" else f" after attempt {mail.attempts}, the last one"
        return StoryVerdict.REJECTED, f"at {utc(last.at)}{tried}: {last.by} answered: {last.why}"
    if last and last.by_hand and last.outcome == Outcome.SKIPPED:
        rejections = [one for one in mail.deliveries if one.outcome == Outcome.REJECTED]
        said = f", after {rejections[-1].by} answered: {rejections[-1].why}" if rejections else ""
        verdict = StoryVerdict.RENEWED if last.detail.startswith("renewed") else StoryVerdict.DROPPED
        return verdict, f"{last.detail}, at {utc(last.at)}{said}"
    if last and last.outcome == Outcome.SUPPRESSED:
        return StoryVerdict.SUPPRESSED, f"{SUPPRESSED}, as of {utc(last.at)}: {last.why}; {LIFT}"
    if last and last.outcome in {Outcome.EXPIRED, Outcome.SKIPPED}:
        return _hindered(mail, last.detail, last)
    if mail.lease_due_at:
        if mail.lease_worker == SCHEDULED and not mail.lease_is_due:
            if mail.why_not_mailable:
                return _hindered(mail, mail.why_not_mailable)
            return StoryVerdict.SCHEDULED, _scheduled(mail, stopped)
        if mail.lease_worker and not mail.lease_is_due:
            return (
                StoryVerdict.IN_FLIGHT,
                f"{plain(mail.lease_worker)} has claimed it, attempt {mail.attempt_in_hand}",
            )
        if mail.why_not_mailable:
            return _hindered(mail, mail.why_not_mailable)
        if mail.lease_worker == SCHEDULED:
            return StoryVerdict.WAITING, stopped or "it is due, and no worker has claimed it yet"
        if mail.lease_worker:
            ended = f"the lease of {plain(mail.lease_worker)} expired at {utc(mail.lease_due_at)}"
            return (
                StoryVerdict.WAITING,
                f"{ended} without an outcome; {stopped or 'the next worker that claims takes it over'}",
            )
        reasons = [_failed(mail, last)] if last else []
        if mail.held_back:
            reasons.append(_held_back(troubles))
        reasons.append(stopped or f"next attempt at {utc(mail.lease_due_at)}")
        return StoryVerdict.RETRYING, "; ".join(reasons)
    if mail.waits:
        if mail.why_not_mailable:
            return _hindered(mail, mail.why_not_mailable)
        if mail.send_at and mail.send_at > datetime.now(UTC):
            return StoryVerdict.SCHEDULED, _scheduled(mail, stopped)
        return (
            StoryVerdict.WAITING,
            stopped or "no worker has claimed it yet; `mailroom status` shows whether others are sent",
        )
    if last and not last.by_hand:
        return (
            StoryVerdict.UNSETTLED,
            f"attempt {mail.attempts} ended as {last.outcome} ({last.why}), and no lease holds it",
        )
    return _handed_to_a_pipe(mail)


def _scheduled(mail: MailState, stopped: str) -> str:
    """When a scheduled mail goes out, and why not if no mail does."""
    return (f"for {utc(mail.send_at)}" if mail.send_at else "for later") + (f"; {stopped}" if stopped else "")


def _failed(mail: MailState, last: TokenDelivery) -> str:
    """The ledger's last row, in words, for a mail that will be retried."""
    if last.by_hand:
        return f"it was rejected, and retried {last.detail}, at {utc(last.at)}"
    if last.outcome == Outcome.UNKNOWN:
        return f"the answer to attempt {mail.attempts} was lost ({last.why}), so it may arrive twice"
    return f"attempt {mail.attempts} failed: {last.why}"


def _held_back(troubles: Sequence[str]) -> str:
    """Why a worker claimed it and made no attempt. The ledger does not say, so all troubles are listed."""
    why = f"in trouble: {'; '.join(troubles)}" if troubles else "see `mailroom status`"
    return f"a worker claimed it and made no attempt ({why})"


def _handed_to_a_pipe(mail: MailState) -> tuple[StoryVerdict, str]:
    """The verdict on a token behind the cursor that has no lease and no row in the ledger, and its reason."""
    consumed = f"; it was consumed at {utc(mail.consumed_at)}" if mail.consumed_at else ""
    return StoryVerdict.HANDED_OUT, PIPE + consumed


def _hindered(mail: MailState, why: str, row: TokenDelivery | None = None) -> tuple[StoryVerdict, str]:
    attempts = [one for one in mail.deliveries if one.is_attempt]
    tried = max(
        (number for number, one in enumerate(attempts, 1) if one.outcome != Outcome.REJECTED), default=0
    )
    waited = f", after attempt {tried} failed" if tried else " while it waited"
    turn = f" when its turn came, at {utc(row.at)}" if row else ""
    if mail.user_table and mail.ended_at and why in ENDED:
        return StoryVerdict.NOT_SENT, f"{ENDED[why]} at {utc(mail.ended_at)}, which ended the token"
    match why:
        case "expired":
            when = f" at {utc(mail.expires_at)}" if mail.expires_at else ""
            return StoryVerdict.NOT_SENT, f"the token expired{when}{waited}"
        case "consumed":
            when = f" at {utc(mail.consumed_at)}" if mail.consumed_at else ""
            return StoryVerdict.NOT_SENT, f"the token was consumed{when}{waited}"
        case "address changed":
            when = f" at {utc(mail.expires_at)}" if mail.expires_at else ""
            return StoryVerdict.NOT_SENT, f"the account's address changed{when}, which ended the token"
        case "superseded":
            return (
                StoryVerdict.NOT_SENT,
                f"a newer {mail.action or 'token'} for the same recipient went out instead",
            )
        case "limited":
            return StoryVerdict.NOT_SENT, f"the recipient had as many as the limit of the action allows{turn}"
        case "unknown action":
            known = "mailroom.actions has no row for the action"
            return StoryVerdict.NOT_SENT, f"{known} {mail.action}; run `mailroom actions apply`"
        case "sibling consumed":
            when = f" at {utc(mail.expires_at)}" if mail.expires_at else ""
            other = f"{mail.action} token" if mail.action else "token of its action"
            return StoryVerdict.NOT_SENT, f"another {other} was consumed, which ended this one{when}"
        case "suppressed":
            return StoryVerdict.SUPPRESSED, f"{SUPPRESSED}; {LIFT}"
        case "suspended" if mail.status == "suspended":
            return StoryVerdict.NOT_SENT, "the account is suspended"
        case "suspended":
            return StoryVerdict.NOT_SENT, f"the account was suspended{turn}"
        case "ineligible" if mail.action and mail.status != mail.needed_status:
            needed = f"{mail.action} requires {mail.needed_status}"
            return StoryVerdict.NOT_SENT, f"the account is {mail.status}, and {needed}"
        case "deleted":
            return StoryVerdict.NOT_SENT, "the token is gone: its account was deleted, or it was pruned"
        case _:
            return StoryVerdict.NOT_SENT, f"the account's status did not fit the action{turn}"
