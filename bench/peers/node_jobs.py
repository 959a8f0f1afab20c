"""graphile-worker and pg-boss, whose workers are in JavaScript: see the folder node.

The packages bring the Node that they need. Tuning of graphile-worker: ``concurrency``, ``size`` (of the local
queue), ``delay`` (of completions, in milliseconds). Tuning of pg-boss: ``batch``, ``workers``.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.peers.builds import build
from bench.peers.queues import Adapter, Missing, job_environment

# https://worker.graphile.org/docs/sql-add-job
ADD_JOB: Final = "PERFORM graphile_worker.add_job('mail', payload::json)"
ADD_JOBS: Final = """
SELECT count(*) FROM graphile_worker.add_jobs((
    SELECT array_agg((jsonb_populate_record(
        NULL::graphile_worker.job_spec, jsonb_build_object('identifier', 'mail', 'payload', payload))))
    FROM payloads))
"""
# https://pgboss.io/sql: the insert that it recommends outside of Node
INSERT: Final = (
    "INSERT INTO pgboss.job (name, data, expire_in, retry_limit) VALUES ('mail', payload, '15 s', 5)"
)
INSERT_12: Final = """
INSERT INTO pgboss.job (name, data, expire_seconds, retry_limit) VALUES ('mail', payload, 15, 5);
PERFORM pg_notify('pgboss_' || left(encode(sha224('pgboss'::bytea), 'hex'), 24), 'mail')
"""


def graphile() -> Adapter:
    return _adapter("graphile-worker", ["graphile.mjs"], ADD_JOB, "graphile_worker._private_jobs", ADD_JOBS)


def pg_boss_10() -> Adapter:
    return _adapter("pg-boss-10", ["pgboss.mjs", "10"], INSERT, "pgboss.job")


def pg_boss_12() -> Adapter:
    return _adapter("pg-boss", ["pgboss.mjs", "12"], INSERT_12, "pgboss.job")


def node() -> tuple[str, Path]:
    """The Node that the packages bring, and the folder of the workers."""
    built = build("node", "npm", ["npm", "ci", "--no-audit", "--no-fund"])
    program = built / "node_modules" / ".bin" / "node"
    if not program.exists():
        raise Missing("npm ran no install scripts, so there is no Node 22")
    return str(program), built


def _adapter(package: str, arguments: list[str], enqueue: str, table: str, enqueue_many: str = "") -> Adapter:
    program, built = node()
    command = [program, str(built / arguments[0]), *arguments[1:]]

    def install(database: str) -> None:
        variables = job_environment({}) | {
            "MAILROOM_DATABASE_URL": database,
            "MAILROOM_SECRET_KEY": "ab" * 32,
        }
        subprocess.run([*command, "install"], env=dict(os.environ) | variables, check=True)

    facts = json.loads((built / "node_modules" / package / "package.json").read_text())
    made = Adapter(install, enqueue, table, [*command, "work"], f"{facts['name']} {facts['version']}")
    return replace(made, enqueue_many=enqueue_many) if enqueue_many else made
