"""Runs the tour of `mailroom demo`: people sign up, and their mails arrive in a local SES.

Everything but SES is real: the database and its triggers, ``mailroom run``, AWS's client and its protocol,
the forms of the example application. The tour prints what happens. At the end it checks that the database,
the ledger and the inbox's API count the same, that no token arrived twice, and that every token verifies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

import psycopg
from psycopg.rows import class_row

from mailroom.database import sync
from mailroom.demo.letters import PATIENCE_S, WAIT_S, Letter, Letters
from mailroom.demo.people import Person
from mailroom.demo.programs import RUN, DemoError, Programs
from mailroom.demo.stage import Stage
from mailroom.demo.stories import NOBODY, meet
from mailroom.errors import TokenError
from mailroom.tokens import verify

RECOVERY_EVERY: Final = 7
# The pause between two sign-ups by SQL, and about the longest time for all of them.
PAUSE_S: Final = 0.06
BULK_S: Final = 3.0
# How many of their mails are shown.
SHOWN: Final = 8
LOOK_S: Final = 0.1

ADD_PROVISIONED: Final = "INSERT INTO accounts (email, login) VALUES (%s, %s)"
ADD_FORGETFUL: Final = """
WITH account AS (INSERT INTO accounts (email, login, status) VALUES (%s, %s, 'active') RETURNING id)
INSERT INTO tokens (action, account) SELECT 'password_recovery', id FROM account
"""
# A mail is skipped if its account has changed, as when somebody uses the application during the tour.
COUNT: Final = """
SELECT (SELECT count(*) FROM tokens) - count(*) FILTER (WHERE d.outcome = 'skipped') AS due,
       count(*) FILTER (WHERE d.outcome = 'sent') AS sent,
       coalesce(extract(epoch FROM percentile_disc(0.5) WITHIN GROUP (ORDER BY d.at - t.created_at)
                        FILTER (WHERE d.outcome = 'sent')), 0)::float AS median_s
FROM mailroom.deliveries d JOIN tokens t ON t.id = d.token
"""

Tell = Callable[[str], None]
Connection = psycopg.Connection[tuple[object, ...]]


class TourCounts(NamedTuple):
    """The counts of the database.

    Attributes:
        due: how many mails are due.
        sent: how many are sent, by the ledger.
        median_s: the median time from a token's row to its entry in the ledger.
    """

    due: int
    sent: int
    median_s: float


def run_tour(signups: int, tell: Tell, *, stay: bool) -> int:
    """Run the tour, and with ``stay`` go on until an interrupt.

    Returns 0 if every mail arrived once and every token verified, else 1.

    Raises:
        MailroomError: a program does not start or ends, or a mail does not arrive.
        KeyboardInterrupt: during the tour.
    """
    with Stage(tell) as stage:
        letters = Letters(stage.inbox.url, stage.programs)
        tell("\n".join(["\nTo watch it in a browser:\n", *(place.text() for place in stage.addresses())]))
        meet(lambda name: Person(name, stage.app.url, letters, stage.programs, tell), tell)
        tell(f"\n{signups} more people sign up, by SQL. Some of them forget their passwords.")
        with sync.connected(stage.database_url) as connection:
            hidden = _sign_up_many(connection, letters, signups, tell)
            count = _wait_for_all(connection, stage.programs)
        tell(f"  … and {hidden} more." if hidden else "")
        whole = _sum_up(count, letters, stage.key, tell)
        if stay:
            _stay(stage, letters, tell)
    return 0 if whole else 1


def _sign_up_many(connection: Connection, letters: Letters, signups: int, tell: Tell) -> int:
    """Sign people up, let every seventh recover, and show the first mails as they arrive.

    Returns how many mails are not shown.
    """
    mails = shown = 0
    looked_s = time.monotonic()
    for number in range(1, signups + 1):
        connection.execute(ADD_PROVISIONED, [f"person{number}@example.com", f"person{number}"])
        mails += 1
        if number % RECOVERY_EVERY == 0:
            connection.execute(ADD_FORGETFUL, [f"forgetful{number}@example.com", f"forgetful{number}"])
            mails += 1
        time.sleep(min(PAUSE_S, BULK_S / signups))
        if shown < SHOWN and time.monotonic() - looked_s > LOOK_S:
            shown += _show(letters.new(), SHOWN - shown, tell)
            looked_s = time.monotonic()
    while shown < min(mails, SHOWN) and (new := letters.new(WAIT_S)):
        shown += _show(new, SHOWN - shown, tell)
    return mails - shown


def _show(found: list[Letter], most: int, tell: Tell) -> int:
    for letter in found[:most]:
        tell(_line(letter))
    return min(len(found), most)


def _line(letter: Letter) -> str:
    """Return a mail as a line, without control characters from its address and subject."""
    what = letter["failure"] or letter["subject"] or ""
    return "  mail: " + " ".join(
        text if text.isprintable() else ascii(text) for text in (f"{letter['recipient']:<24}", what)
    )


def _wait_for_all(connection: Connection, programs: Programs) -> TourCounts:
    """Return the counts once all due mails are sent.

    Raises:
        DemoError: no further mail was sent for ``PATIENCE_S``.
    """
    count, moved_s = _counted(connection), time.monotonic()
    while count.sent < count.due:
        programs.check()
        if time.monotonic() - moved_s > PATIENCE_S:
            raise programs.failure(
                f"{count.due - count.sent} of {count.due} mails wait; none was sent in {PATIENCE_S:.0f} s",
                RUN,
            )
        time.sleep(LOOK_S)
        before, count = count, _counted(connection)
        if before.sent < count.sent:
            moved_s = time.monotonic()
    return count


def _counted(connection: Connection) -> TourCounts:
    with connection.cursor(row_factory=class_row(TourCounts)) as cursor:
        count = cursor.execute(COUNT).fetchone()
    if count is None:
        raise DemoError("PostgreSQL returned no counts")
    return count


def _sum_up(count: TourCounts, letters: Letters, key: str, tell: Tell) -> bool:
    """Print the result, and return whether every mail arrived once."""
    mails = list(letters.all())
    recipients, accepted = letters.recipients(), letters.accepted()
    links = [mail for mail in mails if "secret" in mail["data"]]
    genuine = sum(_is_genuine(mail, key, tell) for mail in links)
    different = len({mail["data"]["secret"] for mail in links})
    tell(
        f"\n{count.due} mails were due, the ledger says that {count.sent} are sent, and the inbox's API that"
        f" {accepted} arrived,\nat {len(recipients)} addresses. {genuine} of them hold a token that verifies;"
        f" {accepted - len(links)} are notices. The median mail took {count.median_s:.2f} s."
    )
    whole = (
        count.due == count.sent == accepted
        and genuine == different == len(links)
        and NOBODY not in recipients
    )
    tell("Nothing was lost, nothing was sent twice." if whole else "Something went wrong: see above.")
    return whole


def _is_genuine(mail: Letter, key: str, tell: Tell) -> bool:
    try:
        verify(mail["data"]["secret"], mail["action"], keys=key, code=mail["code"])
    except TokenError as error:
        tell(f"a token of {mail['recipient']} does not verify: {error}")
        return False
    return True


def _stay(stage: Stage, letters: Letters, tell: Tell) -> None:
    """Print the mails that arrive, until an interrupt."""
    places = "\n".join(place.text() for place in stage.addresses())
    before = letters.accepted()
    try:
        tell(
            f"\nTry it yourself: sign up at the application, and read your mail in the inbox.\n\n{places}\n"
            f"  {'database':<12} {stage.psql}\n\nCtrl-C stops everything.\n"
        )
        while True:
            for letter in letters.new(WAIT_S):
                tell(_line(letter))
    except KeyboardInterrupt:
        after = letters.accepted()
        tell(f"\n{after} mails arrived, {after - before} of them since the tour ended. Everything stops.")
