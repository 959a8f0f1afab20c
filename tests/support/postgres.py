"""PostgreSQL servers of the tests' own: in memory where there is room, and from one cluster's files."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailroom.database import migrate, sync
from mailroom.demo.postgres import PostgresServer, embedded_binaries

# Nothing here outlives its process, so that what the disk keeps does not matter.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}
DURABLE = FAST | {"synchronous_commit": "on"}
"""Keeps over a crash what it has committed."""

MEMORY = Path("/dev/shm")
ROOM = 4 << 30


def bindir() -> Path | None:
    named = os.environ.get("MAILROOM_TEST_POSTGRES_BINDIR")
    return Path(named) if named else None


def needs(*programs: str) -> None:
    """Skip the test where the server's package lacks one of PostgreSQL's programs."""
    folder = bindir() or embedded_binaries()
    lacking = [program for program in programs if not (folder / program).exists()]
    if lacking:
        pytest.skip(f"this server's package has no {' and no '.join(lacking)}")


def below() -> Path | None:
    """Where clusters are made. A disk takes five times as long to clone and drop a database for each test."""
    if not os.access(MEMORY, os.W_OK) or os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
        return None
    return MEMORY if shutil.disk_usage(MEMORY).free > ROOM else None


def migrated(url: str) -> str:
    with sync.connected(url) as connection:
        migrate.up(connection, None, lambda _: None)
    return url


def server(settings: dict[str, str] = FAST) -> PostgresServer:
    """A server without any schema."""
    return PostgresServer(bindir=bindir(), settings=settings, below=below())


@contextlib.contextmanager
def cluster() -> Iterator[PostgresServer]:
    """A migrated server that does not run, to copy."""
    with server() as one:
        migrated(one.url())
        one.stop()
        yield one


@contextlib.contextmanager
def copy_of(cluster: PostgresServer, settings: dict[str, str] = FAST) -> Iterator[PostgresServer]:
    """A running server with a cluster's files."""
    one = PostgresServer(bindir=bindir(), settings=settings, password=cluster.password, below=below())
    try:
        subprocess.run(["cp", "-a", str(cluster.data), str(one.data)], check=True)
        one.start()
        yield one
    finally:
        one.remove()
