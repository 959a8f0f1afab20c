"""The story of one mail in plain words, out of what the database knows of it.

Promises: addresses are masked, in a provider's words too. What the database cannot know (a pipe's
sender keeps its own record) is said to be unknown, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

PROVIDERS: Final = {"ses": "SES", "smtp": "the SMTP server", "debug": "the debug transport"}
# The result of a row of the ledger that a person wrote.
BY_HAND: Final = "by hand"
NOBODY_IS_ALIVE: Final = "no `mailroom run` is alive (a collector in a pipe is not seen here)"
PIPE: Final = "to a pipe (mailroom collector), whose sender's log and rejected.csv know more"


@dataclass(frozen=True, slots=True)
class Pause:
    """Since when a queue is paused, and why; neither when it is not."""

    paused_at: datetime | None
    pause_reason: str | None

    def text(self) -> str:
        """For people; empty when it is not paused."""
        if self.paused_at is None:
            return ""
        why = plain(mask(self.pause_reason or "nobody said why"))
        return f"paused since {utc(self.paused_at)} because: {why}"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A row of the ledger."""

    token: int
    attempt: int
    outcome: str
    result: str
    provider: str
    message_id: str
    detail: str
    worker: str
    at: datetime

    @property
    def by(self) -> str:
        """Who answered."""
        return PROVIDERS.get(self.provider, plain(self.provider) or "the transport")

    @property
    def why(self) -> str:
        """What was said, else the class of the answer."""
        return self.detail or self.result or "no reason was given"

    @property
    def by_hand(self) -> bool:
        """Whether a person wrote it, with `mailroom dead`."""
        return self.result == BY_HAND

    @property
    def is_attempt(self) -> bool:
        """Whether it says what became of an attempt."""
        return self.outcome in {"sent", "rejected", "retried", "unknown"} and not self.by_hand


@dataclass(frozen=True, slots=True)
class Mail:
    """A token, as far as its mail is concerned; without an action it is gone."""

    token: int | None
    action: str | None
    email: str | None
    login: str | None
    status: str | None
    status_changed_at: datetime | None
    needed_status: str | None
    created_at: datetime | None
    expires_at: datetime | None
    consumed_at: datetime | None
    why_not_mailable: str | None
    waits: bool
    lease_worker: str | None
    lease_generation: int | None
    lease_due_at: datetime | None
    lease_is_due: bool | None
    deliveries: tuple[Delivery, ...] = ()

    @property
    def changed_since(self) -> bool:
        """Whether the account's status changed after the token was made."""
        return bool(self.status_changed_at and self.created_at and self.status_changed_at > self.created_at)

    @property
    def attempts(self) -> int:
        """How many attempts the ledger has. A lease's generation counts those claims too that made none."""
        return sum(one.is_attempt for one in self.deliveries)

    @property
    def held_back(self) -> bool:
        """Whether whoever had the lease last made no attempt, or none yet."""
        by_hand = [place for place, one in enumerate(self.deliveries) if one.by_hand]
        since = self.deliveries[by_hand[-1] if by_hand else 0 :]  # from where its generations count anew
        return all(one.attempt != self.lease_generation for one in since)

    @property
    def attempt_in_hand(self) -> int:
        """The number of a worker's attempt; the ledger, read after the lease, may have it already."""
        return self.attempts + self.held_back


@dataclass(frozen=True, slots=True)
class Story:
    """What became of a mail: a verdict, its reason in plain words, and what happened when."""

    verdict: str
    conclusion: str
    events: tuple[tuple[datetime, str], ...]
    mail: Mail

    def text(self) -> str:
        """For people: the conclusion, the token, and a line for each event."""
        mail = self.mail
        about = f"token {mail.token}"
        if mail.action:
            about += f": {mail.action} for {mail.login} <{mail.email}>, whose account is {mail.status}"
        told = [f"  {utc(at)}  {text}" for at, text in self.events]
        return "\n".join([f"{self.verdict}: {self.conclusion}", f"  {about}", *told])

    def as_dict(self) -> dict[str, Any]:
        """For programs; times are datetimes."""
        return {"verdict": self.verdict, "conclusion": self.conclusion} | asdict(self.mail)


def utc(at: datetime) -> str:
    """A time in UTC, to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def span(seconds: float) -> str:
    """How long, in the largest unit that has two of it."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def counted(count: int, noun: str) -> str:
    """A number of things."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def plain(text: str) -> str:
    """A text on one line, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def mask(text: str, address: str = "") -> str:
    """A text in which of every address the first letter and the domain are left."""
    if address:
        local, _, domain = address.partition("@")
        text = re.sub(re.escape(address), lambda _: f"{local[:1]}…@{domain}", text, flags=re.IGNORECASE)
    return re.sub(r"""([^\s@<>"'(),:;])[^\s@<>"'(),:;]*@(?=[^\s@])""", r"\1…@", text)


def masked(mail: Mail, written: Sequence[Delivery]) -> Mail:
    """A mail with its rows of the ledger, without addresses and what a terminal would obey."""
    address = mail.email or ""
    return replace(
        mail,
        email=mail.email and plain(mask(mail.email, address)),
        login=mail.login and plain(mask(mail.login, address)),
        deliveries=tuple(
            replace(one, detail=plain(mask(one.detail, address)), message_id=plain(one.message_id))
            for one in written
            if one.token == mail.token
        ),
    )


def tell_story(mail: Mail, pause: Pause, *, alive: int, troubles: Sequence[str]) -> Story:
    """The story of a mail.

    Args:
        mail: with its rows of the ledger.
        pause: the queue's.
        alive: how many workers are.
        troubles: what keeps them from sending.
    """
    stopped = f"the queue is {pause.text()}" if pause.paused_at else ""
    if not stopped and not alive:
        stopped = NOBODY_IS_ALIVE
    return Story(*_concluded(mail, stopped, troubles), tuple(sorted(_events(mail))), mail)


def _events(mail: Mail) -> list[tuple[datetime, str]]:
    events = []
    if mail.created_at:
        life = f"it expires at {utc(mail.expires_at)}" if mail.expires_at else "it never expires"
        events.append((mail.created_at, f"made; {life}"))
    attempts = 0
    for one in mail.deliveries:
        attempts += one.is_attempt
        what = f"attempt {attempts}" if attempts else "before any attempt"
        if attempts and not one.is_attempt:
            what = f"after attempt {attempts}"
        if one.by_hand:
            what = BY_HAND
        said = f" as {one.message_id}" if one.message_id else f": {one.why}"
        if one.why == one.outcome and not one.message_id:
            said = ""
        events.append((one.at, f"{what}, {plain(one.worker)}: {one.outcome}{said}"))
    if mail.consumed_at:
        events.append((mail.consumed_at, "consumed"))
    if mail.changed_since and mail.status_changed_at:
        events.append((mail.status_changed_at, f"the account became {mail.status}"))
    if mail.lease_due_at:
        worker = plain(mail.lease_worker or "")
        what = f"attempt {attempts + 1} is due"
        if worker:
            what = f"attempt {mail.attempt_in_hand}: the lease of {worker} ends"
        events.append((mail.lease_due_at, what))
    return events


def _concluded(mail: Mail, stopped: str, troubles: Sequence[str]) -> tuple[str, str]:
    """The verdict and its reason; ``stopped`` says why no mail goes out at all, if none does."""
    for one in reversed(mail.deliveries):
        if one.outcome == "sent":
            return "sent", f"{one.by} accepted it at {utc(one.at)} as {one.message_id or '(no id)'}"
    last = mail.deliveries[-1] if mail.deliveries else None
    if last and last.outcome == "rejected":
        tried = "" if last.result == "rejected" else f" after attempt {mail.attempts}, the last one"
        return "rejected", f"given up at {utc(last.at)}{tried}: {last.by} said: {last.why}"
    if last and last.by_hand and last.outcome == "skipped":
        rejections = [one for one in mail.deliveries if one.outcome == "rejected"]
        said = f", after {rejections[-1].by} said: {rejections[-1].why}" if rejections else ""
        verdict = "renewed" if last.detail.startswith("renewed") else "dropped"
        return verdict, f"{last.detail}, at {utc(last.at)}{said}"
    if last and last.outcome in {"expired", "skipped"}:
        return _hindered(mail, last.detail, last)
    if mail.lease_due_at:
        if mail.lease_worker and not mail.lease_is_due:
            return "in flight", f"{plain(mail.lease_worker)} has it in hand, attempt {mail.attempt_in_hand}"
        if mail.why_not_mailable:
            return _hindered(mail, mail.why_not_mailable)
        if mail.lease_worker:
            ended = (
                f"the lease of {plain(mail.lease_worker)} ended at {utc(mail.lease_due_at)} with no outcome"
            )
            return "waiting", f"{ended}; {stopped or 'the next worker to claim takes it over'}"
        told = [_failed(mail, last)] if last else []
        if mail.held_back:
            told.append(_held_back(troubles))
        told.append(stopped or f"next try at {utc(mail.lease_due_at)}")
        return "retrying", "; ".join(told)
    if mail.waits:
        if mail.why_not_mailable:
            return _hindered(mail, mail.why_not_mailable)
        return "waiting", stopped or "it is to be handed out; see `mailroom status` whether others are"
    if last and not last.by_hand:
        return (
            "unsettled",
            f"attempt {mail.attempts} ended as {last.outcome} ({last.why}), and no lease holds it",
        )
    return _passed(mail)


def _failed(mail: Mail, last: Delivery) -> str:
    """What the ledger's last row says of a mail that is to be tried again."""
    if last.by_hand:
        return f"it was rejected, and is tried again {last.detail}, since {utc(last.at)}"
    if last.outcome == "unknown":
        return f"the answer to attempt {mail.attempts} was lost ({last.why}), so it may arrive twice"
    return f"attempt {mail.attempts} failed: {last.why}"


def _held_back(troubles: Sequence[str]) -> str:
    """A worker had it in hand and made no attempt. Which trouble it was, if any, is not known."""
    told = f"in trouble: {'; '.join(troubles)}" if troubles else "see `mailroom status`"
    return f"it was held back when its turn came ({told})"


def _passed(mail: Mail) -> tuple[str, str]:
    """Behind the cursor, in no lease, not in the ledger: a pipe had it, or it was passed over."""
    since = utc(mail.status_changed_at) if mail.changed_since and mail.status_changed_at else ""
    if mail.why_not_mailable in {"suspended", "ineligible"} and not since:
        return _hindered(mail, mail.why_not_mailable)
    if mail.consumed_at:
        return "handed out", f"{PIPE}; it was consumed at {utc(mail.consumed_at)}"
    if since:
        over = f"passed over, depending on when: the account is {mail.status} since {since}"
        return "handed out", f"{PIPE}; or {over}"
    return "handed out", PIPE


def _hindered(mail: Mail, why: str, row: Delivery | None = None) -> tuple[str, str]:
    attempts = [one for one in mail.deliveries if one.is_attempt]
    tried = max((number for number, one in enumerate(attempts, 1) if one.outcome != "rejected"), default=0)
    waited = f", after attempt {tried} failed" if tried else " while it waited"
    turn = f" when its turn came, at {utc(row.at)}" if row else ""
    match why:
        case "expired":
            when = f" at {utc(mail.expires_at)}" if mail.expires_at else ""
            return "not sent", f"the token expired{when}{waited}"
        case "consumed":
            when = f" at {utc(mail.consumed_at)}" if mail.consumed_at else ""
            return "not sent", f"the token was consumed{when}{waited}"
        case "superseded":
            when = f" at {utc(mail.expires_at)}" if mail.expires_at else ""
            return (
                "not sent",
                f"another {mail.action or 'token of its action'} was consumed, which ended it{when}",
            )
        case "suspended" if mail.status == "suspended":
            return "not sent", "the account is suspended"
        case "suspended":
            return "not sent", f"the account was suspended{turn}"
        case "ineligible" if mail.action and mail.status != mail.needed_status:
            verdict = "not sent" if tried else "not handed out"
            return verdict, f"the account is {mail.status}, and {mail.action} needs {mail.needed_status}"
        case "deleted":
            return "not sent", "the token is gone: its account was deleted, or it was pruned"
        case _:
            return "not sent", f"the account's status did not fit the action{turn}"
