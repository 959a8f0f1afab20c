"""Any interleaving of writers and workers: Hypothesis looks for one in which the queue errs.

The writers also write to any lane and to anybody, for later, and to one recipient several times or more often
than its limit. Time passes beyond the tokens' life, which those of an activation survive.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from support.queue_sql import Handed, claim, claimed_tokens, expire_leases, settle

WRITERS = 3
WORKERS = 2
LANES = ["urgent", "normal", "bulk"]
LIMIT = 2
ACTIONS = """
ALTER TYPE token_action ADD VALUE 'anybody';
ALTER TYPE token_action ADD VALUE 'limited';
"""
RULES = """
INSERT INTO mailroom.actions (action, number, prefix, limit_mails, limit_within)
VALUES ('anybody', 30, '/anybody', NULL, NULL), ('limited', 31, '/limited', 2, '1 day');
"""


@dataclass
class Writer:
    """A connection in a transaction, and what it inserted: a list for each open savepoint."""

    connection: psycopg.Connection
    frames: list[list[int]] = field(default_factory=lambda: [[]])


class QueueMachine(RuleBasedStateMachine):
    """The model: which tokens are committed, spoilt (made ineligible), held, settled.

    Attributes:
        later: the tokens that are scheduled, and not due yet.
        rivals: the tokens of recipients with several, or with a limit: for each recipient.
    """

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.admin = psycopg.connect(self.url, autocommit=True)
        self.writers = [Writer(psycopg.connect(self.url)) for _ in range(WRITERS)]
        self.workers = [psycopg.connect(self.url, autocommit=True) for _ in range(WORKERS)]
        self.leases: list[list[Handed]] = [[] for _ in range(WORKERS)]
        self.committed: set[int] = set()
        self.spoilt: set[int] = set()
        self.handed: set[int] = set()
        self.settled: set[int] = set()
        self.held: set[int] = set()
        self.later: set[int] = set()
        self.rivals: dict[str, list[int]] = {}
        self.recipient: dict[int, str] = {}
        self.generation: dict[int, int] = {}
        self.logins = 0

    @initialize(cache=st.sampled_from([1, 50]))
    def empty(self, cache: int) -> None:
        self.admin.execute(
            "TRUNCATE accounts, tokens, mailroom.leases, mailroom.granted, mailroom.deliveries"
        )
        self.admin.execute(f"ALTER TABLE tokens ALTER COLUMN id SET CACHE {cache}".encode())
        claimed_tokens(self.admin)

    # Writers

    @rule(who=st.integers(0, WRITERS - 1), count=st.integers(1, 7))
    def sign_up(self, who: int, count: int) -> None:
        rows = self.writers[who].connection.execute(
            "INSERT INTO accounts (email, login) SELECT 'p' || g || '@b', 'p' || g"
            " FROM generate_series(%s::int, %s) g RETURNING id",
            [self.logins + 1, self.logins + count],
        )
        self.logins += count
        accounts = [row[0] for row in rows.fetchall()]
        tokens = self.writers[who].connection.execute(
            "SELECT id FROM tokens WHERE account = ANY(%s)", [accounts]
        )
        self.writers[who].frames[-1] += [row[0] for row in tokens.fetchall()]

    @rule(who=st.integers(0, WRITERS - 1), below=st.booleans())
    def recover(self, who: int, below: bool) -> None:
        self.logins += 1
        connection = self.writers[who].connection
        account = connection.execute(
            "INSERT INTO accounts (email, login, status) VALUES ('p' || %s || '@b', 'p' || %s, 'active')"
            " RETURNING id",
            [self.logins, self.logins],
        ).fetchone()
        assert account
        if below:  # an explicit id, far below the cursor
            token = connection.execute(
                "INSERT INTO tokens (id, action, account) VALUES (%s, 'password_recovery', %s) RETURNING id",
                [-self.logins, account[0]],
            ).fetchone()
        else:
            token = connection.execute(
                "INSERT INTO tokens (action, account) VALUES ('password_recovery', %s) RETURNING id", account
            ).fetchone()
        assert token
        self.writers[who].frames[-1].append(token[0])

    @rule(who=st.integers(0, WRITERS - 1), lane=st.sampled_from(LANES), count=st.integers(1, 5))
    def send_to_anybody(self, who: int, lane: str, count: int) -> None:
        rows = self.writers[who].connection.execute(
            "SELECT mailroom.send('anybody', recipient => 'n' || g || '@b', lane => %s)"
            " FROM generate_series(%s::int, %s) g",
            [lane, self.logins + 1, self.logins + count],
        )
        self.logins += count
        self.writers[who].frames[-1] += [row[0] for row in rows.fetchall()]

    @rule(who=st.integers(0, WRITERS - 1), lane=st.sampled_from(LANES))
    def schedule(self, who: int, lane: str) -> None:
        self.logins += 1
        ((token,),) = self.writers[who].connection.execute(
            "SELECT mailroom.send('anybody', recipient => %s, lane => %s,"
            " send_at => now() + interval '1 day')",
            [f"n{self.logins}@b", lane],
        )
        self.writers[who].frames[-1].append(token)
        self.later.add(token)

    @rule(who=st.integers(0, WRITERS - 1), number=st.integers(1, 3), lane=st.sampled_from(LANES))
    def click(self, who: int, number: int, lane: str) -> None:
        """Request the same mail again, in another case."""
        self.logins += 1
        address = "".join(
            letter.upper() if self.logins >> place & 1 else letter for place, letter in enumerate("again@b")
        )
        ((token,),) = self.writers[who].connection.execute(
            "SELECT mailroom.send('limited', recipient => %s, lane => %s)", [f"{number}{address}", lane]
        )
        self.writers[who].frames[-1].append(token)
        self.recipient[token] = str(number)

    @rule(who=st.integers(0, WRITERS - 1))
    def savepoint(self, who: int) -> None:
        writer = self.writers[who]
        writer.connection.execute(f"SAVEPOINT s{len(writer.frames)}".encode())
        writer.frames.append([])

    @precondition(lambda self: any(len(writer.frames) > 1 for writer in self.writers))
    @rule(data=st.data(), keep=st.booleans())
    def end_savepoint(self, data: st.DataObject, keep: bool) -> None:
        open_ones = [writer for writer in self.writers if len(writer.frames) > 1]
        writer = data.draw(st.sampled_from(open_ones))
        frame = writer.frames.pop()
        if keep:
            writer.frames[-1] += frame
        verb = "RELEASE" if keep else "ROLLBACK TO"
        writer.connection.execute(f"{verb} SAVEPOINT s{len(writer.frames)}".encode())

    @rule(who=st.integers(0, WRITERS - 1))
    def commit(self, who: int) -> None:
        writer = self.writers[who]
        writer.connection.commit()
        new = [token for frame in writer.frames for token in frame]
        self.committed |= set(new)
        for token in new:
            if token in self.recipient:
                self.rivals.setdefault(self.recipient[token], []).append(token)
        writer.frames = [[]]

    @rule(who=st.integers(0, WRITERS - 1))
    def roll_back(self, who: int) -> None:
        self.writers[who].connection.rollback()
        self.writers[who].frames = [[]]

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def consume(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.committed)))
        self.admin.execute("UPDATE tokens SET consumed_at = now() WHERE id = %s", [token])
        self.spoilt |= self.siblings(token)

    @precondition(lambda self: self.committed)
    @rule(data=st.data(), back=st.booleans())
    def suspend(self, data: st.DataObject, back: bool) -> None:
        token = data.draw(st.sampled_from(sorted(self.committed)))
        before = self.siblings(token)
        self.spoilt |= before
        for status in ["suspended", "active"][: 1 + back]:
            self.admin.execute(
                "UPDATE accounts SET status = %s WHERE id = (SELECT account FROM tokens WHERE id = %s)",
                [status, token],
            )
        # An account that was never active gets its activation anew.
        self.committed |= self.siblings(token) - before

    def siblings(self, token: int) -> set[int]:
        """The tokens of a token's account, with itself."""
        rows = self.admin.execute(
            "SELECT t.id FROM tokens t JOIN tokens o ON o.id = t.id OR o.account = t.account WHERE o.id = %s",
            [token],
        )
        return {row[0] for row in rows.fetchall()}

    # Workers

    @rule(who=st.integers(0, WORKERS - 1), tokens=st.integers(1, 12), lease_tokens=st.integers(1, 5))
    def claim(self, who: int, tokens: int, lease_tokens: int) -> None:
        for lease in claim(self.workers[who], tokens, worker=str(who), lease_tokens=lease_tokens):
            fresh = set(lease.tokens)
            assert len(fresh) == len(lease.tokens)
            assert fresh <= self.committed, "handed out, though not committed"
            assert not fresh & self.settled, "handed out again, though settled"
            assert not fresh & self.held, "handed out twice, though its lease was not over"
            assert not fresh & self.later, "handed out before its time"
            assert lease.generation == self.generation.get(lease.lease, lease.generation - 1) + 1
            self.handed |= fresh
            self.held |= fresh
            self.generation[lease.lease] = lease.generation
            self.leases[who].append(lease)

    @rule()
    def let_scheduled_be_due(self) -> None:
        """Only those that are committed: the others stay for later."""
        self.admin.execute(
            "UPDATE tokens SET expires_at = expires_at - interval '1 day' WHERE send_at > now()"
        )
        self.admin.execute(
            "UPDATE tokens SET send_at = send_at - interval '1 day'"
            " WHERE send_at > now() AND expires_at > now()"
        )
        self.admin.execute("UPDATE mailroom.leases SET due_at = clock_timestamp() WHERE worker = 'scheduled'")
        self.later -= self.committed

    @rule()
    def let_tokens_expire(self) -> None:
        """Time passes: an activation that was not handed out yet is renewed; others are lost."""
        life = "expires_at = expires_at - interval '1 hour', created_at = created_at - interval '1 hour'"
        rows = self.admin.execute(
            f"UPDATE tokens SET {life}, send_at = send_at - interval '1 hour'"
            " WHERE consumed_at IS NULL AND coalesce(send_at <= now(), true)"
            " RETURNING id, action::text".encode()
        ).fetchall()
        self.spoilt |= {token for token, action in rows if action != "activation"}

    @precondition(lambda self: any(self.leases))
    @rule(data=st.data(), part=st.booleans())
    def settle(self, data: st.DataObject, part: bool) -> None:
        who = data.draw(st.sampled_from([who for who in range(WORKERS) if self.leases[who]]))
        lease = self.leases[who].pop(data.draw(st.integers(0, len(self.leases[who]) - 1)))
        tokens = list(lease.tokens[: len(lease.tokens) // 2]) if part else list(lease.tokens)
        ours = self.generation.get(lease.lease) == lease.generation
        settled = settle(self.workers[who], lease, tokens if part else None)
        # A claim drops a lease that is due and of which nothing may be mailed any more.
        gone = self.spoilt.union(*self.rivals.values())
        dropped = ours and not settled and gone.issuperset(lease.tokens)
        assert ours == settled or dropped
        if ours:
            self.settled |= set(tokens)
            self.held -= set(tokens)
            if not part:
                del self.generation[lease.lease]

    @rule(who=st.integers(0, WORKERS - 1))
    def crash(self, who: int) -> None:
        self.leases[who].clear()

    @rule(who=st.integers(0, WORKERS - 1))
    def give_back(self, who: int) -> None:
        self.workers[who].execute("SELECT mailroom.release(%s)", [str(who)])
        self.held -= {token for lease in self.leases[who] for token in lease.tokens}
        # Tokens of leases that this worker forgot in a crash are free as well.
        rows = self.admin.execute(
            "SELECT unnest(tokens) FROM mailroom.leases WHERE due_at <= clock_timestamp()"
        )
        self.held -= {row[0] for row in rows.fetchall()}

    @rule()
    def let_leases_expire(self) -> None:
        expire_leases(self.admin)
        self.held.clear()

    def check_rivals(self) -> None:
        """Each was handed out or is in the ledger with its reason, and nobody got more than the limit."""
        rows = self.admin.execute(
            "SELECT token, detail FROM mailroom.deliveries WHERE outcome IN ('skipped', 'expired')"
        ).fetchall()
        reasons: dict[int, str] = dict(rows)
        for tokens in self.rivals.values():
            handed = self.handed & set(tokens)
            assert len(handed) <= LIMIT
            if not self.spoilt & set(tokens):
                assert handed, "of several, none was handed out"
                assert max(tokens) in handed or reasons.get(max(tokens)) == "limited"
                assert {reasons.get(token) for token in set(tokens) - handed} <= {"superseded", "limited"}

    def teardown(self) -> None:
        try:
            for who in range(WRITERS):
                self.commit(who)
            self.let_leases_expire()
            self.claim(0, 10_000, 1000)
            self.let_scheduled_be_due()
            self.claim(0, 10_000, 1000)
            rivals = {token for tokens in self.rivals.values() for token in tokens}
            missing = self.committed - self.spoilt - self.handed - rivals
            assert not missing, f"never handed out: {sorted(missing)}"
            self.check_rivals()
            ((waiting, _, _),) = self.admin.execute("SELECT * FROM mailroom.backlog()").fetchall()
            assert 0 == waiting
        finally:
            for connection in [self.admin, *self.workers, *(writer.connection for writer in self.writers)]:
                connection.close()


@pytest.mark.slow
def test_no_interleaving_loses_or_repeats_a_token(database: str, db: psycopg.Connection) -> None:
    for statement in (*ACTIONS.strip().splitlines(), RULES):
        db.execute(statement.encode())
    machine = type("Machine", (QueueMachine,), {"url": database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


@pytest.mark.slow
def test_racing_writers_and_workers_lose_and_repeat_nothing(database: str, db: psycopg.Connection) -> None:
    """Real concurrency: twelve writers with cached ids, savepoints and roll-backs; three workers."""
    db.execute("ALTER TABLE tokens ALTER COLUMN id SET CACHE 20")
    committed: list[int] = []
    handed: list[int] = []
    writing = threading.Event()
    writing.set()
    errors: list[BaseException] = []

    @contextmanager
    def noting_errors() -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            errors.append(error)
            raise

    def write(seed: int) -> None:
        chance = random.Random(seed)
        with noting_errors(), psycopg.connect(database) as connection:
            for transaction in range(40):
                tokens: list[int] = []
                connection.execute("SELECT 'begin'")  # so that what follows are savepoints
                for part in range(chance.randint(1, 4)):
                    with connection.transaction(force_rollback=chance.random() < 0.2) as savepoint:
                        rows = connection.execute(
                            "WITH a AS (INSERT INTO accounts (email, login, status)"
                            " SELECT n || '@b', n, 'active' FROM generate_series(1, %s) g,"
                            " LATERAL (SELECT concat_ws('-', %s::int, %s::int, %s::int, g) AS n) names"
                            " RETURNING id)"
                            " INSERT INTO tokens (action, account) SELECT 'password_recovery', id FROM a"
                            " RETURNING id",
                            [chance.randint(1, 9), seed, transaction, part],
                        ).fetchall()
                    if not savepoint.force_rollback:
                        tokens += [row[0] for row in rows]
                    time.sleep(chance.choice([0, 0, 0.002, 0.02]))  # holds the transaction open
                if chance.random() < 0.2:
                    connection.rollback()
                else:
                    connection.commit()
                    committed.extend(tokens)

    def work(name: int) -> None:
        chance = random.Random(name)
        with noting_errors(), psycopg.connect(database, autocommit=True) as connection:
            while True:
                last = not writing.is_set()
                leases = claim(connection, chance.randint(1, 60), worker=str(name), lease_tokens=20)
                for lease in leases:
                    handed.extend(lease.tokens)
                    assert settle(connection, lease)
                if last and not leases:
                    return

    writers = [threading.Thread(target=write, args=[seed]) for seed in range(12)]
    workers = [threading.Thread(target=work, args=[name]) for name in range(3)]
    for thread in writers + workers:
        thread.start()
    for thread in writers:
        thread.join()
    writing.clear()
    for thread in workers:
        thread.join()
    assert [] == errors
    assert len(committed) > 1000
    assert sorted(committed) == sorted(handed)
