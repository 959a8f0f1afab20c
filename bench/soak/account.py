"""Accounts for every token and every mail, once the queue is empty.

- Lost: a committed token without a mail at the provider. None is allowed; the load avoids expiry and limits.
- Missing: a sign-up or recovery whose commit was answered, and whose token is nowhere. None is allowed.
- Forged: a mail without a valid token that was committed. None is allowed.
- False: a row of the ledger that says sent, and names no mail to that address. None is allowed.
- Duplicates: each mail after a token's first needs a cause for which the mail before it did not settle the
  token. A duplicate without a cause is not allowed.

A cause is one of these, in this order: the call's answer was lost by a fault of the provider; the process
that made the call was killed before it recorded the answer; the answer was in a network that was deaf, or the
later call was, which arrived when the network heard again; the process stood still between the answer and the
record, or the other process stood still in the later call, while its lease ran out; the database was away at
that time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any, Final, NamedTuple

from bench.soak.book import Book, Delivery
from bench.soak.load import secret_of
from bench.soak.provider import Mail
from bench.soak.windows import Window
from bench.soak.workers import End

# An answer is under way for 30 ms, and its record takes a little longer; the machine may be busy.
RECORD_S: Final = 2.0
CLOCK_S: Final = 0.1
# Workers connect again with a back-off of up to five seconds.
BACK_OFF_S: Final = 5.0
# What is under way arrives this much later: a killed process's call, or what a deaf network held back.
BEHIND_S: Final = 1.0
SHOWN: Final = 20


class Evidence(NamedTuple):
    """What happened, beside the mails and the book.

    Attributes:
        windows: the faults that took time.
        ends: the ends of processes.
        lost_calls: the verdict of each call whose answer a fault of the provider lost.
    """

    windows: Sequence[Window]
    ends: Sequence[End]
    lost_calls: Mapping[int, str]


class Account(NamedTuple):
    """What was found; the lists hold what is not allowed."""

    tokens: int
    mails: int
    duplicates: int
    causes: dict[str, int]
    outcomes: dict[str, int]
    lost: list[str]
    missing: list[str]
    forged: list[str]
    false: list[str]
    unexplained: list[str]

    def faults(self) -> list[str]:
        """What is not allowed, a line for each kind."""
        return [
            f"{len(found)} {name}: {'; '.join(found[:3])}"
            for name, found in self._asdict().items()
            if name in ("lost", "missing", "forged", "false", "unexplained") and found
        ]

    def as_json(self) -> dict[str, Any]:
        """Return numbers, and the first of each list."""
        return {
            name: {"count": len(found), "first": found[:SHOWN]} if isinstance(found, list) else found
            for name, found in self._asdict().items()
        }


def account(
    book: Book,
    mails: Sequence[Mail],
    signed_up: Iterable[str],
    recovered: Iterable[int],
    evidence: Evidence,
    key: str,
) -> Account:
    """Compare the book with what the provider accepted."""
    sent = {row.message_id: row for row in book.ledger.values() if row.outcome == "sent"}
    by_token: dict[bytes, list[Mail]] = defaultdict(list)
    forged = []
    for mail in mails:
        secret = secret_of(mail, key)
        fingerprint = sha256(secret).digest()[:8] if secret else b""
        token = book.tokens.get(fingerprint)
        if token is None or token.email != mail.recipient:
            forged.append(f"{mail.id} to {mail.recipient} by {mail.sender}")
        else:
            by_token[fingerprint].append(mail)
    outcomes: dict[int, list[str]] = defaultdict(list)
    for row in sorted(book.ledger.values()):
        outcomes[row.token].append(f"{row.outcome} {row.detail}".strip())
    lost = [
        f"token {token.id}: {', '.join(outcomes[token.id]) or 'no row in the ledger'}"
        for token in book.tokens.values()
        if token.fingerprint not in by_token
    ]
    addresses = {token.email for token in book.tokens.values()}
    ids = {token.id for token in book.tokens.values()}
    missing = [email for email in signed_up if email not in addresses]
    missing += [f"token {token}" for token in recovered if token not in ids]
    accepted = {mail.id: mail for mail in mails}
    owners = {token.id: token.email for token in book.tokens.values()}
    false = [
        f"row {row.id}: token {row.token}, mail {row.message_id}"
        for row in sent.values()
        if row.message_id not in accepted or accepted[row.message_id].recipient != owners.get(row.token)
    ]
    causes: Counter[str] = Counter()
    unexplained = []
    for fingerprint, found in by_token.items():
        found.sort()
        for mail, following in pairwise(found):
            cause = cause_of(mail, following, sent.get(mail.id), evidence)
            causes[cause or "unexplained"] += 1
            if not cause:
                number = book.tokens[fingerprint].id
                row_of_it = sent.get(mail.id)
                unexplained.append(described(number, mail, following, row_of_it, outcomes[number]))
    return Account(
        tokens=len(book.tokens),
        mails=len(mails),
        duplicates=sum(causes.values()),
        causes=dict(causes.most_common()),
        outcomes=dict(Counter(row.outcome for row in book.ledger.values()).most_common()),
        lost=lost,
        missing=missing,
        forged=forged,
        false=false,
        unexplained=unexplained,
    )


def cause_of(mail: Mail, following: Mail, row: Delivery | None, evidence: Evidence) -> str:
    """Why a mail did not settle its token before the following one was sent; empty if there is no cause."""
    worker = mail.sender.partition("-")[0]
    if verdict := evidence.lost_calls.get(mail.call):
        return f"SES's answer was lost ({verdict})"
    recorded = row.at if row else following.at

    def during(reach: str, end: float) -> Window | None:
        start = mail.at - (BACK_OFF_S if reach == "database" else CLOCK_S)
        return next((one for one in evidence.windows if one.covers(reach, worker, start, end)), None)

    if not row and any(
        end.process == mail.sender and end.asked_for and end.code == -9 and mail.at - end.at <= BEHIND_S
        and end.at <= max(mail.at + RECORD_S, blocked_until(mail, worker, evidence))
        for end in evidence.ends
    ):  # fmt: skip
        return "the worker was killed before it recorded the answer"
    if during("answers", mail.at + BEHIND_S) or held_back(mail, evidence):
        return "SES's answer was in a deaf network"
    if held_back(following, evidence):
        return "the later call was held back by a deaf network, and was made again before"
    if stood_still(mail, following, evidence):
        return "the later call was under way in a process that stood still until its lease was over"
    if during("worker", min(recorded, mail.at + RECORD_S)):
        return "the worker stood still before it recorded the answer"
    if found := during("database", min(recorded, mail.at + RECORD_S)):
        return f"the outcome was not recorded in time: {found.kind}"
    return ""


def blocked_until(mail: Mail, worker: str, evidence: Evidence) -> float:
    """Until when the process could not record an answer, because the database or itself was away."""
    ends = [
        window.end + BACK_OFF_S
        for window in evidence.windows
        for reach in ("database", "worker")
        if window.covers(reach, worker, mail.at - CLOCK_S, mail.at + RECORD_S)
    ]
    return max(ends, default=0.0)


def held_back(mail: Mail, evidence: Evidence) -> bool:
    """Whether the call arrived when a deaf network heard again, so that its sender had given up."""
    worker = mail.sender.partition("-")[0]
    return any(
        window.covers("answers", worker, mail.at - BEHIND_S, mail.at) and window.end <= mail.at + CLOCK_S
        for window in evidence.windows
    )


def stood_still(mail: Mail, following: Mail, evidence: Evidence) -> bool:
    """Whether the following call's process stood still when the mail was sent, and went on just then."""
    worker = following.sender.partition("-")[0]
    return any(
        window.covers("worker", worker, mail.at, mail.at)
        and 0 <= following.at - window.end + CLOCK_S <= RECORD_S
        for window in evidence.windows
    )


def described(token: int, mail: Mail, following: Mail, row: Delivery | None, outcomes: list[str]) -> str:
    known = f"recorded {row.at - mail.at:.2f} s later" if row else "never recorded"
    return (
        f"token {token}: by {mail.sender} in call {mail.call} at {mail.at:.2f}, {known},"
        f" and by {following.sender} {following.at - mail.at:.2f} s later; {', '.join(outcomes)}"
    )
