"""The migrations on the pages of frameworks are what ``mailroom adopt`` prints, and work on their tables.

``python tests/project/test_framework_pages.py`` writes the SQL into the pages again.
"""

from __future__ import annotations

import re
import secrets
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mailroom.database import migrate, sync
from mailroom.demo.postgres import PostgresServer
from mailroom.operations import adoption
from mailroom.operations.adoption import Wish
from project.test_docs import block, shell

Db = psycopg.Connection

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
ADOPT_IF = "DO $adopt$ BEGIN IF to_regnamespace('mailroom') IS NULL THEN RETURN; END IF;"

DEVISE = """
CREATE TABLE users (
    id bigserial PRIMARY KEY, email varchar DEFAULT '' NOT NULL,
    encrypted_password varchar DEFAULT '' NOT NULL,
    reset_password_token varchar, reset_password_sent_at timestamp(6), remember_created_at timestamp(6),
    confirmation_token varchar, confirmed_at timestamp(6), confirmation_sent_at timestamp(6),
    unconfirmed_email varchar, created_at timestamp(6) DEFAULT now() NOT NULL,
    updated_at timestamp(6) DEFAULT now() NOT NULL);
CREATE UNIQUE INDEX index_users_on_email ON users (email);
"""
PHOENIX = """
CREATE EXTENSION citext;
CREATE TABLE users (
    id bigserial PRIMARY KEY, email citext NOT NULL, hashed_password varchar(255),
    confirmed_at timestamp(0), inserted_at timestamp(0) NOT NULL DEFAULT now(),
    updated_at timestamp(0) NOT NULL DEFAULT now());
CREATE UNIQUE INDEX users_email_index ON users (email);
CREATE TABLE users_tokens (
    id bigserial PRIMARY KEY, user_id bigint NOT NULL REFERENCES users ON DELETE CASCADE,
    token bytea NOT NULL, context varchar(255) NOT NULL, sent_to varchar(255),
    inserted_at timestamp(0) NOT NULL DEFAULT now());
"""
PRISMA = """
CREATE TABLE "User" (
    "id" text NOT NULL, "email" text NOT NULL, "name" text, "emailVerified" timestamp(3),
    CONSTRAINT "User_pkey" PRIMARY KEY ("id"));
CREATE UNIQUE INDEX "User_email_key" ON "User" ("email");
"""
SUPABASE = """
CREATE SCHEMA auth;
CREATE TABLE auth.users (
    instance_id uuid, id uuid PRIMARY KEY, aud varchar(255), role varchar(255), email varchar(255),
    encrypted_password varchar(255), email_confirmed_at timestamptz, invited_at timestamptz,
    confirmation_token varchar(255), confirmation_sent_at timestamptz, raw_user_meta_data jsonb,
    created_at timestamptz, updated_at timestamptz, phone text UNIQUE, banned_until timestamptz,
    deleted_at timestamptz, is_anonymous boolean NOT NULL DEFAULT false,
    confirmed_at timestamptz GENERATED ALWAYS AS (email_confirmed_at) STORED);
ALTER TABLE auth.users ENABLE ROW LEVEL SECURITY;
"""


@dataclass(frozen=True)
class Framework:
    """A page, its table, and how the SQL of a migration stands in it.

    Attributes:
        begins, ends: the lines around the migration and around its reverse; the first is a pattern.
        sign_up: inserts a user, and returns its key.
        is_active: tells whether the consumption set its column.
        indent: before each line.
        between: what stands between the statements of the reverse.
        guard: what both begin with if they stand in a DO block.
    """

    name: str
    table_sql: str
    table: str
    wish: Wish
    begins: str
    ends: str
    sign_up: str
    is_active: str
    indent: str = ""
    between: str = "\n\n"
    guard: str = ""

    @property
    def page(self) -> Path:
        return PAGES / f"adopting-with-{self.name}.md"

    def section(self) -> str:
        """The part of the page that has the migration and its reverse."""
        _, found = self.page.read_text().split("## The migration\n")
        return found.split("## The link\n")[0]

    def blocks(self) -> re.Pattern[str]:
        """Finds both in it."""
        return re.compile(f"(?<=\n)({self.begins}\n)(.*?)({re.escape(self.ends)}\n)", re.DOTALL)

    def written(self) -> tuple[str, str]:
        up, down = (
            textwrap.dedent(block[2]).rstrip("\n") for block in self.blocks().finditer(self.section())
        )
        return up, down

    def printed(self, db: Db) -> tuple[str, str]:
        """What the page has to show."""
        planned = adoption.plan(db, self.table, self.wish)
        up = "\n\n".join([*planned.functions, *planned.triggers])
        down = self.between.join(planned.reverse)
        return up, down.replace("SELECT mailroom", "PERFORM mailroom") if self.guard else down

    def statements(self, text: str) -> list[str]:
        """What the framework sends to the database."""
        if self.guard:
            return [f"{ADOPT_IF}\n{text}\nEND $adopt$;"]
        return text.split("\n\n") if self.name == "ecto" else [text]


_, DEVISE_WISH = adoption.PRESETS["devise"]
_, SUPABASE_WISH = adoption.PRESETS["supabase"]
RAILS_PAGE = Framework(
    "rails", DEVISE, "users", DEVISE_WISH, "    execute <<~'SQL'", "    SQL",
    "INSERT INTO users (email) VALUES ('a@example.com') RETURNING id::text",
    "SELECT confirmed_at IS NOT NULL FROM users", indent="      ", between="\n",
)  # fmt: skip
ECTO_PAGE = Framework(
    "ecto", PHOENIX, "users",
    Wish(pending_when="confirmed_at IS NULL", on_activation="confirmed_at = now() AT TIME ZONE 'UTC'"),
    r'  @\w+ ~S"""', '  """',
    "INSERT INTO users (email) VALUES ('a@example.com') RETURNING id::text",
    "SELECT confirmed_at IS NOT NULL FROM users", indent="  ",
)  # fmt: skip
PRISMA_PAGE = Framework(
    "prisma", PRISMA, '"User"',
    Wish(login="name", pending_when='"emailVerified" IS NULL',
         on_activation="\"emailVerified\" = now() AT TIME ZONE 'UTC'"),
    re.escape(ADOPT_IF), "END $adopt$;",
    """INSERT INTO "User" VALUES (gen_random_uuid(), 'a@example.com', 'Ann') RETURNING id""",
    'SELECT "emailVerified" IS NOT NULL FROM "User"', between="\n", guard=ADOPT_IF,
)  # fmt: skip
SUPABASE_PAGE = Framework(
    "supabase", SUPABASE, "auth.users", SUPABASE_WISH, "```sql", "```",
    "INSERT INTO auth.users (id, email) VALUES (gen_random_uuid(), 'a@example.com') RETURNING id::text",
    "SELECT email_confirmed_at IS NOT NULL FROM auth.users", between="\n",
)  # fmt: skip
FRAMEWORKS = (RAILS_PAGE, ECTO_PAGE, PRISMA_PAGE, SUPABASE_PAGE)


@pytest.fixture(params=[RAILS_PAGE, ECTO_PAGE, PRISMA_PAGE], ids=lambda framework: framework.name)
def framework(request: pytest.FixtureRequest, db: Db) -> Framework:
    framework: Framework = request.param
    db.execute(framework.table_sql.encode())
    return framework


def run(db: Db, statements: list[str]) -> None:
    """Each alone, as a prepared statement if it is one, as Ecto does."""
    for statement in statements:
        db.execute(statement.encode())


def signed_up(db: Db, framework: Framework) -> str:
    ((key,),) = db.execute(framework.sign_up.encode()).fetchall()
    return str(key)


def consume(db: Db, key: str) -> None:
    """Consume the user's activation."""
    ((secret,),) = db.execute("SELECT secret FROM tokens WHERE subject = %s", [key]).fetchall()
    outcome = db.execute(
        "SELECT outcome, subject FROM mailroom.consume(%s, 'activation')", [secret]
    ).fetchall()
    assert [("consumed", key)] == outcome


def traces(db: Db, table: str) -> list[tuple[str]]:
    """What an adoption leaves in the database."""
    return db.execute(
        "SELECT tgname::text FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal"
        " UNION ALL SELECT proname::text FROM pg_proc WHERE pronamespace = 'mailroom'::regnamespace"
        " AND proname ~ '^(lock|activate|watch)_' AND proname NOT IN"
        " ('lock_user', 'lock_recipient', 'activate_user')"
        " UNION ALL SELECT name FROM mailroom.adopted",
        [table],
    ).fetchall()


def installed(framework: Framework, url: str, folder: Path) -> None:
    """Install the schema as the page says, in the database of this address."""
    script = block(framework.page.read_text(), "sh", "mailroom migrate up")
    address = "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**conninfo_to_dict(url))
    written = "^export MAILROOM_DATABASE_URL=.*$"
    script, count = re.subn(written, f"export MAILROOM_DATABASE_URL={address}", script, flags=re.MULTILINE)
    assert 1 == count
    with shell(script, folder) as process:
        assert 0 == process.wait(60), (folder / "log").read_text()


@pytest.mark.parametrize(
    ("framework", "versions"),
    [
        (RAILS_PAGE, "version varchar PRIMARY KEY"),
        (ECTO_PAGE, "version bigint PRIMARY KEY, inserted_at timestamp(0)"),
    ],
    ids=lambda given: getattr(given, "name", ""),
)
def test_the_schema_is_installed_beside_the_frameworks_versions(
    empty_database: str, tmp_path: Path, framework: Framework, versions: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        db.execute(f"CREATE TABLE schema_migrations ({versions})".encode())
        db.execute(framework.table_sql.encode())
        installed(framework, empty_database, tmp_path)
        run(db, framework.statements(framework.written()[0]))
        consume(db, signed_up(db, framework))
        assert [] == db.execute("SELECT FROM schema_migrations").fetchall()


@pytest.mark.parametrize("framework", [PRISMA_PAGE, SUPABASE_PAGE], ids=lambda framework: framework.name)
def test_the_schema_is_installed_where_the_framework_does_not_look(
    empty_database: str, tmp_path: Path, framework: Framework
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        db.execute(framework.table_sql.encode())
        installed(framework, empty_database, tmp_path)
        assert [(True, True)] == db.execute(
            "SELECT to_regclass('mail.tokens') IS NOT NULL, to_regclass('public.tokens') IS NULL"
        ).fetchall()
        assert framework.printed(db) == framework.written()
        run(db, framework.statements(framework.written()[0]))
        key = signed_up(db, framework)
        db.execute("SET search_path = mail")
        consume(db, key)


def test_the_page_shows_what_adopt_prints(db: Db, framework: Framework) -> None:
    assert framework.printed(db) == framework.written()


def test_the_migration_works_and_is_taken_back(db: Db, framework: Framework) -> None:
    before = traces(db, framework.table)
    up, down = (framework.statements(text) for text in framework.written())
    run(db, up)
    consume(db, signed_up(db, framework))
    assert [(True,)] == db.execute(framework.is_active.encode()).fetchall()
    run(db, down)
    assert before == traces(db, framework.table)


def test_prismas_shadow_database_has_no_mailroom(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        db.execute(PRISMA.encode())
        for text in PRISMA_PAGE.written():
            run(db, PRISMA_PAGE.statements(text))


@dataclass(frozen=True)
class Supabase:
    """Connections as the two roles: of Supabase Auth and of the customer."""

    auth: Db
    postgres: Db


@pytest.fixture
def supabase(empty_database: str) -> Iterator[Supabase]:
    """A database with the rights that Supabase gives: ``postgres`` there is neither superuser nor owner."""
    password = secrets.token_hex(8)
    names = [f"{name}_{secrets.token_hex(4)}" for name in ("supabase_auth_admin", "supabase_postgres")]
    owner, customer = map(sql.Identifier, names)
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(SUPABASE.encode())
        for query in (
            "CREATE ROLE {owner} LOGIN NOINHERIT CREATEROLE PASSWORD {password}",
            "CREATE ROLE {customer} LOGIN CREATEROLE BYPASSRLS PASSWORD {password}",
            "ALTER TABLE auth.users OWNER TO {owner}",
            "GRANT ALL ON SCHEMA auth TO {owner}",
            "GRANT USAGE ON SCHEMA auth TO {customer}",
            "GRANT ALL ON auth.users TO {customer}",
            "GRANT CREATE ON DATABASE {database} TO {customer}",
            "GRANT ALL ON SCHEMA public TO {customer}",
        ):
            admin.execute(
                sql.SQL(query).format(
                    owner=owner,
                    customer=customer,
                    password=password,
                    database=sql.Identifier(admin.info.dbname),
                )
            )
        urls = [make_conninfo(empty_database, user=name, password=password) for name in names]
        with sync.connected(urls[1]) as connection:
            migrate.up(connection, None, lambda _: None)
        with (
            psycopg.connect(urls[0], autocommit=True) as auth,
            psycopg.connect(urls[1], autocommit=True) as postgres,
        ):
            yield Supabase(auth, postgres)
        for role in (owner, customer):
            admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
            admin.execute(sql.SQL("DROP ROLE {}").format(role))


def test_supabases_page_shows_what_adopt_prints_for_its_role(supabase: Supabase) -> None:
    assert SUPABASE_PAGE.printed(supabase.postgres) == SUPABASE_PAGE.written()


def test_supabases_migration_works_without_owning_the_table(supabase: Supabase) -> None:
    before = traces(supabase.postgres, "auth.users")
    up, down = SUPABASE_PAGE.written()
    run(supabase.postgres, [up])
    key = signed_up(supabase.auth, SUPABASE_PAGE)
    consume(supabase.postgres, key)
    assert [(True,)] == supabase.postgres.execute(SUPABASE_PAGE.is_active.encode()).fetchall()
    run(supabase.postgres, down.split("\n"))
    assert before == traces(supabase.postgres, "auth.users")


def rewrite() -> None:
    """Write the SQL into the pages again. ``postgres`` owns everything, which prints the same."""
    with PostgresServer() as server:
        for framework in FRAMEWORKS:
            with psycopg.connect(server.url(), autocommit=True) as connection:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(framework.name)))
            url = server.url(framework.name)
            with sync.connected(url) as connection:
                migrate.up(connection, None, lambda _: None)
            with psycopg.connect(url, autocommit=True) as db:
                db.execute(framework.table_sql.encode())
                texts = framework.printed(db)
            section = filled = framework.section()
            for block, text in reversed(list(zip(framework.blocks().finditer(section), texts, strict=True))):
                shown = textwrap.indent(text, framework.indent) + "\n"
                filled = filled[: block.start(2)] + shown + filled[block.end(2) :]
            framework.page.write_text(framework.page.read_text().replace(section, filled))


if __name__ == "__main__":
    rewrite()
