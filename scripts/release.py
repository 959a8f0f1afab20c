"""Builds a wheel and an sdist, and tries them in an environment without the repository.

``make release`` runs it on a commit with the version's tag. It refuses if tag, version and CHANGELOG
differ, if a migration is not frozen, or if files differ from the commit. It publishes nothing: the wheel and
the sdist are in dist/.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final, NoReturn

ROOT: Final = Path(__file__).parent.parent
DIST: Final = ROOT / "dist"
# The hashes of the migrations that were released, which a test holds.
FROZEN: Final = ROOT / "tests/vectors/migrations.sha256"
# These tests need only the package, PostgreSQL and the tests folder.
TESTS: Final = (
    "unit",
    "database/test_consumption.py",
    "database/test_schema.py",
    "database/test_queue.py",
    "programs/test_pipe.py",
    "programs/test_run.py",
)


def main() -> None:
    """Refuse, or build and try."""
    version = checked_version()
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "hatchling", "build", "-d", DIST, cwd=ROOT)
    (wheel,) = DIST.glob("*.whl")
    (sdist,) = DIST.glob("*.tar.gz")
    try_out(wheel, sdist, version)
    sys.stdout.write(f"{wheel}\n{sdist}\n")


def checked_version() -> str:
    """The version, if this commit may be released as that version."""
    found = re.search(
        r'^__version__ = "(.+)"$', (ROOT / "src/mailroom/__init__.py").read_text(), re.MULTILINE
    )
    if not found:
        refuse("src/mailroom/__init__.py has no __version__", 'write __version__ = "1.2.3"')
    version = found[1]
    tags = git("tag", "--points-at", "HEAD").split()
    if not tags:
        refuse(f"this commit has no tag, and the version is {version}", f"git tag v{version}")
    if f"v{version}" not in tags:
        refuse(
            f"the tag is {', '.join(tags)}, and the version is {version}",
            "set __version__ in src/mailroom/__init__.py and tag that commit",
        )
    if changes := git("status", "--porcelain"):
        refuse(f"files differ from the commit:\n{changes}", "commit them, or discard them")
    if f"\n## {version} " not in (ROOT / "CHANGELOG.md").read_text():
        refuse(f"CHANGELOG.md has no section for {version}", f"write one: ## {version} – the date")
    migrations = {path.name for path in (ROOT / "src/mailroom/migrations").glob("*.sql")}
    if unlisted := migrations.difference(FROZEN.read_text().split()):
        refuse(
            f"{FROZEN.relative_to(ROOT)} has no hash of {', '.join(sorted(unlisted))}",
            f"cd src/mailroom/migrations && sha256sum *.sql >{ROOT}/{FROZEN.relative_to(ROOT)}",
        )
    return version


def try_out(wheel: Path, sdist: Path, version: str) -> None:
    """Try the wheel in a new environment: alone, with the demo, and under tests; the sdist with the demo."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True, symlinks=True)
        python, command = folder / "venv/bin/python", folder / "venv/bin/mailroom"
        pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # Without our settings, and without src through PYTHONPATH or the working folder.
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith(("MAILROOM_", "PYTHON", "AWS_", "PG"))
        }

        run(*pip, wheel, cwd=folder, env=clean)
        where = run(python, "-c", "import mailroom; print(mailroom.__file__)", cwd=folder, env=clean)
        if not where.startswith(str(folder)):
            raise SystemExit(f"Error: the imported package is {where}, not the wheel")
        if version not in run(command, "--version", cwd=folder, env=clean):
            raise SystemExit("Error: the wheel has another version")
        run(command, "--help", cwd=folder, env=clean)
        run(command, "doctor", cwd=folder, env=clean, expected=1)  # without settings it finds faults

        run(*pip, f"{wheel}[demo]", cwd=folder, env=clean)
        run(command, "demo", "--no-stay", cwd=folder, env=clean)
        run(*pip, "--force-reinstall", "--no-deps", sdist, cwd=folder, env=clean)
        run(command, "demo", "--no-stay", cwd=folder, env=clean)
        run(*pip, "--force-reinstall", "--no-deps", wheel, cwd=folder, env=clean)

        run(*pip, "--require-hashes", "-r", ROOT / "requirements/dev.txt", cwd=folder, env=clean)
        shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "pytest.ini").write_text(
            "[pytest]\naddopts = --import-mode=importlib\npythonpath = tests\nmarkers = slow\n"
        )
        run(python, "-m", "pytest", "-q", *(f"tests/{test}" for test in TESTS), cwd=folder, env=clean)


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None, expected: int = 0) -> str:
    """The output of a command; ends the release if the exit code is not the expected one."""
    sys.stderr.write(f"+ {' '.join(map(str, command))}\n")
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != expected:
        raise SystemExit(f"{done.stdout}{done.stderr}\nError: exit code {done.returncode}, not {expected}")
    return done.stdout


def git(*arguments: str) -> str:
    """The output of a git command in this repository."""
    return run("git", *arguments, cwd=ROOT).strip()


def refuse(what: str, remedy: str) -> NoReturn:
    """End with an error and a suggested fix, in the format of the command line."""
    raise SystemExit(f"Error: {what}\nTry: {remedy}")


if __name__ == "__main__":
    main()
