"""What `why`, `status` and the application see of a mail after SES took it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from mailroom.operations.fates import percent
from mailroom.operations.reports import UnknownPerson, stories
from mailroom.operations.verdicts import Kind, StoryVerdict
from support import commands
from support.events import event, hand_out, of, send, tell, unrendered
from support.processes import environment
from support.queue_sql import Db, Handed, claim, record, sign_up

TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")
ACCEPTED = "SES accepted it at T as m-1"
SUPPRESSION = "`mailroom suppressions remove` lifts that"


def told(db: Db, who: object) -> list[str]:
    """The stories as they are printed, with T for each time."""
    return [TIME.sub("T", story.text()) for story in stories(db, str(who))]


@pytest.fixture
def handed(db: Db) -> Handed:
    """The mail of zoe, claimed."""
    return hand_out(db)


@pytest.fixture
def sent(db: Db, handed: Handed) -> Handed:
    """The mail of zoe, sent as m-1."""
    return send(db, handed)


def status(db: Db, token: int) -> str | None:
    ((found,),) = db.execute("SELECT mailroom.status_of(%s)", [token]).fetchall()
    return None if found is None else str(found)


CASES: list[tuple[dict[str, Any], str, str, str]] = [
    ({"kind": "sent"}, "sent", "", "sent as m-1"),
    (
        {"kind": "delivered", "diagnostic": "250 OK"},
        "delivered",
        "the recipient's server took it at T; if the person does not see it, it is in the spam folder",
        "delivered: 250 OK",
    ),
    (
        {"kind": "delayed", "type": "MailboxFull", "diagnostic": "452 zoe@example.com: full"},
        "delayed",
        (
            "the recipient's server has not taken it, as of T: 452 z…@example.com: full; SES tries again for"
            " some hours"
        ),
        "delayed: 452 z…@example.com: full",
    ),
    (
        {
            "kind": "bounced",
            "type": "permanent",
            "subtype": "General",
            "status": "5.1.1",
            "diagnostic": "550 no zoe@example.com",
        },
        "bounced",
        (
            "the address takes no mail, as its server said at T: General, 5.1.1, 550 no z…@example.com; it"
            f" gets none any more: correct the address, or, if it works again, {SUPPRESSION}"
        ),
        "bounced, permanent: General, 5.1.1, 550 no z…@example.com",
    ),
    (
        {"kind": "bounced", "type": "transient", "subtype": "MailboxFull"},
        "bounced",
        "it could not be delivered, at T: MailboxFull; SES does not try again: request the mail again later",
        "bounced, transient: MailboxFull",
    ),
    (
        {"kind": "bounced", "type": "undetermined"},
        "bounced",
        (
            "it came back for a reason that SES could not read, at T; check the address, and request the mail"
            " again"
        ),
        "bounced, undetermined",
    ),
    (
        {"kind": "complained", "type": "abuse"},
        "complained",
        (
            "the person marked it as spam at T; the address gets no mail any more:"
            f" {SUPPRESSION}, if the person asks for mail again"
        ),
        "complained, abuse",
    ),
    (
        {"kind": "rejected", "diagnostic": "Bad content"},
        "rejected",
        (
            "SES took it and did not send it, at T: Bad content; look for a virus or a forbidden attachment"
            " in the template"
        ),
        "rejected: Bad content",
    ),
]


@pytest.mark.parametrize(("values", "state", "conclusion", "line"), CASES, ids=[case[3] for case in CASES])
def test_each_event_is_told_to_its_end(
    db: Db, sent: Handed, values: dict[str, Any], state: str, conclusion: str, line: str
) -> None:
    (token,) = sent.tokens
    tell(db, of(sent, **values))
    (text,) = told(db, token)
    concluded = f"{state}: {conclusion} ({ACCEPTED})" if conclusion else f"{state}: {ACCEPTED}"
    assert [concluded, f"  T  SES: {line}"] == [text.splitlines()[0], *_lines(text, "SES: ")]
    assert state == status(db, token)


def _lines(text: str, part: str) -> list[str]:
    return [each for each in text.splitlines()[2:] if part in each]


def test_there_is_a_text_for_each_kind() -> None:
    assert set(Kind) == {case[0]["kind"] for case in CASES} | {"rendering_failed"}


def test_a_mail_that_ses_could_not_render(db: Db, sent: Handed) -> None:
    (token,) = sent.tokens
    tell(db, unrendered(sent))
    (text,) = told(db, token)
    assert text.splitlines()[0] == (
        "rejected: at T: SES could not render the mail: Attribute 'app' is not present; correct the template,"
        f" then `mailroom resume` and `mailroom dead retry {token}`"
    )
    assert ["  T  SES: could not render it: Attribute 'app' is not present"] == _lines(text, "SES: could")
    assert "rejected" == status(db, token)
    waiting = sign_up(db, "max")
    assert (
        "waiting: the action activation is paused since T: SES could not render the mail"
        in told(db, waiting)[0]
    )


def test_a_lost_answer_that_an_event_told(db: Db, handed: Handed) -> None:
    (token,) = handed.tokens
    record(db, handed, {token: "unknown"}, detail="no answer", template="activation", language="en")
    assert "waiting" == status(db, token)
    tell(db, of(handed, "sent"))
    assert "sent" == status(db, token)
    (text,) = told(db, token)
    assert f"sent: {ACCEPTED}" == text.splitlines()[0]
    assert [
        "  T  attempt 1, w: unknown: no answer",
        "  T  after attempt 1, w: sent by SES as m-1 (activation, en), known from SES's event",
    ] == _lines(text, ", w: ")


@pytest.mark.parametrize(
    ("kinds", "state"),
    [
        (("delivered", "sent", "delayed"), "delivered"),
        (("delivered", "complained", "bounced"), "complained"),
        (("delayed", "sent"), "delayed"),
        (("delivered", "bounced"), "bounced"),
    ],
)
def test_the_last_word_counts_whatever_comes_last(
    db: Db, sent: Handed, kinds: tuple[str, ...], state: str
) -> None:
    tell(db, *(of(sent, kind, type="permanent" if kind == "bounced" else "") for kind in kinds))
    assert state == status(db, sent.tokens[0])
    assert told(db, "zoe")[0].startswith(f"{state}: ")


def test_an_out_of_office_reply_leaves_a_mail_delivered(db: Db, sent: Handed) -> None:
    tell(db, of(sent, "delivered"), of(sent, "bounced", type="transient"))
    assert "delivered" == status(db, sent.tokens[0])
    assert told(db, "zoe")[0].startswith("delivered: ")


def test_the_state_of_what_was_not_sent(db: Db) -> None:
    token = sign_up(db, "zoe")
    assert (None, "waiting") == (status(db, 99), status(db, token))
    db.execute("SELECT mailroom.suppress('zoe@example.com', 'by phone')")
    assert "suppressed" == status(db, token)
    claim(db)
    assert "suppressed" == status(db, token)
    assert told(db, token)[0].startswith("suppressed: the address gets no mail, as of T: by phone; ")
    for column, value, state in (
        ("consumed_at", "now()", "suppressed"),
        ("expires_at", "now()", "suppressed"),
    ):
        db.execute(f"UPDATE tokens SET {column} = {value}".encode())
        assert state == status(db, token)
    other = sign_up(db, "max")
    db.execute(
        "UPDATE tokens SET expires_at = now() - interval '1 s', created_at = now() - interval '1 h'"
        " WHERE id = %s",
        [other],
    )
    db.execute("UPDATE mailroom.actions SET renews = false")
    assert "expired" == status(db, other)
    db.execute("UPDATE accounts SET status = 'suspended'")
    assert status(db, sign_up_suspended(db)) == "skipped"


def sign_up_suspended(db: Db) -> int:
    token = sign_up(db, "kim")
    db.execute("UPDATE accounts SET status = 'suspended' WHERE login = 'kim'")
    return token


WHERE = {"provider's id": "m-1", "header": "<m-1@eu-west-1.amazonses.com>", "address": "Old@Bücher.example"}


@pytest.mark.parametrize("who", [*WHERE.values(), "u-1", "old@xn--bcher-kva.example"], ids=str)
def test_a_mail_is_found_after_the_account_is_gone(db: Db, handed: Handed, who: str) -> None:
    (token,) = handed.tokens
    db.execute("UPDATE tokens SET subject = 'u-1'")
    record(
        db,
        handed,
        {token: "sent"},
        message_ids={token: "m-1"},
        recipient="old@bücher.example",
        template="activation",
    )
    assert "attempt 1, w: sent by SES to o…@bücher.example as m-1 (activation)" in told(db, who)[0]
    db.execute("DELETE FROM accounts")
    (text,) = told(db, who)
    assert [
        f"sent: {ACCEPTED}",
        f"  token {token}, deleted: mail for <o…@bücher.example>",
    ] == text.splitlines()[:2]


def test_an_event_is_found_by_its_message_id(db: Db, handed: Handed) -> None:
    tell(db, of(handed, "sent", message_id="m-9"))
    assert 1 == len(told(db, "m-9"))
    with pytest.raises(UnknownPerson):
        told(db, "m-8")


def test_json_masks_addresses_in_events_too(db: Db, database: str, sent: Handed) -> None:
    tell(db, of(sent, "bounced", type="permanent", diagnostic="zoe@example.com", status="5.1.1"))
    done = commands.run("why", "zoe", "--json", env=environment(database))
    (story,) = json.loads(done.stdout)
    assert ("bounced", "z…@example.com") == (story["verdict"], story["events"][0]["recipient"])
    assert "zoe@example.com" not in done.stdout


def test_events_without_tags_that_came_first_are_found_by_the_message_id(db: Db, handed: Handed) -> None:
    (token,) = handed.tokens
    tell(db, event("delivered"))
    record(db, handed, {token: "sent"}, message_ids={token: "m-1"})
    assert "delivered" == status(db, token)
    (story,) = stories(db, "zoe")
    assert story.verdict is StoryVerdict.DELIVERED


def test_status_counts_what_ses_took_and_did_not_send_and_marks_its_limits(db: Db, database: str) -> None:
    tell(
        db,
        event("bounced", type="permanent"),
        event("complained", message_id="m-2"),
        event("delivered", message_id="m-3"),
        event("delayed", message_id="m-4"),
        event("rejected", message_id="m-5"),
        event("rendering_failed", message_id="m-6"),
    )
    printed = commands.run("status", env=environment(database)).stdout
    assert [
        "delivered  1 in the last day",
        "bounced    1, 1 of them for good: 50 %; SES acts at 5 %",
        "complained 1: 100 %; SES acts at 0.1 %",
        "delayed    1",
        "infected   1, which SES took and did not send",
        "unrendered 1, which SES took and could not render",
    ] == [line for line in printed.splitlines() if line.split()[0] in WORDS]


WORDS = {"delivered", "bounced", "complained", "delayed", "infected", "unrendered"}


def test_a_share_is_written_in_per_cent_and_not_as_a_power_of_ten() -> None:
    shares = (1.0, 0.997, 0.0512, 0.001, 0.00123, 0.0)
    assert ["100 %", "100 %", "5.1 %", "0.1 %", "0.12 %", "0 %"] == [percent(share) for share in shares]
