"""Adopted tables of any kind: keys, names, partitions, views, inheritance, owners, row-level security."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from mailroom.errors import AdoptionError
from mailroom.operations import adoption
from support.adopting import Db, adopt, consume, ended, live, run, tokens
from support.postgres import migrated

CONFIRMED = {"pending_when": "NOT confirmed", "on_activation": "confirmed = true"}
COLUMNS = "email text, confirmed boolean NOT NULL DEFAULT false"


# PostgreSQL 14 allows it, which is a fault; later versions do not.
AS_SINCE_15 = "REVOKE CREATE ON SCHEMA public FROM PUBLIC"


@pytest.fixture(autouse=True)
def _as_since_15(db: Db) -> None:
    run(db, AS_SINCE_15)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("integer", "42"),
        ("bigint", "9223372036854775807"),
        ("uuid", "2c1ee4a5-5c6e-4a5a-9d2f-0a57d3a3f5b1"),
        ("text", 'O\'Neill \\ "x" %s $1 $mailroom$ ☃'),
        ("varchar(30)", "x" * 30),
        ("char(10)", "abc"),
        ("numeric", "1.50"),
        ("citext", "Ann"),
        ("name", "ann"),
    ],
)
def test_any_key(db: Db, kind: str, key: str) -> None:
    if kind == "citext":
        run(db, "CREATE EXTENSION citext")
    run(db, f"CREATE TABLE people (id {kind} PRIMARY KEY, {COLUMNS})")
    adopt(db, "people", **CONFIRMED)
    run(db, "INSERT INTO people VALUES (%s, 'a@example.com'), ('7' || '', 'b@example.com')", key) if kind in {
        "text", "varchar(30)", "citext", "name"
    } else run(db, "INSERT INTO people VALUES (%s, 'a@example.com')", key)  # fmt: skip
    assert ["a@example.com"] == live(db, key)
    run(db, "UPDATE people SET email = 'n@example.com' WHERE email = 'a@example.com'")
    assert ["n@example.com"] == live(db, key)
    assert ("consumed", key) == consume(db, key)
    assert [(True,)] == run(db, "SELECT confirmed FROM people WHERE email = 'n@example.com'")
    run(db, "SELECT mailroom.send('password_recovery', user_id => %s)", key)
    run(db, "DELETE FROM people WHERE email = 'n@example.com'")
    assert ["address changed", None, "user deleted"] == ended(db, key)


def test_a_key_of_several_columns_is_refused(db: Db) -> None:
    run(db, f"CREATE TABLE people (tenant int, id int, {COLUMNS}, PRIMARY KEY (tenant, id))")
    with pytest.raises(AdoptionError, match="people has no primary key of one column") as caught:
        adopt(db, "people")
    assert "name a unique column with --key" == caught.value.hint


@pytest.mark.parametrize(
    ("ddl", "columns", "fault", "hint"),
    [
        ("id int", {}, "has no primary key", "--key"),
        ("id int", {"key": "id"}, "the column id of public.people is not a key", "--key"),
        ("id bytea PRIMARY KEY", {}, "how a bytea is written depends on settings", "--key"),
        ("id timestamptz PRIMARY KEY", {}, "how a timestamp with time zone is written depends on", "--key"),
        ("id int PRIMARY KEY", {"key": "uid"}, "has no column uid", "--key"),
        ("id int UNIQUE, n int PRIMARY KEY", {"key": "id"}, "the column id of public.people", "--key"),
        ("id int PRIMARY KEY", {"pending_when": "confirmed_"}, '"confirmed_" does not', "--pending-when"),
        ("id int PRIMARY KEY", {"pending_when": "1"}, "must be type boolean", "--pending-when"),
        ("id int PRIMARY KEY", {"on_activation": "no = 1"}, 'column "no" of', "--on-activation"),
        ("id int PRIMARY KEY", {"login": "ctid"}, 'column "ctid" does not exist', "--login"),
        ("id int PRIMARY KEY", {"email": "count(*)"}, "not allowed with aggregate functions", "--email"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(
    db: Db, ddl: str, columns: dict[str, str], fault: str, hint: str
) -> None:
    run(db, f"CREATE TABLE people ({ddl}, {COLUMNS})")
    with pytest.raises(AdoptionError) as caught:
        adopt(db, "people", **columns)
    assert fault in str(caught.value)
    assert hint in (caught.value.hint or "")
    assert [] == run(db, "SELECT * FROM mailroom.adopted")


@pytest.mark.parametrize(
    "name", ["nobody", "no.body", '"no', "a.b.c.d", "accounts", "tokens", "mailroom.adopted"]
)
def test_a_table_that_is_none_or_ours_is_refused(db: Db, name: str) -> None:
    with pytest.raises(AdoptionError):
        adopt(db, name)


LONG = "x" * 62


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        ("public", (f"{LONG}1", f"{LONG}2")),
        ('the "other".schema', ("User", 'us"er', "us.er", "select")),
        ("auth", ("users", "Users")),
        ("public", ("auth_users", "auth__users")),
    ],
)
def test_any_name(db: Db, schema: str, names: tuple[str, ...]) -> None:
    run(db, "CREATE SCHEMA auth; CREATE TABLE auth.users (id int PRIMARY KEY, email text)")
    adopt(db, "auth.users")
    if schema != "auth":
        db.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
    for n, name in enumerate(names, 1):
        table, alias = sql.Identifier(schema, name).as_string(), sql.Identifier(name).as_string()
        if (schema, name) == ("auth", "users"):
            run(db, "DROP TABLE auth.users")
            adoption.drop(db, adoption.adopted(db)[0].user_table)
        column = '"E-Mail of the ""User"""'
        run(db, f'CREATE TABLE {table} ("Id" int PRIMARY KEY, {column} text, ok boolean DEFAULT false)')
        adopt(
            db,
            table,
            email=f"{alias}.{column}",
            pending_when=f"NOT {alias}.ok",
            on_activation="ok = true",
        )
        run(db, f"INSERT INTO {table} VALUES ({n}, '{n}@example.com')")
        assert ("consumed", str(n)) == consume(db, str(n))
        assert [(True,)] == run(db, f"SELECT ok FROM {table}")
    assert len(names) == len(run(db, "SELECT 1 FROM tokens WHERE consumed_at IS NOT NULL"))


PARTITIONED = f"""
CREATE TABLE people (id int, region text, {COLUMNS}, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE people_eu PARTITION OF people FOR VALUES IN ('eu');
CREATE TABLE people_us (
    confirmed boolean NOT NULL DEFAULT false, email text, region text NOT NULL, id int NOT NULL);
ALTER TABLE people ATTACH PARTITION people_us FOR VALUES IN ('us');
"""


@pytest.fixture
def partitioned(db: Db) -> Db:
    run(db, PARTITIONED)
    adopt(db, "people", key="id", **CONFIRMED)
    return db


@pytest.mark.parametrize("into", ["people", "people_us"])
def test_a_partitioned_table(partitioned: Db, into: str) -> None:
    db = partitioned
    run(db, f"INSERT INTO {into} (id, region, email) VALUES (1, 'us', 'a@example.com')")
    assert ["a@example.com"] == live(db, "1")
    run(db, f"UPDATE {into} SET email = 'b@example.com'")
    assert ["b@example.com"] == live(db, "1")
    run(db, "UPDATE people SET region = 'eu'")
    assert (["b@example.com"], ["address changed", None]) == (live(db, "1"), ended(db, "1"))
    run(db, "UPDATE people SET region = 'us', email = 'c@example.com'")
    assert ["c@example.com"] == live(db, "1")
    assert ("consumed", "1") == consume(db, "1")
    assert [(True,)] == run(db, "SELECT confirmed FROM people_us")
    run(db, "SELECT mailroom.send('password_recovery', user_id => '1')")
    run(db, f"DELETE FROM {into}")
    assert ["address changed", "address changed", None, "user deleted"] == ended(db, "1")


def test_a_partition_is_refused_and_its_table_named(partitioned: Db) -> None:
    with pytest.raises(AdoptionError, match="people_eu is a partition") as caught:
        adopt(partitioned, "people_eu", key="id")
    assert "adopt people, which it belongs to" == caught.value.hint


def test_taking_a_partitioned_table_back(partitioned: Db) -> None:
    adoption.drop(partitioned, "people")
    assert [] == run(partitioned, "SELECT tgname FROM pg_trigger WHERE tgname LIKE 'mailroom%%'")


def test_a_detached_partition_is_no_part_any_more(partitioned: Db) -> None:
    db = partitioned
    run(db, "ALTER TABLE people DETACH PARTITION people_us")
    run(db, "INSERT INTO people_us (id, region, email) VALUES (1, 'us', 'a@example.com')")
    assert [] == tokens(db)
    adoption.drop(db, "people")
    assert [] == run(db, "SELECT tgname FROM pg_trigger WHERE tgname LIKE 'mailroom%%'")


def test_tables_that_inherit(db: Db) -> None:
    run(db, f"CREATE TABLE people (id serial PRIMARY KEY, {COLUMNS})")
    run(db, "CREATE TABLE staff (office text) INHERITS (people)")
    adopt(db, "people", **CONFIRMED)
    run(db, "INSERT INTO staff (email) VALUES ('a@example.com')")
    run(db, "UPDATE people SET email = 'b@example.com'")
    assert ["b@example.com"] == live(db, "1")
    assert ("consumed", "1") == consume(db, "1")
    assert [(True,)] == run(db, "SELECT confirmed FROM staff")


def test_a_table_that_inherits_is_adopted_itself(db: Db) -> None:
    run(db, f"CREATE TABLE people (id serial PRIMARY KEY, {COLUMNS})")
    run(db, "CREATE TABLE staff (office text, PRIMARY KEY (id)) INHERITS (people)")
    adopt(db, "people", **CONFIRMED)
    adopt(db, "staff", email="office", **CONFIRMED)
    adopt(db, "people")
    run(db, "INSERT INTO staff (office) VALUES ('a@example.com')")
    assert ["a@example.com"] == live(db, "1")
    for table in ("people", "staff"):
        assert [] == run(db, "SELECT * FROM mailroom.adoption_faults()")
        adoption.drop(db, table)
    assert [] == run(db, "SELECT tgname FROM pg_trigger WHERE tgname LIKE 'mailroom%%'")


def test_a_view_is_refused_and_its_tables_named(db: Db) -> None:
    run(db, f"CREATE TABLE people (id serial PRIMARY KEY, {COLUMNS})")
    run(db, "CREATE TABLE profiles (id int PRIMARY KEY)")
    run(db, "CREATE VIEW users AS SELECT p.* FROM people p JOIN profiles USING (id)")
    with pytest.raises(AdoptionError, match="users is a view") as caught:
        adopt(db, "users")
    assert "adopt the table below it: people, profiles" == caught.value.hint


def test_an_insert_into_an_updatable_view(db: Db) -> None:
    run(db, f"CREATE TABLE people (id serial PRIMARY KEY, {COLUMNS})")
    run(db, "CREATE VIEW pending AS SELECT * FROM people WHERE NOT confirmed")
    adopt(db, "people", **CONFIRMED)
    run(db, "INSERT INTO pending (email) VALUES ('a@example.com')")
    assert ["a@example.com"] == live(db, "1")


def test_citext_addresses(db: Db) -> None:
    run(db, "CREATE EXTENSION citext")
    run(
        db,
        "CREATE TABLE people (id serial PRIMARY KEY, email citext UNIQUE, confirmed bool DEFAULT false)",
    )
    adopt(db, "people", **CONFIRMED)
    run(db, "INSERT INTO people (email) VALUES ('Ann@Example.com')")
    assert ["Ann@Example.com"] == live(db, "1")
    run(db, "UPDATE people SET email = 'ann@example.com'")
    assert ["ann@example.com"] == live(db, "1")


def test_stored_generated_columns_and_expressions(db: Db) -> None:
    run(
        db,
        "CREATE TABLE people (id serial PRIMARY KEY, profile jsonb, at timestamptz,"
        " pending boolean GENERATED ALWAYS AS (at IS NULL) STORED)",
    )
    adopt(db, "people", email="profile->>'email'", login="profile->>'name'", pending_when="pending",
          locale="profile->>'lang'", on_activation="at = now()")  # fmt: skip
    run(
        db,
        """INSERT INTO people (profile) VALUES ('{"email": "a@example.com", "name": "Ann", "lang": "de"}')""",
    )
    assert [("a@example.com", "Ann", "de")] == run(db, "SELECT email, login, locale FROM tokens")
    assert ("consumed", "1") == consume(db, "1")


def test_a_virtual_column_is_refused(db: Db) -> None:
    if db.info.server_version < 180000:
        pytest.skip("virtual generated columns are from PostgreSQL 18")
    run(
        db,
        "CREATE TABLE people (id serial PRIMARY KEY, email text, at timestamptz,"
        " pending boolean GENERATED ALWAYS AS (at IS NULL) VIRTUAL)",
    )
    with pytest.raises(AdoptionError, match='column "pending" does not exist') as caught:
        adopt(db, "people", pending_when="pending")
    assert "virtual" in (caught.value.hint or "")


def test_a_renamed_table_is_adopted_again_with_what_was_said(db: Db) -> None:
    run(db, f"CREATE TABLE people (id serial PRIMARY KEY, {COLUMNS})")
    adopt(db, "people", **CONFIRMED)
    run(db, "INSERT INTO people (email) VALUES ('a@example.com')")
    run(db, "ALTER TABLE people RENAME TO persons")
    run(db, "ALTER TABLE persons RENAME email TO address")
    adopt(db, "persons", email="address")
    assert ("consumed", "1") == consume(db, "1")
    assert [("activate_persons",), ("lock_persons",), ("report_persons",), ("watch_persons",)] == run(
        db,
        "SELECT proname FROM pg_proc WHERE proname LIKE '%%_persons' OR proname LIKE '%%_people' ORDER BY 1",
    )


def test_a_table_that_was_dropped_and_made_again(db: Db) -> None:
    ddl = f"CREATE TABLE people (id serial PRIMARY KEY, {COLUMNS})"
    run(db, ddl)
    adopt(db, "people", **CONFIRMED)
    run(db, "INSERT INTO people (email) VALUES ('a@example.com')")
    run(db, "DROP TABLE people")
    assert ("unknown", None) == consume(db, "1")
    run(db, ddl)
    with pytest.raises(AdoptionError, match="was dropped and made again") as caught:
        adopt(db, "people", **CONFIRMED)
    number = adoption.adopted(db)[0].user_table
    assert f"run `mailroom adopt {number} --drop`, then this again" == caught.value.hint
    adoption.drop(db, number)
    adopt(db, "people", **CONFIRMED)
    run(db, "INSERT INTO people (email) VALUES ('b@example.com')")
    assert [("a@example.com", "not adopted any more"), ("b@example.com", None)] == [
        row[2:] for row in tokens(db)
    ]


@pytest.fixture
def owners(empty_database: str, owned_database: str) -> Iterator[tuple[Db, Db]]:
    """The owner of Mailroom's schema, who is no superuser and may act for the table's owner; a superuser."""
    migrated(owned_database)
    with (
        psycopg.connect(owned_database, autocommit=True) as owner,
        psycopg.connect(empty_database, autocommit=True) as admin,
    ):
        run(admin, AS_SINCE_15)
        role = sql.Identifier(f"{owner.info.user}_app")
        admin.execute(sql.SQL("CREATE ROLE {}").format(role))
        admin.execute(sql.SQL("GRANT {} TO {}").format(role, sql.Identifier(owner.info.user)))
        admin.execute(sql.SQL("CREATE SCHEMA app AUTHORIZATION {}").format(role))
        run(admin, f"CREATE TABLE app.people (id serial PRIMARY KEY, {COLUMNS})")
        admin.execute(sql.SQL("ALTER TABLE app.people OWNER TO {}").format(role))
        yield owner, admin
        admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
        admin.execute(sql.SQL("DROP ROLE {}").format(role))


def test_without_superuser_and_with_another_owner_of_the_table(owners: tuple[Db, Db]) -> None:
    owner, admin = owners
    adopt(owner, "app.people", **CONFIRMED)
    assert [(f"{owner.info.user}_app",)] * 3 == run(
        admin,
        "SELECT pg_get_userbyid(proowner)::text FROM pg_proc WHERE proname ~ '^(lock|activate|watch)_app_'",
    )
    assert [(owner.info.user,)] == run(
        admin, "SELECT pg_get_userbyid(proowner)::text FROM pg_proc WHERE proname ~ '^report_app_people'"
    )
    assert [] == run(owner, "SELECT * FROM mailroom.adoption_faults()")
    admin.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(f"{owner.info.user}_app")))
    run(admin, "INSERT INTO app.people (email) VALUES ('a@example.com')")
    admin.execute("RESET ROLE")
    assert ("consumed", "1") == consume(owner, "1")
    assert [(True,)] == run(admin, "SELECT confirmed FROM app.people")
    adopt(owner, "app.people")
    adoption.drop(owner, "app.people")


def test_a_user_who_has_rights_on_the_table_only_adopts_it(owners: tuple[Db, Db]) -> None:
    owner, admin = owners
    me = sql.Identifier(owner.info.user)
    admin.execute(sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(f"{owner.info.user}_app"), me))
    admin.execute(sql.SQL("GRANT USAGE ON SCHEMA app TO {}").format(me))
    with pytest.raises(AdoptionError, match=r"may not adopt app\.people: permission denied"):
        adopt(owner, "app.people", **CONFIRMED)
    admin.execute(sql.SQL("GRANT SELECT, UPDATE, TRIGGER ON app.people TO {}").format(me))
    adopt(owner, "app.people", **CONFIRMED)
    run(admin, "INSERT INTO app.people (email) VALUES ('a@example.com')")
    assert ("consumed", "1") == consume(owner, "1")
    admin.execute(sql.SQL("REVOKE UPDATE ON app.people FROM {}").format(me))
    ((fault, remedy),) = run(owner, "SELECT fault, remedy FROM mailroom.adoption_faults()")
    assert ("app.people: permission denied for table people", True) == (
        fault,
        "grant it again" in str(remedy),
    )
    run(admin, "INSERT INTO app.people (email) VALUES ('b@example.com')")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        consume(owner, "2")
    assert [None] == ended(owner, "2")


def test_row_level_security_that_hides_users_is_an_error_before_anything_is_lost(
    owners: tuple[Db, Db],
) -> None:
    owner, admin = owners
    adopt(owner, "app.people", **CONFIRMED)
    run(admin, "ALTER TABLE app.people ENABLE ROW LEVEL SECURITY")
    run(admin, "INSERT INTO app.people (email) VALUES ('a@example.com'), ('b@example.com')")
    assert ("consumed", "1") == consume(owner, "1")
    run(admin, "ALTER TABLE app.people FORCE ROW LEVEL SECURITY")
    run(admin, "INSERT INTO app.people (email) VALUES ('c@example.com')")
    for key in ("2", "3"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="security policy"):
            consume(owner, key)
        assert [None] == ended(owner, key)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="security policy"):
        run(owner, "SELECT mailroom.send('password_recovery', user_id => '1')")
    ((fault,),) = run(owner, "SELECT fault FROM mailroom.adoption_faults()")
    assert "row-level security" in str(fault)
    run(admin, "ALTER TABLE app.people NO FORCE ROW LEVEL SECURITY")
    assert ("consumed", "3") == consume(owner, "3")


@pytest.fixture
def tables_owner(owners: tuple[Db, Db]) -> Iterator[tuple[Db, Db, str]]:
    """Mailroom's owner, the owner of an adopted table, and the end of the names of its functions."""
    owner, admin = owners
    adopt(owner, "app.people", **CONFIRMED)
    ((name,),) = run(owner, "SELECT name FROM mailroom.adopted")
    admin.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(f"{owner.info.user}_app")))
    yield owner, admin, str(name)
    admin.execute("RESET ROLE")


def test_expressions_have_the_rights_of_the_tables_owner(tables_owner: tuple[Db, Db, str]) -> None:
    owner, own, _ = tables_owner
    role = f"{owner.info.user}_app"
    run(own, "CREATE TABLE app.seen (who text)")
    run(
        own,
        "CREATE FUNCTION app.look(at text) RETURNS boolean LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO app.seen VALUES (current_user); RETURN at IS NULL; END $$",
    )
    adopt(owner, "app.people", pending_when="app.look(NULLIF(confirmed, false)::text)")
    run(own, "INSERT INTO app.people (email) VALUES ('a@example.com')")
    run(own, "UPDATE app.people SET email = 'b@example.com'")
    assert ("consumed", "1") == consume(owner, "1")
    assert ["b@example.com"] == [
        email for (email,) in run(owner, "SELECT email FROM tokens WHERE consumed_at IS NOT NULL")
    ]
    assert [] == run(owner, "SELECT * FROM mailroom.adoption_faults()")
    assert [(role,)] == run(own, "SELECT DISTINCT who FROM app.seen")


def test_an_immutable_function_of_the_tables_owner_is_never_mailrooms(
    tables_owner: tuple[Db, Db, str],
) -> None:
    """PostgreSQL calls an immutable function while it plans a query, even one that reads no row."""
    owner, own, _ = tables_owner
    run(
        own,
        "CREATE FUNCTION app.trap() RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS"
        f" $$ BEGIN IF current_user <> '{owner.info.user}_app' THEN RAISE 'trapped'; END IF;"
        " RETURN true; END $$",
    )
    adopt(owner, "app.people", pending_when="app.trap()")
    run(own, "INSERT INTO app.people (email) VALUES ('a@example.com')")
    assert [] == run(owner, "SELECT * FROM mailroom.adoption_faults()")
    assert ["a@example.com"] == live(owner, "1")


def test_a_tables_owner_reports_on_the_own_table_only(tables_owner: tuple[Db, Db, str]) -> None:
    owner, own, name = tables_owner
    run(owner, f"CREATE SCHEMA other; CREATE TABLE other.people (id serial PRIMARY KEY, {COLUMNS})")
    adopt(owner, "other.people", **CONFIRMED)
    run(owner, "INSERT INTO other.people (email) VALUES ('a@example.com')")
    ((table, other),) = run(
        owner, "SELECT user_table::oid, name FROM mailroom.adopted WHERE name <> %s", name
    )
    said: list[str] = []
    own.add_notice_handler(lambda one: said.append(str(one.message_primary)))
    users = "ARRAY[ROW('1', 'evil@example.com', NULL, NULL, 'provisioned', true)]::mailroom.user_state[]"
    for event in ("INSERT", "UPDATE", "DELETE", "TRUNCATE"):
        run(own, f"SELECT mailroom.report_{name}({table}, '{event}', {users}, false)")
        for function in (f"report_{other}({table}", f"users_changed('{other}', {table}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                run(own, f"SELECT mailroom.{function}, '{event}', {users}, false)")
    assert 4 == len([one for one in said if "is not adopted" in one])
    assert [("activation", "1", "a@example.com", None)] == tokens(owner)


@pytest.mark.parametrize("kind", ["lock", "activate"])
def test_a_function_that_would_run_as_mailroom_is_not_called(
    tables_owner: tuple[Db, Db, str], kind: str
) -> None:
    owner, own, name = tables_owner
    run(own, "INSERT INTO app.people (email) VALUES ('a@example.com')")
    run(own, f"ALTER FUNCTION mailroom.{kind}_{name} SECURITY INVOKER")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="is not SECURITY DEFINER any more"):
        consume(owner, "1")
    assert [None] == ended(owner, "1")
    faults = run(owner, "SELECT fault, remedy FROM mailroom.adoption_faults()")
    assert (
        f"app.people: mailroom.{kind}_{name} is not SECURITY DEFINER any more",
        "run `mailroom adopt app.people --apply` again",
    ) == faults[0]
    adopt(owner, "app.people")
    assert [] == run(owner, "SELECT * FROM mailroom.adoption_faults()")
    assert ("consumed", "1") == consume(owner, "1")


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("ALTER FUNCTION mailroom.watch_{0} SECURITY INVOKER", "watch_{0} is not SECURITY DEFINER any more"),
        ("ALTER FUNCTION mailroom.lock_{0}(text) OWNER TO {1}", "lock_{0} belongs to {1}"),
        ("REVOKE EXECUTE ON FUNCTION mailroom.report_{0} FROM {2}", "{2} may not call mailroom.report_{0}"),
        ("REVOKE USAGE ON SCHEMA mailroom FROM {2}", "{2} may not call mailroom.report_{0}"),
        ("DROP FUNCTION mailroom.report_{0}", "mailroom.report_{0} does not exist"),
    ],
)
def test_functions_that_were_changed_are_reported(
    tables_owner: tuple[Db, Db, str], statement: str, said: str
) -> None:
    owner, admin, name = tables_owner
    admin.execute("RESET ROLE")
    role = f"{owner.info.user}_other"
    admin.execute(f"CREATE ROLE {role}".encode())
    words = (name, role, f"{owner.info.user}_app")
    try:
        run(admin, statement.format(*words))
        faults = run(owner, "SELECT fault FROM mailroom.adoption_faults()")
        assert said.format(*words) in str(faults[0])
    finally:
        admin.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}".encode())


def test_assignments_that_do_not_fit_any_more_are_reported(db: Db) -> None:
    run(db, f"CREATE TABLE people (id serial PRIMARY KEY, {COLUMNS}, at timestamptz)")
    run(db, "CREATE TABLE log (n int)")
    run(
        db,
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO log VALUES (1); RETURN NULL; END $$",
    )
    run(db, "CREATE TRIGGER note AFTER UPDATE ON people FOR EACH STATEMENT EXECUTE FUNCTION note()")
    adopt(db, "people", on_activation="confirmed = true, at = now()")
    assert [] == run(db, "SELECT * FROM mailroom.adoption_faults()")
    assert [] == run(db, "SELECT * FROM log")
    run(db, "ALTER TABLE people RENAME at TO confirmed_at")
    ((fault, remedy),) = run(db, "SELECT fault, remedy FROM mailroom.adoption_faults()")
    assert 'public.people: column "at" of relation "people" does not exist' == fault
    assert "with the options that name what changed" in str(remedy)
    adopt(db, "people", on_activation="confirmed = true, confirmed_at = now()")
    assert [] == run(db, "SELECT * FROM mailroom.adoption_faults()")
