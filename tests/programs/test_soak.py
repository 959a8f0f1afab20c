"""The soak: it finds what it must find, and a short one holds."""

from __future__ import annotations

import base64
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from bench.programs import KEY
from bench.soak.account import Account, Evidence, account
from bench.soak.book import Book, Delivery, Token
from bench.soak.faults import KINDS
from bench.soak.provider import Mail
from bench.soak.run import Plan, soak
from bench.soak.windows import Window
from bench.soak.workers import End

from mailroom.tokens import sign

SECRET = b"s" * 32
EMAIL = "zoe@example.com"
QUIET = Evidence([], [], {})


def fingerprint() -> bytes:
    return sha256(SECRET).digest()[:8]


def mail(number: int, at: float, *, sender: str = "one-1", recipient: str = EMAIL) -> Mail:
    return Mail(at, f"id{number}", recipient, sender, number, sign(SECRET, "activation", keys=KEY), "")


def book(*rows: Delivery) -> Book:
    found = Book()
    found.tokens[fingerprint()] = Token(7, fingerprint(), EMAIL)
    found.ledger = {row.id: row for row in rows}
    return found


def sent(number: int, at: float) -> Delivery:
    return Delivery(number, 7, fingerprint(), 1, "sent", f"id{number}", "", at)


def accounted(
    found: Book, mails: list[Mail], evidence: Evidence = QUIET, recovered: list[int] | None = None
) -> Account:
    return account(found, mails, [EMAIL], recovered or [7], evidence, KEY)


def test_a_mail_that_came_once_is_in_order() -> None:
    assert [] == accounted(book(sent(1, 10.1)), [mail(1, 10)]).faults()


def test_a_token_without_a_mail_is_lost() -> None:
    found = accounted(book(), [])
    assert ["token 7: no row in the ledger"] == found.lost
    assert ["1 lost: token 7: no row in the ledger"] == found.faults()


def test_an_answered_commit_without_a_token_is_missing() -> None:
    assert ["token 8"] == accounted(book(sent(1, 10.1)), [mail(1, 10)], recovered=[8]).missing


def test_a_mail_without_a_committed_token_is_forged() -> None:
    other = base64.urlsafe_b64encode(b"x" * 64).decode().rstrip("=")
    found = accounted(book(sent(1, 10.1)), [mail(1, 10), mail(2, 11)._replace(token=other)])
    assert ["id2 to zoe@example.com by one-1"] == found.forged
    assert [] != accounted(book(sent(1, 10.1)), [mail(1, 10, recipient="eve@example.com")]).forged


def test_a_row_that_says_sent_needs_its_mail() -> None:
    assert ["row 2: token 7, mail id2"] == accounted(book(sent(1, 10.1), sent(2, 11)), [mail(1, 10)]).false


def window(reach: str, start: float, end: float, *workers: str) -> Window:
    return Window(f"a fault of {reach}", reach, workers, start, end)


KILLED = End("one-1", 10.2, -9, asked_for=True)


@pytest.mark.parametrize(
    ("evidence", "cause"),
    [
        (QUIET, ""),
        (Evidence([], [], {1: "cut"}), "SES's answer was lost (cut)"),
        (Evidence([], [], {2: "cut"}), ""),
        (Evidence([], [KILLED], {}), "the worker was killed before it recorded the answer"),
        (Evidence([], [KILLED._replace(process="one-2")], {}), ""),
        (
            Evidence([], [KILLED._replace(at=9.5)], {}),
            "the worker was killed before it recorded the answer",
        ),
        (Evidence([], [KILLED._replace(at=8.5)], {}), ""),
        (Evidence([], [KILLED._replace(at=14)], {}), ""),
        (Evidence([], [KILLED._replace(code=0)], {}), ""),
        (Evidence([window("answers", 9, 20, "one")], [], {}), "SES's answer was in a deaf network"),
        (Evidence([window("answers", 9, 20, "two")], [], {}), ""),
        (Evidence([window("answers", 12, 20)], [], {}), ""),
        (
            Evidence([window("answers", 12, 24.9, "two")], [], {}),
            "the later call was held back by a deaf network, and was made again before",
        ),
        (Evidence([window("answers", 12, 24.9, "one")], [], {}), ""),
        (Evidence([window("answers", 12, 30)], [], {}), ""),
        (
            Evidence([window("worker", 10, 30, "one")], [], {}),
            "the worker stood still before it recorded the answer",
        ),
        (Evidence([window("worker", 13, 30, "one")], [], {}), ""),
        (
            Evidence([window("worker", 8, 24.5, "two")], [], {}),
            "the later call was under way in a process that stood still until its lease was over",
        ),
        (Evidence([window("worker", 8, 22, "two")], [], {}), ""),
        (Evidence([window("worker", 12, 24.5, "two")], [], {}), ""),
        (
            Evidence([window("database", 9, 12)], [], {}),
            "the outcome was not recorded in time: a fault of database",
        ),
        (Evidence([window("database", 1, 4)], [], {}), ""),
        (Evidence([window("provider", 9, 12)], [], {}), ""),
    ],
)  # fmt: skip
def test_a_duplicate_needs_a_cause(evidence: Evidence, cause: str) -> None:
    found = accounted(book(sent(2, 25.1)), [mail(2, 25, sender="two-1"), mail(1, 10)], evidence)
    assert 1 == found.duplicates
    assert {cause or "unexplained": 1} == found.causes
    assert bool(cause) is not bool(found.faults())


def test_what_was_recorded_before_the_fault_was_not_lost_by_it() -> None:
    evidence = Evidence([window("database", 11, 20)], [], {})
    found = accounted(book(sent(1, 10.1), sent(2, 25)), [mail(1, 10), mail(2, 24)], evidence)
    assert {"unexplained": 1} == found.causes


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_soak_holds(tmp_path: Path, figures: Callable[[str], None]) -> None:
    wanted = ("a worker killed with -9", "SES's answers cut", "PostgreSQL stopped at once")
    kinds = tuple(kind for kind in KINDS if kind.name in wanted)
    result = soak(Plan(seconds=45, seed=3, rate=100, kinds=kinds), tmp_path)
    assert [] == result["faults_found"]
    assert len(result["faults"]) >= 2
    assert result["committed"] > 2000
    figures(f"{result['committed']} mails, {result['faults']}, duplicates {result['account']['causes']}")
