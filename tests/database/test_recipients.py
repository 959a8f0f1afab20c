"""Mails for anybody: what a token takes from its account and its action, and what it refuses."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest

from database.test_consumption import activation, mail, status, wrong
from support.queue_sql import Db, claim, claimed_tokens, sign_up

ADD_ACTION: LiteralString = """
INSERT INTO mailroom.actions (action, number, prefix, account_status, has_link, needs_code, lifetime, fields)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
"""


@pytest.fixture
def actions(db: Db) -> Db:
    """A database with three more actions: an invitation, a code without a link, and a notice."""
    for name, number, account, link, code, lifetime, fields in [
        ("invitation", 30, None, True, False, "7 days", ["inviter"]),
        ("confirm", 31, None, False, True, "15 minutes", []),
        ("signed_in", 32, None, False, False, "1 day", ["device", "place"]),
    ]:
        db.execute(f"ALTER TYPE token_action ADD VALUE '{name}'".encode())
        db.execute(ADD_ACTION, [name, number, f"/{name}", account, link, code, lifetime, fields])
    return db


def value(db: Db, query: LiteralString, *parameters: object) -> Any:
    row = db.execute(query, parameters).fetchone()
    assert row
    return row[0]


def invite(db: Db, recipient: str = "bob@example.org", **more: object) -> int:
    given = {"data": '{"inviter": "Anna"}'} | more
    named = "".join(f", {name} => %({name})s" for name in given)
    row = db.execute(
        f"SELECT mailroom.send('invitation', recipient => %(recipient)s{named})".encode(),
        given | {"recipient": recipient},
    ).fetchone()
    assert row
    return int(row[0])


def refused(db: Db, query: LiteralString, words: str) -> None:
    with pytest.raises(psycopg.Error, match=words):
        db.execute(query)


def test_a_mail_for_anybody_is_one_call(actions: Db) -> None:
    token = invite(actions, subject="user-7", locale="de-AT", login="Bob")
    row = actions.execute(
        "SELECT account, email, login, subject, locale, data->>'inviter', lane::text,"
        " extract(epoch FROM expires_at - created_at) FROM tokens WHERE id = %s",
        [token],
    ).fetchone()
    assert (None, "bob@example.org", "Bob", "user-7", "de-AT", "Anna", "normal", 7 * 86400) == row


def test_a_token_has_the_address_login_and_language_of_its_moment(db: Db) -> None:
    db.execute(
        "INSERT INTO accounts (email, login, locale, status) VALUES ('a@example.com', 'a', 'de', 'active')"
    )
    db.execute("INSERT INTO tokens (action, account) SELECT 'password_recovery', id FROM accounts")
    db.execute("UPDATE accounts SET login = 'b', locale = 'fr'")
    assert ("a@example.com", "a", "de") == db.execute("SELECT email, login, locale FROM tokens").fetchone()


def test_a_mail_for_an_account_may_go_to_another_address(db: Db) -> None:
    held = activation(db)
    token = value(
        db,
        "SELECT mailroom.send('activation', account => %s, recipient => 'new@example.com')",
        held.account,
    )
    assert ("new@example.com", "a") == db.execute(
        "SELECT email, login FROM tokens WHERE id = %s", [token]
    ).fetchone()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (
            "SELECT mailroom.send('invitation', recipient => 'b@x')",
            "lacks the field 'inviter'",
        ),
        (
            "SELECT mailroom.send('invitation', recipient => 'b@x', data => '[]')",
            "not an object with the fields inviter",
        ),
        (
            "SELECT mailroom.send('invitation', recipient => 'b@x', data => '{\"inviter\": 1, \"x\": 2}')",
            "the field 'x', which the action invitation does not have",
        ),
        (
            "SELECT mailroom.send('invitation', recipient => 'b@x', data => '{\"inviter\": {\"a\": 1}}')",
            "'inviter' of data is neither text nor a number",
        ),
        (
            "SELECT mailroom.send('invitation', recipient => 'b@x', data => '{\"inviter\": null}')",
            "'inviter' of data is neither text nor a number",
        ),
        (
            "SELECT mailroom.send('invitation', recipient => 'b@x', data => '{\"inviter\": \"a\\nb\"}')",
            "'inviter' of data has a control character",
        ),
        (
            (
                "SELECT mailroom.send('invitation', recipient => 'b@x',"
                " data => jsonb_build_object('inviter', repeat(md5('x'), 300)))"
            ),
            "data is larger than 8192 bytes",
        ),
        (
            "SELECT mailroom.send('confirm', recipient => 'b@x', data => '{\"a\": \"b\"}')",
            "Its fields are: none",
        ),
        ("SELECT mailroom.send('confirm', recipient => 'no address')", "tokens_email_one_at"),
        ("SELECT mailroom.send('confirm', recipient => E'a@b\\x01')", "tokens_email_printable"),
        ("SELECT mailroom.send('confirm', recipient => 'b@x', login => E'a\\nb')", "tokens_login_printable"),
        ("SELECT mailroom.send('confirm', recipient => 'b@x', locale => '../de')", "tokens_locale_tag"),
        ("SELECT mailroom.send('confirm', recipient => 'b@x', lane => 'fast')", "mailroom.lane"),
        ("SELECT mailroom.send('confirm')", "neither an account nor an address"),
        ("SELECT mailroom.send('activation', recipient => 'b@x')", "for accounts that are provisioned"),
        ("SELECT mailroom.send('confirm', account => 4711)", "there is no account 4711"),
        ("SELECT mailroom.send('confirm', 'b@x', send_at => 'infinity')", "tokens_send_at_range"),
        ("SELECT mailroom.send('confirm', 'b@x', subject => E'a\\nb')", "tokens_subject_printable"),
        ("SELECT mailroom.send('nothing', recipient => 'b@x')", "token_action"),
        ("INSERT INTO accounts (email, login, locale) VALUES ('a@b', 'a', 'x')", "accounts_locale_tag"),
    ],
)
def test_a_mistake_is_an_error_of_the_statement_that_makes_it(
    actions: Db, query: LiteralString, words: str
) -> None:
    refused(actions, query, words)
    assert 0 == value(actions, "SELECT count(*) FROM tokens")


def test_an_action_without_a_row_is_an_error_that_says_what_to_do(db: Db) -> None:
    db.execute("ALTER TYPE token_action ADD VALUE 'lonely'")
    with pytest.raises(psycopg.Error, match="'lonely' has no row") as error:
        db.execute("SELECT mailroom.send('lonely', recipient => 'b@x')")
    assert "mailroom actions apply" in str(error.value.diag.message_hint)


def test_a_number_is_a_field(actions: Db) -> None:
    assert invite(actions, data='{"inviter": 3.5}')


def test_a_repeated_send_with_a_key_is_the_same_mail(actions: Db) -> None:
    first = invite(actions, key="welcome-7")
    assert first == invite(actions, key="welcome-7")
    assert first != invite(actions, key="welcome-8")
    assert first != value(actions, "SELECT mailroom.send('confirm', 'b@x', key => 'welcome-7')")
    assert 3 == value(actions, "SELECT count(*) FROM tokens")


def test_a_repeated_send_waits_for_the_first_and_takes_its_place_if_it_is_undone(
    actions: Db, database: str
) -> None:
    found: list[int] = []
    with psycopg.connect(database) as first:
        invite(first, key="once")
        with psycopg.connect(database, autocommit=True) as second:
            thread = threading.Thread(target=lambda: found.append(invite(second, key="once")))
            thread.start()
            while not value(actions, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                assert thread.is_alive()
            first.rollback()
            thread.join()
    assert found == [row[0] for row in actions.execute("SELECT id FROM tokens")]


@pytest.mark.parametrize("key", [None, "once"])
def test_a_trigger_that_skips_the_row_is_an_error_and_no_loop(actions: Db, key: str | None) -> None:
    actions.execute("SET statement_timeout = '10 s'")
    actions.execute(
        "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER skip BEFORE INSERT ON tokens FOR EACH ROW EXECUTE FUNCTION skip()"
    )
    with pytest.raises(psycopg.Error, match="the token was not inserted") as error:
        invite(actions, key=key)
    assert "trigger" in str(error.value.diag.message_hint)


def test_the_life_of_a_scheduled_token_begins_when_it_is_sent(actions: Db) -> None:
    at = datetime.now(UTC) + timedelta(days=1)
    token = invite(actions, send_at=at)
    assert at + timedelta(days=7) == value(actions, "SELECT expires_at FROM tokens WHERE id = %s", token)


@pytest.mark.parametrize(("rows", "bulk"), [(50, 0), (51, 51), (3000, 3000)])
def test_an_import_of_accounts_is_bulk(db: Db, rows: int, bulk: int) -> None:
    db.execute(
        "INSERT INTO accounts (email, login)"
        " SELECT i || '@example.com', i::text FROM generate_series(1, %s) i",
        [rows],
    )
    assert bulk == value(db, "SELECT count(*) FROM tokens WHERE lane = 'bulk'")
    assert rows == value(db, "SELECT count(*) FROM tokens")


def test_an_insert_of_many_tokens_is_bulk_from_the_fifty_first_on(actions: Db) -> None:
    insert: LiteralString = (
        "INSERT INTO tokens (action, email, data, lane)"
        " SELECT 'invitation', i || '@example.com', '{\"inviter\": \"Anna\"}', %s::mailroom.lane"
        " FROM generate_series(1, 60) i"
    )
    actions.execute(insert, [None])
    assert 10 == value(actions, "SELECT count(*) FROM tokens WHERE lane = 'bulk'")
    invite(actions)
    assert 10 == value(actions, "SELECT count(*) FROM tokens WHERE lane = 'bulk'")
    actions.execute(insert, ["urgent"])
    assert 60 == value(actions, "SELECT count(*) FROM tokens WHERE lane = 'urgent'")


def test_consuming_returns_what_the_application_gave(actions: Db) -> None:
    token = invite(actions, subject="user-7")
    secret = value(actions, "SELECT secret FROM tokens WHERE id = %s", token)
    row = actions.execute(
        "SELECT outcome, account, token, subject, email, data FROM mailroom.consume(%s, 'invitation')",
        [secret],
    ).fetchone()
    assert ("consumed", None, token, "user-7", "bob@example.org", {"inviter": "Anna"}) == row


def test_consuming_one_ends_its_siblings_and_nobody_elses(actions: Db) -> None:
    first = invite(actions)
    sibling = invite(actions, "BOB@example.org", data='{"inviter": "Eve"}')
    others = [invite(actions, "eve@example.org"), invite(actions, subject="x")]
    others.append(value(actions, "SELECT mailroom.send('confirm', 'bob@example.org')"))
    secret = value(actions, "SELECT secret FROM tokens WHERE id = %s", first)
    actions.execute("SELECT FROM mailroom.consume(%s, 'invitation')", [secret])
    open_tokens = actions.execute(
        "SELECT id FROM tokens WHERE consumed_at IS NULL AND expires_at > clock_timestamp() ORDER BY id"
    ).fetchall()
    assert others == [row[0] for row in open_tokens]
    assert "sibling consumed" == value(actions, "SELECT mailroom.why_not_mailable(%s)", sibling)


@pytest.mark.parametrize(
    "person", [{"p_email": "bob@example.org"}, {"p_email": "bob@example.org", "p_subject": "7"}]
)
def test_a_code_alone_is_consumed_once(actions: Db, person: dict[str, str]) -> None:
    token = value(
        actions, "SELECT mailroom.send('confirm', 'Bob@example.org', subject => %s)", person.get("p_subject")
    )
    code = value(actions, "SELECT code FROM tokens")
    assert ("consumed", token) == consume_code(actions, code, **person)[:2]
    assert ("used", token) == consume_code(actions, code, **person)[:2]
    assert "unknown" == consume_code(actions, code, p_email="eve@example.org")[0]


def consume_code(db: Db, code: str, **person: str) -> tuple[Any, ...]:
    named = "".join(f", {name} => %({name})s" for name in person)
    row = db.execute(
        f"SELECT outcome, token, codes_left FROM mailroom.consume_code('confirm', %(code)s{named})".encode(),
        person | {"code": code},
    ).fetchone()
    assert row
    return tuple(row)


def test_five_wrong_codes_end_the_token_of_anybody(actions: Db) -> None:
    token = value(actions, "SELECT mailroom.send('confirm', 'bob@example.org')")
    code = value(actions, "SELECT code FROM tokens")
    for left in (4, 3, 2, 1):
        assert ("wrong_code", token, left) == consume_code(actions, wrong(code), p_email="bob@example.org")
    assert ("exhausted", token, 0) == consume_code(actions, wrong(code), p_email="bob@example.org")
    assert "exhausted" == consume_code(actions, code, p_email="bob@example.org")[0]


def test_a_new_code_grants_no_further_tries(actions: Db) -> None:
    for n in range(5):
        actions.execute("SELECT mailroom.send('confirm', 'bob@example.org')")
        code = value(actions, "SELECT code FROM tokens ORDER BY id DESC LIMIT 1")
        outcome = consume_code(actions, wrong(code), p_email="bob@example.org")
        assert ("wrong_code" if n < 4 else "exhausted", 4 - n) == (outcome[0], outcome[2])
    actions.execute("SELECT mailroom.send('confirm', 'bob@example.org')")
    code = value(actions, "SELECT code FROM tokens ORDER BY id DESC LIMIT 1")
    assert "consumed" != consume_code(actions, code, p_email="bob@example.org")[0]


def test_a_code_does_without_the_link_only_where_the_action_has_none(db: Db) -> None:
    held = mail(db, "password_recovery", status="active")
    row = db.execute(
        "SELECT outcome FROM mailroom.consume_code('password_recovery', %s, p_account => %s)",
        [held.code, held.account],
    ).fetchone()
    assert ("unknown",) == row


def test_a_notice_cannot_be_consumed(actions: Db) -> None:
    actions.execute(
        'SELECT mailroom.send(\'signed_in\', \'bob@example.org\', data => \'{"device": "d", "place": "p"}\')'
    )
    assert "unknown" == value(
        actions, "SELECT outcome FROM mailroom.consume((SELECT secret FROM tokens), 'signed_in')"
    )


def test_of_concurrent_siblings_of_one_address_one_is_consumed(actions: Db, database: str) -> None:
    secrets = [
        value(
            actions, "SELECT secret FROM tokens WHERE id = %s", invite(actions, data=f'{{"inviter": "{n}"}}')
        )
        for n in range(8)
    ]
    outcomes: list[str] = []

    def consume(secret: bytes) -> None:
        with psycopg.connect(database, autocommit=True) as own:
            outcomes.append(value(own, "SELECT outcome FROM mailroom.consume(%s, 'invitation')", secret))

    threads = [threading.Thread(target=consume, args=[secret]) for secret in secrets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ["consumed", *["expired"] * 7] == sorted(outcomes)


def test_a_change_of_the_address_ends_links_and_codes_but_no_notice(actions: Db) -> None:
    held = activation(actions)
    notice = value(
        actions,
        'SELECT mailroom.send(\'signed_in\', account => %s, data => \'{"device": "d", "place": "p"}\')',
        held.account,
    )
    actions.execute("UPDATE accounts SET email = 'new@example.com'")
    assert "address changed" == value(actions, "SELECT mailroom.why_not_mailable(%s)", held.id)
    assert value(actions, "SELECT mailroom.why_not_mailable(%s)", notice) is None
    assert "a@example.com" == value(actions, "SELECT email FROM tokens WHERE id = %s", notice)


def test_the_end_of_a_suspension_requests_one_activation(db: Db) -> None:
    db.execute("INSERT INTO accounts (email, login) VALUES ('a@example.com', 'a')")
    db.execute("UPDATE accounts SET status = 'suspended'")
    db.execute("UPDATE accounts SET email = 'new@example.com'")
    assert 1 == value(db, "SELECT count(*) FROM tokens")
    for _ in range(2):
        db.execute("UPDATE accounts SET status = 'suspended'")
        db.execute("UPDATE accounts SET status = 'active'")  # leaving suspended restores the status before it
    assert "provisioned" == status(db, value(db, "SELECT id FROM accounts"))
    (handed,) = claimed_tokens(db)
    assert "new@example.com" == value(db, "SELECT email FROM tokens WHERE id = %s", handed)
    assert handed == value(db, "SELECT max(id) FROM tokens")


def test_an_activation_that_was_due_during_a_suspension_is_mailed_after_it(db: Db) -> None:
    token = sign_up(db, "zoe")
    db.execute("UPDATE accounts SET status = 'suspended'")
    assert [] == claimed_tokens(db)
    assert ("skipped", "suspended", "zoe@example.com") == db.execute(
        "SELECT outcome, detail, recipient FROM mailroom.deliveries WHERE token = %s", [token]
    ).fetchone()
    db.execute("UPDATE accounts SET status = 'provisioned'")
    (handed,) = claimed_tokens(db)
    assert handed > token


def test_an_activation_is_mailed_though_the_suspension_ends_while_a_claim_passes_over_it(
    db: Db, database: str
) -> None:
    sign_up(db, "zoe")
    db.execute("UPDATE accounts SET status = 'suspended'")
    with psycopg.connect(database) as other:
        assert [] == claim(other)
        db.execute("UPDATE accounts SET status = 'provisioned'")
    assert 1 == len(claimed_tokens(db))


def test_accounts_that_return_together_get_one_activation_each(db: Db) -> None:
    db.execute("INSERT INTO accounts (email, login, status) VALUES ('a@example.com', 'a', 'suspended')")
    for number in range(60):
        sign_up(db, f"u{number}")
    for state in ("suspended", "provisioned"):
        db.execute("UPDATE accounts SET status = %s", [state])
    handed = claimed_tokens(db)
    assert (61, 61) == db.execute(
        "SELECT count(*), count(DISTINCT account) FROM tokens WHERE id = ANY(%s)", [handed]
    ).fetchone()


def test_an_active_account_that_returns_gets_no_activation(db: Db) -> None:
    sign_up(db, "zoe")
    db.execute("UPDATE accounts SET status = 'active'")
    db.execute("UPDATE accounts SET status = 'suspended'")
    db.execute("UPDATE accounts SET status = 'active'")
    assert 1 == value(db, "SELECT count(*) FROM tokens")
    assert [] == claimed_tokens(db)


def test_without_its_row_an_action_is_consumed_by_nobody(db: Db) -> None:
    held = mail(db, "password_recovery", status="active")
    db.execute("DELETE FROM mailroom.actions WHERE action = 'password_recovery'")
    secret = value(db, "SELECT secret FROM tokens WHERE id = %s", held.id)
    assert "unknown" == value(db, "SELECT outcome FROM mailroom.consume(%s, 'password_recovery')", secret)


def test_a_sibling_that_was_locked_during_the_consumption_is_not_consumed_too(
    actions: Db, database: str
) -> None:
    first, second = invite(actions), invite(actions, data='{"inviter": "Eve"}')
    secrets = [value(actions, "SELECT secret FROM tokens WHERE id = %s", token) for token in (first, second)]
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM tokens WHERE id = %s FOR NO KEY UPDATE", [second])
        assert "consumed" == value(
            actions, "SELECT outcome FROM mailroom.consume(%s, 'invitation')", secrets[0]
        )
    assert "expired" == value(actions, "SELECT outcome FROM mailroom.consume(%s, 'invitation')", secrets[1])


def test_the_code_that_was_mailed_is_good_beside_newer_ones_that_were_not(actions: Db) -> None:
    mailed = value(actions, "SELECT mailroom.send('confirm', 'bob@example.org')")
    code = value(actions, "SELECT code FROM tokens WHERE id = %s", mailed)
    actions.execute("SELECT mailroom.send('confirm', 'bob@example.org', send_at => now() + interval '1 day')")
    limited = value(actions, "SELECT mailroom.send('confirm', 'bob@example.org')")
    actions.execute(
        "INSERT INTO mailroom.deliveries (token, attempt, outcome, detail)"
        " VALUES (%s, 0, 'skipped', 'limited')",
        [limited],
    )
    assert ("consumed", mailed) == consume_code(actions, code, p_email="bob@example.org")[:2]


def test_wrong_codes_before_a_success_count_for_no_later_request(actions: Db) -> None:
    for _ in range(2):
        actions.execute("SELECT mailroom.send('confirm', 'bob@example.org')")
        code = value(actions, "SELECT code FROM tokens ORDER BY id DESC LIMIT 1")
        for left in (4, 3, 2):
            assert ("wrong_code", left) == consume_code(actions, wrong(code), p_email="bob@example.org")[::2]
        assert "consumed" == consume_code(actions, code, p_email="bob@example.org")[0]
