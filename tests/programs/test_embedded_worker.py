"""``mailroom.worker``: an application runs the worker in its own event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import mailroom
from mailroom.inbox.server import InboxServer
from support import processes, senders
from support.queue_sql import Db, sign_up
from support.runs import UNSETTLED, ledger, wait_until


@pytest.fixture
def environ(
    database: str, ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """A worker's settings; botocore's are in the process's environment."""
    for name, value in senders.aws(ses.url).items():
        monkeypatch.setenv(name, value)
    return processes.environment(database, BATCH_TIMEOUT=0) | senders.environment(
        tmp_path / "output", SEND_RATE=10_000
    )


def test_an_application_mails_while_the_context_lasts(
    environ: dict[str, str], db: Db, ses: InboxServer
) -> None:
    async def application() -> None:
        async with mailroom.worker(environ) as worker:
            assert worker.is_running
            token = await asyncio.to_thread(sign_up, db, "zoe")
            await asyncio.to_thread(ses.wait_for, lambda inbox: inbox.counts.accepted == 1)
            await asyncio.to_thread(wait_until, db, UNSETTLED, 0)
            assert [(token, 1, "sent")] == ledger(db)
        assert (False, None) == (worker.is_running, worker.error)
        assert {asyncio.current_task()} == asyncio.all_tasks()

    asyncio.run(application())
    assert [(0,)] == db.execute("SELECT count(*) FROM mailroom.workers").fetchall()
