"""Each mail of the catalogue, from the statement that asks for it to the inbox, and back to the database."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import urlencode

import pytest
from psycopg.types.json import Jsonb

import mailroom
from mailroom.actions import Action, load_actions
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from support.actions import add_actions
from support.inbox import ask
from support.processes import KEY
from support.queue_sql import Db
from support.runs import UNSETTLED, Start, wait_until

pytestmark = pytest.mark.slow

CATALOGUE: Final = load_actions()
MORE: Final = [name for name in CATALOGUE if name not in ("activation", "password_recovery")]
# Each language, and how it says how long a link works.
TIMES: Final = {"en": ("15 minutes", "1 hour", "7 days"), "de": ("15 Minuten", "1 Stunde", "7 Tage")}
HOSTILE: Final = '<b>{{x}}</b> & "Zoë", it\'s'


def asked_for(db: Db, action: Action, locale: str) -> tuple[str, int | None]:
    """Ask for a mail, in English with ``send`` and in German with an INSERT; returns address and account."""
    login = f"{action.name}-{locale}"
    email, data = f"{login}@example.com", {name: f"{name} {HOSTILE}" for name in action.fields}
    account = None
    if action.account:
        row = db.execute(
            "INSERT INTO accounts (email, login, locale, status) VALUES (%s, %s, %s, %s::account_status)"
            " RETURNING id",
            [email, login, locale, action.account],
        ).fetchone()
        assert row
        account = row[0]
    if action.activates:
        return email, account  # the account is all that it takes
    given = [action.name, account, None if account else email, None if account else locale, Jsonb(data)]
    if locale == "en":
        db.execute(
            "SELECT mailroom.send(%s, account => %s, recipient => %s, locale => %s, data => %s)", given
        )
    else:
        db.execute(
            "INSERT INTO tokens (action, account, email, locale, data) VALUES (%s, %s, %s, %s, %s)", given
        )
    return email, account


def received(inbox: InboxServer, **wanted: str) -> dict[str, Any]:
    """The one mail of an action and a recipient."""
    answer = ask(inbox.url, f"/api/mails/wait?{urlencode(wanted)}")
    assert 200 == answer.status, answer.text
    (found,) = answer.json["mails"]
    return dict(found)


def test_each_mail_arrives_in_its_language_and_is_consumed_once(
    db: Db, ses: InboxServer, start: Start
) -> None:
    add_actions(db, *MORE)
    start().wait_for_log("run.started")
    people = {
        (name, locale): asked_for(db, action, locale)
        for name, action in CATALOGUE.items()
        for locale in TIMES
    }
    for (name, locale), (email, account) in people.items():
        action = CATALOGUE[name]
        found = received(ses, recipient=email, action=name)
        assert (name, locale, None) == (found["action"], found["language"], found["failure"] or None)
        texts = found["subject"] + found["text"] + found["html"]
        assert not re.findall(r"{{(?!x}})|undefined|None", texts)
        for field in action.fields:
            assert f"{field} {HOSTILE}" in found["text"] + found["subject"]
            assert HOSTILE not in found["html"]
        if action.has_link or action.needs_code:
            assert any(time in found["text"] and time in found["html"] for time in TIMES[locale])
        used = consumed(db, action, found, account)
        if used is not None:
            assert (account, email, {name: f"{name} {HOSTILE}" for name in action.fields}) == (
                used.account,
                used.email,
                used.data,
            )
    assert len(people) == ses.inbox.counts.accepted
    wait_until(db, UNSETTLED, 0)
    wait_until(db, "SELECT count(*) FROM mailroom.deliveries WHERE outcome = 'sent'", len(people))
    active = "SELECT count(*) FROM accounts WHERE login LIKE 'activation%' AND status = 'active'"
    wait_until(db, active, len(TIMES))


def consumed(
    db: Db, action: Action, found: dict[str, Any], account: int | None
) -> mailroom.consumption.Consumed | None:
    """What the mail's link or code is worth, once; a notice is worth nothing."""
    tokens = {link["token"] for link in found["links"] if "token" in link}
    if action.has_link:
        (token,) = tokens
        (url,) = {link["url"] for link in found["links"] if "token" in link}
        assert url.startswith(f"https://acme.example{action.prefix.decode()}?token=")
        used = mailroom.consume(db, token, action, keys=KEY, code=found["code"])
        with pytest.raises(mailroom.TokenUsed):
            mailroom.consume(db, token, action, keys=KEY, code=found["code"])
        return used
    assert set() == tokens
    if action.needs_code:
        used = mailroom.consume_code(db, found["code"], action, account=account)
        with pytest.raises(mailroom.TokenUsed):
            mailroom.consume_code(db, found["code"], action, account=account)
        return used
    assert found["code"] is None
    assert not {"secret", "code"} & found["data"].keys()
    row = db.execute("SELECT secret FROM tokens WHERE email = %s", [found["recipient"]]).fetchone()
    assert row
    token = mailroom.sign(row[0], action, keys=KEY)  # as a thief would who had database and key
    with pytest.raises(mailroom.UnknownToken):
        mailroom.consume(db, token, action, keys=KEY)
    return None


def test_each_mail_arrives_over_smtp(db: Db, start: Start) -> None:
    add_actions(db, *MORE)
    with InboxServer(inbox=Inbox(), smtp_port=0) as smtp:
        start(TRANSPORT=smtp.smtp_url).wait_for_log("run.started")
        people = {name: asked_for(db, action, "de") for name, action in CATALOGUE.items()}
        for name, (email, _) in people.items():
            action, found = CATALOGUE[name], received(smtp, recipient=email)
            assert "de" == found["language"]
            assert (name if action.has_link else None) == found["action"]
            tokens = {link["token"] for link in found["links"] if "token" in link}
            assert (len(tokens), found["code"] is not None) == (action.has_link, action.needs_code)
