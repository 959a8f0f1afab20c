"""Measures commits per second of clients that insert into an adopted table, beside the same table alone.

pgbench's clients each insert one pending user per transaction, as fast as they can, into a table as Rails'
Devise makes it. Nobody claims the tokens. The two variants take turns for several rounds, and the median of
each counts. It also measures the CPU time of the server for one statement, without a commit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

import psycopg

from bench import database
from bench.options import Options
from bench.producers import run_clients
from bench.tell import tell
from mailroom.demo.postgres import PostgresServer
from mailroom.operations import adoption

CLIENTS: Final = (8, 64)
VARIANTS: Final = ("alone", "adopted")
TABLE: Final = """
CREATE TABLE users (
    id bigserial PRIMARY KEY, email varchar NOT NULL DEFAULT '',
    encrypted_password varchar NOT NULL DEFAULT '', reset_password_token varchar,
    reset_password_sent_at timestamp, remember_created_at timestamp, confirmation_token varchar,
    confirmed_at timestamp, confirmation_sent_at timestamp, unconfirmed_email varchar,
    last_seen_at timestamp, created_at timestamp NOT NULL, updated_at timestamp NOT NULL);
CREATE UNIQUE INDEX index_users_on_email ON users (email);
CREATE UNIQUE INDEX index_users_on_reset_password_token ON users (reset_password_token);
CREATE UNIQUE INDEX index_users_on_confirmation_token ON users (confirmation_token);
INSERT INTO users (id, email, confirmed_at, created_at, updated_at)
VALUES (0, 'first@example.com', now(), now(), now())
"""
SIGN_UP: Final = """
\\set n random(1, 9223372036854775000)
INSERT INTO users (email, encrypted_password, created_at, updated_at)
VALUES ('user' || :n || '@example.com', 'secret', now(), now())
"""
STATEMENTS: Final = {
    "INSERT of a pending user": "INSERT INTO users (email, created_at, updated_at)"
    " VALUES (gen_random_uuid() || '@example.com', now(), now())",
    "INSERT of a confirmed user": "INSERT INTO users (email, confirmed_at, created_at, updated_at)"
    " VALUES (gen_random_uuid() || '@example.com', now(), now(), now())",
    "UPDATE of last_seen_at": "UPDATE users SET last_seen_at = now() WHERE id = 0",
}
LOOP: Final = "DO $do$ BEGIN FOR n IN 1..{count} LOOP {statement}; END LOOP; END $do$"
LOOPS: Final = 500
# The processor's time of a process, in nanoseconds, is the first number.
CPU_TIME: Final = "/proc/{pid}/schedstat"


def measure(options: Options) -> dict[str, Any]:
    """A row for each number of clients and for each statement."""
    seconds, rounds = options.sized((3, 8), (2, 1))
    with database.durable() as server:
        for variant in VARIANTS:
            prepare(database.make(server, variant), variant)
        rows = [*commits(server, seconds, rounds), *statements(server, rounds)]
    return {"seconds": seconds, "rounds": rounds, "rows": rows}


def prepare(url: str, variant: str) -> None:
    with database.connected(url) as connection:
        connection.execute(TABLE.encode())
        if variant == "adopted":
            _, wish = adoption.PRESETS["devise"]
            adoption.apply(connection, adoption.plan(connection, "users", wish))


def commits(server: PostgresServer, seconds: int, rounds: int) -> Iterator[dict[str, Any]]:
    script = server.folder / "sign_up.sql"
    script.write_text(SIGN_UP)
    script.chmod(0o644)
    for clients in CLIENTS:
        rates: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for number in range(rounds):
            for variant in turns(number):
                rate, _ = run_clients(server, variant, clients, seconds, script)
                rates[variant].append(rate)
        yield row(f"commits/s of {clients} clients", "commits/s", rates)


def statements(server: PostgresServer, rounds: int) -> Iterator[dict[str, Any]]:
    for name, statement in STATEMENTS.items():
        spent: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for number in range(rounds):
            for variant in turns(number):
                with database.connected(server.url(variant)) as connection:
                    loop = LOOP.format(count=LOOPS, statement=statement).encode()
                    connection.execute(loop)  # plans and caches
                    before = cpu_us(connection)
                    connection.execute(loop)
                    spent[variant].append((cpu_us(connection) - before) / LOOPS)
        yield row(name, "µs of CPU", spent)


def turns(number: int) -> tuple[str, ...]:
    """The order of the variants in a round; each is first in every second one."""
    return VARIANTS[:: -1 if number % 2 else 1]


def row(what: str, unit: str, found: dict[str, list[float]]) -> dict[str, Any]:
    # A ratio compares numbers of one round, since a slow phase of the machine affects both.
    ratios = [one / alone for one, alone in zip(found["adopted"], found["alone"], strict=True)]
    made = {
        "what": what,
        "unit": unit,
        "alone": round(median(found["alone"])),
        "adopted": round(median(found["adopted"])),
        "ratio": round(median(ratios), 3),
    }
    tell(f"{what}: alone {made['alone']:,}, adopted {made['adopted']:,}, ratio {made['ratio']}")
    return made


def cpu_us(connection: psycopg.Connection) -> float:
    path = Path(CPU_TIME.format(pid=connection.info.backend_pid))
    return int(path.read_text().split()[0]) / 1000
