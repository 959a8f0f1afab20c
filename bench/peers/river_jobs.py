"""River, whose worker is in Go: see the folder river.

Tuning: ``workers`` (MaxWorkers), ``cooldown`` (FetchCooldown in milliseconds), ``pool`` (connections).
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Final

import psycopg

from bench.peers.builds import build
from bench.peers.queues import Adapter

# What Client.InsertTx does: a client notifies at most once in each FetchCooldown. The sequence holds the time
# of the last notification, in milliseconds, for all sessions, as a client holds it for all its connections.
SEQUENCE: Final = "CREATE SEQUENCE river_notified"
ENQUEUE: Final = """
INSERT INTO river_job (args, kind, max_attempts, queue, state)
VALUES (payload, 'mail', 25, 'default', 'available');
IF extract(epoch FROM clock_timestamp()) * 1000 - (SELECT last_value FROM river_notified) >= 2 THEN
    PERFORM setval('river_notified', (extract(epoch FROM clock_timestamp()) * 1000)::bigint);
    PERFORM pg_notify('public.river_insert', '{"queue": "default"}');
END IF
"""


def adapter() -> Adapter:
    built = build("river", "go", ["go", "build", "-buildvcs=false", "-o", "river", "."])
    program = str(built / "river")

    def install(database: str) -> None:
        subprocess.run(
            [program, "install"], env=dict(os.environ) | {"MAILROOM_DATABASE_URL": database}, check=True
        )
        with psycopg.connect(database) as connection:
            connection.execute(SEQUENCE)

    (version,) = re.findall(r"riverqueue/river v(\S+)", (built / "go.mod").read_text())
    return Adapter(install, ENQUEUE, "river_job", [program, "work"], f"River {version}")
