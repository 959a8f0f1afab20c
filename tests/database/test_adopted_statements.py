"""No statement on an adopted table fails because of Mailroom, and what is not mailed is recorded."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import IsolationLevel, sql

from mailroom.operations import adoption, reports
from support.adopting import Db, adopt, adopt_preset, consume, ended, live, run, sign_up, tokens

BAD = {
    "x@y@z": "the address does not have exactly one @, with something on both sides",
    "": "the user has no address",
    None: "the user has no address",
    "a" * 290 + "@example.x": "the address has more than 254 characters",
    "a\x1b[2J@example.com": "the address has a control character",
}


@pytest.fixture
def people(db: Db) -> Db:
    run(
        db,
        "CREATE TABLE people (id serial PRIMARY KEY, email text, login text, lang text, n int DEFAULT 1,"
        " confirmed boolean NOT NULL DEFAULT false)",
    )
    adopt(
        db,
        "people",
        login="login",
        locale="lang",
        pending_when="NOT confirmed",
        on_activation="confirmed = true",
    )
    return db


def warnings(db: Db) -> list[str]:
    """The warnings from now on."""
    said: list[str] = []
    db.add_notice_handler(lambda one: said.append(str(one.message_primary)))
    return said


def every_statement(db: Db) -> None:
    run(db, "INSERT INTO people (email) VALUES ('b@example.com')")
    run(db, "UPDATE people SET email = 'c' || email")
    run(db, "DELETE FROM people WHERE email = 'cb@example.com'")
    run(db, "TRUNCATE people")


@pytest.mark.parametrize("address", BAD, ids=repr)
def test_an_address_that_no_mail_can_reach(people: Db, address: str | None) -> None:
    db = people
    run(db, "SELECT setval('people_id_seq', 700)")
    run(db, "INSERT INTO people (email) VALUES (%s)", address)
    assert [(0,)] == run(db, "SELECT deleted FROM mailroom.prune_tokens(0, '1 hour', 1000)")
    (story,) = reports.stories(db, "701")
    assert ("rejected", BAD[address]) == (story.verdict, story.conclusion.split(": ", 1)[1])
    assert "user 701 of public.people" in story.text()
    assert story.text().replace("\n", "").isprintable()
    if address == "x@y@z":
        assert story.text() == reports.stories(db, address)[0].text()
    assert [(BAD[address],)] == run(
        db, "SELECT detail FROM mailroom.dead_letters(NULL, NULL, 'infinity', 9000000000, 10)"
    )
    assert [(0,)] == run(db, "SELECT count(*) FROM mailroom.claim('w', 10, 10, 60000)")
    run(db, "UPDATE people SET email = 'right@example.com'")
    assert ["right@example.com"] == live(db, "701")
    run(db, "UPDATE people SET email = %s", address)
    assert ([], [BAD[address], "address changed", BAD[address]]) == (live(db, "701"), ended(db, "701"))


@pytest.mark.parametrize("key", ["", "k" * 300, "a\nb"])
def test_a_key_that_no_token_can_have(db: Db, key: str) -> None:
    run(db, "CREATE TABLE people (id text PRIMARY KEY, email text)")
    adopt(db, "people", pending_when="true")
    run(db, "INSERT INTO people VALUES (%s, 'a@example.com')", key)
    ((email, why),) = run(db, "SELECT email, ended_as FROM tokens")
    assert ("a@example.com", True) == (email, str(why).startswith("the user's key"))
    run(db, "UPDATE people SET email = 'b@example.com'")
    run(db, "DELETE FROM people")


@pytest.mark.parametrize(
    ("login", "lang", "shown", "locale"),
    [("l" * 300, "de-" + "x" * 60, "l" * 254, None), ("a\tb", "German!", "ab", None), ("", "", None, None),
     ("Ann", "pt_BR", "Ann", "pt_BR")],
)  # fmt: skip
def test_logins_and_languages_that_do_not_fit(
    people: Db, login: str, lang: str, shown: str | None, locale: str | None
) -> None:
    run(people, "INSERT INTO people (email, login, lang) VALUES ('a@example.com', %s, %s)", login, lang)
    assert [(shown, locale)] == run(people, "SELECT login, locale FROM tokens")
    run(people, "UPDATE people SET confirmed = true")
    run(people, "SELECT mailroom.send('password_recovery', user_id => '1')")
    assert [(shown, locale)] * 2 == run(people, "SELECT login, locale FROM tokens")


@pytest.mark.parametrize(
    "break_it",
    [
        "ALTER TABLE people DROP COLUMN confirmed",
        "ALTER TABLE people RENAME confirmed TO verified",
        "ALTER TABLE people RENAME id TO uid",
        "DELETE FROM mailroom.adopted",
        "DELETE FROM mailroom.actions WHERE activates",
        "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA mailroom FROM PUBLIC",
        "DROP FUNCTION mailroom.lock_people(text)",
    ],
)
def test_no_statement_fails_when_something_is_gone(people: Db, break_it: str) -> None:
    run(people, "INSERT INTO people (email) VALUES ('a@example.com')")
    run(people, break_it)
    said = warnings(people)
    every_statement(people)
    assert all("mailroom: " in one for one in said)
    assert ("actions" in break_it or "REVOKE" in break_it or "DROP FUNCTION" in break_it) == (not said)


def test_no_statement_fails_when_an_expression_does(people: Db) -> None:
    adopt(people, "people", pending_when="1 / (n - n) = 1")
    said = warnings(people)
    every_statement(people)
    assert ["mailroom: the users of people cannot be read: division by zero"] * 2 == said


def test_a_user_without_any_right_on_mailroom_signs_up(people: Db) -> None:
    role = sql.Identifier(f"acme_{people.info.dbname[-8:]}")
    people.execute(sql.SQL("CREATE ROLE {}").format(role))
    people.execute(sql.SQL("GRANT INSERT, UPDATE, DELETE, SELECT ON people TO {}").format(role))
    people.execute(sql.SQL("GRANT USAGE ON SEQUENCE people_id_seq TO {}").format(role))
    people.execute(sql.SQL("SET ROLE {}").format(role))
    run(people, "INSERT INTO people (email) VALUES ('a@example.com'), ('b@example.com')")
    run(people, "UPDATE people SET email = 'c@example.com' WHERE id = 1")
    run(people, "DELETE FROM people WHERE id = 2")
    people.execute("RESET ROLE")
    assert (["c@example.com"], ["user deleted"]) == (live(people, "1"), ended(people, "2"))
    people.execute(sql.SQL("DROP OWNED BY {}").format(role))
    people.execute(sql.SQL("DROP ROLE {}").format(role))


def test_a_sign_up_takes_a_short_way(people: Db) -> None:
    """Each statement in a function costs what the user's own row does."""
    try:
        people.execute("LOAD 'auto_explain'")
    except psycopg.errors.InsufficientPrivilege:
        pytest.skip(
            "the server's user may not LOAD auto_explain, which shows the statements inside a function"
        )
    sign_up = "INSERT INTO people (email, login, lang) VALUES ('a@example.com', 'ann', 'de')"
    for _ in range(6):  # until the session keeps its plans
        run(people, sign_up)
    logged: list[str] = []
    people.add_notice_handler(lambda notice: logged.append(notice.message_primary or ""))
    run(
        people,
        "SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;"
        " SET client_min_messages = log",
    )
    run(people, sign_up)
    plans = [text for text in logged if "plan:" in text]
    inserts = [text for text in plans if "Insert on tokens" in text]
    assert (5, 1) == (len(plans), len(inserts))
    assert "unnest" not in inserts[0]
    assert 7 == len(tokens(people))


@pytest.mark.parametrize("level", list(IsolationLevel))
def test_every_isolation_level(people: Db, level: IsolationLevel) -> None:
    people.isolation_level = level
    with people.transaction():
        run(people, "INSERT INTO people (email) VALUES ('a@example.com'), ('b@example.com')")
        run(people, "UPDATE people SET email = 'c@example.com' WHERE id = 1")
        assert ("consumed", "1") == consume(people, "1")
    assert [(True,), (False,)] == run(people, "SELECT confirmed FROM people ORDER BY id")


def test_serializable_sign_ups_do_not_disturb_each_other(people: Db, database: str) -> None:
    others = [psycopg.connect(database) for _ in range(6)]
    for one in others:
        one.isolation_level = IsolationLevel.SERIALIZABLE
        run(one, "INSERT INTO people (email) VALUES ('a@example.com')")
    for one in others:
        one.commit()
        one.close()
    assert 6 == len(tokens(people))


@pytest.mark.parametrize("event", ["INSERT", "UPDATE"])
def test_a_trigger_that_changes_the_same_row(people: Db, event: str) -> None:
    run(
        people,
        """CREATE FUNCTION tidy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               UPDATE people SET email = lower(email), confirmed = confirmed OR n = 2
               WHERE id = NEW.id AND (email <> lower(email) OR n = 2 AND NOT confirmed);
               RETURN NULL; END $$""",
    )
    run(people, f"CREATE TRIGGER tidy AFTER {event} ON people FOR EACH ROW EXECUTE FUNCTION tidy()")
    if event == "UPDATE":
        run(people, "INSERT INTO people (email) VALUES ('old@example.com'), ('other@example.com')")
        run(people, "UPDATE people SET email = upper(email), n = id")
        assert (["old@example.com"], []) == (live(people, "1"), live(people, "2"))
    else:
        run(people, "INSERT INTO people (email, n) VALUES ('OLD@example.com', 1), ('other@example.com', 2)")
        assert (["old@example.com"], []) == (live(people, "1"), live(people, "2"))


def test_a_trigger_that_sets_the_language_of_the_same_row(people: Db) -> None:
    run(
        people,
        """CREATE FUNCTION settle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               UPDATE people SET lang = 'de' WHERE id = NEW.id;
               RETURN NULL; END $$""",
    )
    run(people, "CREATE TRIGGER settle AFTER INSERT ON people FOR EACH ROW EXECUTE FUNCTION settle()")
    run(people, "INSERT INTO people (email) VALUES ('a@example.com')")
    assert [("de",)] == run(people, "SELECT locale FROM tokens")


def test_session_replication_role_fires_nothing(people: Db) -> None:
    with people.transaction():
        run(people, "SET LOCAL session_replication_role = replica")
        run(people, "INSERT INTO people (email) VALUES ('a@example.com')")
    assert [] == tokens(people)


def test_what_was_told_of_a_user(db: Db) -> None:
    one = adopt_preset(db, "fastapi-users")
    key = sign_up(db, one.table, "ann@example.com")
    run(db, f"UPDATE {one.table} SET email = 'bea@example.com'")
    run(db, f"UPDATE {one.table} SET {one.confirmed}")
    run(db, "SELECT mailroom.send('password_recovery', user_id => %s)", key)
    run(db, f"UPDATE {one.table} SET {one.suspended}")
    run(db, "SELECT mailroom.claim('w', 10, 10, 60000)")
    stories = reports.stories(db, key)
    assert [
        "the address changed at",
        "the user was activated by other means at",
        "the user was suspended at",
    ] == [story.conclusion.split(" at ")[0] + " at" for story in stories]
    for story in stories:
        assert f'user {key} of public."user"' in story.text()
        assert "  ended: the " in story.text()


def test_a_user_is_found_by_the_login(people: Db) -> None:
    run(people, "INSERT INTO people (email, login) VALUES ('a@example.com', 'ann'), ('b@example.com', 'bea')")
    run(people, "UPDATE people SET confirmed = true, login = 'anna' WHERE login = 'ann'")
    run(people, "SELECT mailroom.send('password_recovery', user_id => '1')")
    for login in ("ann", "anna"):
        found = [story.mail.action for story in reports.stories(people, login)]
        assert ["activation", "password_recovery"] == found
    with pytest.raises(reports.UnknownPerson):
        reports.stories(people, "Ann")


def test_a_code_is_consumed_in_a_language_with_its_user(db: Db) -> None:
    adopt_preset(db, "devise")
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        run(db, "SELECT * FROM mailroom.consume_code('password_recovery', '1', 1, p_user_id => '1')")
    assert [("unknown",)] == run(
        db, "SELECT outcome FROM mailroom.consume_code('password_recovery', '1', p_user_id => '1')"
    )


def test_down_is_refused_while_a_table_is_adopted(people: Db) -> None:
    from mailroom.database import migrate
    from mailroom.errors import MailroomError

    with pytest.raises(MailroomError) as caught:
        migrate.down(people, 1, lambda _: None)
    assert "tables of users are adopted: people" in str(caught.value)
    run(people, "INSERT INTO people (email) VALUES ('a@example.com')")
    assert ["a@example.com"] == live(people, "1")
    adoption.drop(people, "people")
    assert 1 == migrate.down(people, 1, lambda _: None)
