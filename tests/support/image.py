"""The Dockerfile's image, built by buildah without an engine, on a base that debootstrap makes.

The base has the name in the Dockerfile's FROM, Debian's Python, and no configured package: all that is
needed is in the files. It is kept in the temporary folder, for a minute's work each time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import pytest

from support.processes import PATIENCE_S

ROOT: Final = Path(__file__).parents[2]
OFFLINE: Final = ("NewConnectionError", "ConnectTimeoutError", "Temporary failure in name resolution")
PACKAGES: Final = "python3,python3-venv,python3-pip"
NEEDED: Final = ("buildah", "debootstrap", "unshare", "chroot")


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """What a program prints; fails with what it says when it fails."""
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, check=False)
    if done.returncode and any(word in done.stderr for word in OFFLINE):
        pytest.skip("the package index does not answer")
    assert 0 == done.returncode, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def skip_where_none_can_be_built() -> None:
    missing = [program for program in NEEDED if not shutil.which(program)]
    if missing:
        pytest.skip(f"there is no {' and no '.join(missing)}: apt-get install {' '.join(missing)}")
    if os.geteuid():
        pytest.skip("only root can build the image without an engine")


def base(release: str) -> Path:
    """An archive with a Debian that has Python."""
    kept = Path(tempfile.gettempdir()) / f"mailroom-image-base-{release}-{os.getuid()}.tar"
    if kept.exists() and kept.stat().st_uid == os.getuid():
        return kept
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "base"
        done = subprocess.run(
            ["debootstrap", "--foreign", "--variant=minbase", f"--include={PACKAGES}", release, str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"debootstrap cannot have Debian's packages: {done.stdout[-200:]}")
        for package in (folder / "var/cache/apt/archives").glob("*.deb"):
            run("dpkg-deb", "--extract", package, folder)
        for left in ("var/cache/apt", "debootstrap"):
            shutil.rmtree(folder / left)
        (folder / "tmp").chmod(0o1777)
        (folder / "usr/local/bin").mkdir(parents=True, exist_ok=True)
        (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        run("tar", "--create", "--file", f"{name}/base.tar", "--directory", folder, ".")
        shutil.move(f"{name}/base.tar", kept)
    return kept


def pip_options(folder: Path) -> list[str]:
    """What lets pip in the build reach what pip reaches here."""
    settings: dict[str, str] = {}
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        settings.setdefault(name.rpartition(".")[2], value.strip("'"))  # the environment's come first
    lines = [f"{name} = {value}\n" for name, value in settings.items()]
    (folder / "pip.conf").write_text(f"[global]\n{''.join(lines)}")
    paths = {Path("/etc/ssl/certs"), *(Path(value) for value in settings.values() if value.startswith("/"))}
    mounted = [f"{path}:{path}" for path in sorted(paths) if path.exists()]
    return [f"--volume={one}:ro" for one in (f"{folder / 'pip.conf'}:/etc/pip.conf", *mounted)]


class Container:
    """A command in the image: the first process of its namespace, with the image's user and variables."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # It has another user by now, so the kernel does not end it with the process that started it.
        with suppress(IndexError, OSError):
            os.kill(self.first(), signal.SIGKILL)
        self.process.kill()
        self.process.communicate()

    def first(self) -> int:
        """The process id, as seen from here, of what the container runs."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def stop(self) -> None:
        """Send SIGTERM, as an engine does."""
        os.kill(self.first(), signal.SIGTERM)

    def wait(self) -> tuple[int, str]:
        """The exit code, and all that it printed."""
        text = self.process.communicate(timeout=PATIENCE_S)[0]
        return self.process.returncode, text


@dataclass(frozen=True)
class Image:
    """The built image.

    Attributes:
        config: its configuration, as Docker has it.
        root: its file system, which a container can write to.
        context: the files that the builder got.
    """

    config: dict[str, Any]
    root: Path
    context: Path

    def run(
        self, command: Sequence[str] = (), *, before: Sequence[str] = (), **environment: str
    ) -> Container:
        """Start a command in it, else its own."""
        given = dict(pair.split("=", 1) for pair in self.config["Env"]) | environment
        return Container(
            subprocess.Popen(
                [
                    *before,
                    *("unshare", "--pid", "--fork", "--kill-child", f"--mount-proc={self.root / 'proc'}"),
                    *("chroot", f"--userspec={self.config['User']}", str(self.root), "env", "-i"),
                    f"--chdir={self.config['WorkingDir']}",
                    *(f"{name}={value}" for name, value in given.items()),
                    *(command or self.config["Cmd"]),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )


@contextmanager
def built() -> Iterator[Image]:
    """Build it; where that is impossible, the test is skipped with the reason."""
    skip_where_none_can_be_built()
    found = re.search(r"(?m)^FROM (\S+-(\w+))$", (ROOT / "Dockerfile").read_text())
    assert found
    name, release = found.groups()
    archive = base(release)
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        stored = (f"--root={folder / 'root'}", f"--runroot={folder / 'run'}")
        buildah = ("buildah", "--storage-driver=vfs", *stored)
        env = os.environ | {"BUILDAH_ISOLATION": "chroot"}
        try:
            container = run(*buildah, "from", "scratch", env=env)
            run(*buildah, "add", "--quiet", container, archive, "/", env=env)
            run(*buildah, "commit", "--quiet", "--rm", container, f"docker.io/library/{name}", env=env)
            build = ("build", "--pull=never", "--format=docker", *pip_options(folder))
            run(*buildah, *build, "--build-arg=VERSION=1.2.3", "--tag=mailroom", ROOT, env=env)
            config = json.loads(run(*buildah, "inspect", "--type=image", "mailroom", env=env))
            (folder / "context").write_text("FROM scratch\nCOPY . /\n")
            run(*buildah, "build", f"--file={folder / 'context'}", "--tag=context", ROOT, env=env)
            root, context = (
                run(*buildah, "mount", run(*buildah, "from", "--pull=never", image, env=env), env=env)
                for image in ("mailroom", "context")
            )
            yield Image(config["Docker"]["config"], Path(root), Path(context))
        finally:
            run(*buildah, "rm", "--all", env=env)
