"""A release is refused unless tag, version and changes agree; CI and pre-commit run `make check`'s tools."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import matrix

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
FROZEN = "tests/vectors/migrations.sha256"
WHO = {f"GIT_{role}_{what}": "x@y" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


class Repository:
    """A repository of the files that a release looks at, at version 1.2.3, in one commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("scripts/release.py", "src/mailroom/__init__.py", FROZEN):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        package = folder / "src/mailroom/__init__.py"
        package.write_text(re.sub(r'(?m)^__version__ = ".*"$', '__version__ = "1.2.3"', package.read_text()))
        self.write("CHANGELOG.md", "# Changes\n\n## 1.2.3 – 2026-01-31\n")
        self.git("init", "--quiet")
        self.commit()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def commit(self) -> None:
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", "A commit")

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.folder, env=self.environment(), check=True)

    def explained(self) -> str:
        """What the release says, which must not have begun to build."""
        done = subprocess.run(
            [sys.executable, "scripts/release.py"],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert 1 == done.returncode
        assert "hatchling" not in done.stderr
        return done.stderr

    def environment(self) -> dict[str, str]:
        nothing = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        return {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | WHO | nothing


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    if not shutil.which("git"):
        pytest.skip("needs git")
    return Repository(tmp_path / "repository")


def test_no_release_without_a_tag(repository: Repository) -> None:
    refusal = repository.explained()
    assert "Error: this commit has no tag, and the version is 1.2.3" in refusal
    assert "Try: git tag v1.2.3" in refusal


def test_no_release_under_another_versions_tag(repository: Repository) -> None:
    repository.git("tag", "v1.2.4")
    assert "Error: the tag is v1.2.4, and the version is 1.2.3" in repository.explained()


def test_no_release_of_a_commit_after_the_tag(repository: Repository) -> None:
    repository.git("tag", "v1.2.3")
    repository.write("more", "")
    repository.commit()
    assert "Error: this commit has no tag" in repository.explained()


def test_no_release_of_files_that_are_not_committed(repository: Repository) -> None:
    repository.git("tag", "v1.2.3")
    repository.write("more", "")
    assert "Error: files differ from the commit:\n?? more" in repository.explained()


def test_no_release_that_the_changes_do_not_tell_of(repository: Repository) -> None:
    repository.write("CHANGELOG.md", "# Changes\n\n## Unreleased\n")
    repository.commit()
    repository.git("tag", "v1.2.3")
    assert "Error: CHANGELOG.md has no section for 1.2.3" in repository.explained()


def test_no_release_of_a_migration_that_may_still_change(repository: Repository) -> None:
    (repository.folder / "src/mailroom/migrations").mkdir()
    for name in ("000001_accounts_and_tokens.up.sql", "000005_next.up.sql"):
        repository.write(f"src/mailroom/migrations/{name}", "")
    repository.commit()
    repository.git("tag", "v1.2.3")
    assert f"Error: {FROZEN} has no hash of 000005_next.up.sql\n" in repository.explained()


def test_the_matrix_runs_tests_that_exist() -> None:
    assert [] == [name for name in matrix.ON_SERVERS if not (ROOT / name).exists()]


def test_extras_refer_to_the_project_by_its_name() -> None:
    name = PYPROJECT["project"]["name"]
    assert "mailroom" != name  # PyPI's mailroom is somebody else's
    wanted = [need for extra in PYPROJECT["project"]["optional-dependencies"].values() for need in extra]
    assert {name} == {need.split("[")[0] for need in wanted if need.startswith(("mailroom", name))}


def test_ci_calls_make_check_on_every_python_that_is_promised() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())
    job = workflow["jobs"]["check"]
    assert "make check PYTHON=python" in [step.get("run") for step in job["steps"]]
    prefix = "Programming Language :: Python :: "
    promised = [
        line.removeprefix(prefix) for line in PYPROJECT["project"]["classifiers"] if line.startswith(prefix)
    ]
    assert promised == job["strategy"]["matrix"]["python"]
    security = [step.get("run", "").split() for step in workflow["jobs"]["security"]["steps"]]
    assert [["make", "audit"], ["make", "fuzz"]] == [words[:2] for words in security if words]


def test_pre_commit_runs_the_tools_of_make_check() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repo,) = config["repos"]
    assert "local" == repo["repo"]
    entries = [hook["entry"] for hook in repo["hooks"]]
    assert "make lint" in entries  # what looks at the Dockerfile and its like
    tools = {entry.split()[0].removeprefix(".venv/bin/") for entry in entries} - {"make"}
    assert {"ruff", "mypy", "lint-imports", "python"} == tools
    for tool in tools:
        assert f"$(BIN)/{tool}" in MAKEFILE


@pytest.mark.parametrize("form", ["bug", "idea"])
def test_issue_forms_are_forms(form: str) -> None:
    read = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{form}.yml").read_text())
    assert {"name", "description", "body"} <= set(read)
    fields = [part for part in read["body"] if part["type"] != "markdown"]
    assert len(fields) == len({part["id"] for part in fields})
    assert all(part["attributes"]["label"] for part in fields)


def test_the_projects_habits_are_written_down() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    for target in re.findall(r"`?make (\w+)", contributing):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    for name in ("LICENSE", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md"):
        assert (ROOT / name).stat().st_size > 200
