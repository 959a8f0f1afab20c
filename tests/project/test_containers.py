"""The Dockerfile, the compose file and the documented containers: they name what exists and fit together."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import yaml

from mailroom.cli.main import cli
from mailroom.runner.program import GIVE_BACK_S
from mailroom.settings.variables import variables
from mailroom.settings.worker import RunSettings

ROOT = Path(__file__).parents[2]
DOCKERFILE = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", " ")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUN_VARIABLES = list(variables(RunSettings))
KNOWN = {variable.name for variable in RUN_VARIABLES}
SHUTDOWN_MS = int(next(one.default or 0 for one in RUN_VARIABLES if one.name == "MAILROOM_SHUTDOWN_TIMEOUT"))
DOCKER_RUNS = [
    shlex.split(words)
    for words in re.findall(
        r"(?m)^docker run (.*)$", (ROOT / "docs" / "deploy.md").read_text().replace("\\\n", " ")
    )
]


def last(instruction: str) -> str:
    """What the Dockerfile says behind the last of these instructions."""
    found: list[str] = re.findall(rf"(?m)^{instruction}\s+(.*)$", DOCKERFILE)
    return found[-1].strip()


IMAGE = dict(pair.split("=", 1) for pair in shlex.split(last("ENV")))


def test_both_stages_have_one_base_that_the_project_supports() -> None:
    (base,) = set(re.findall(r"(?m)^FROM (\S+)", DOCKERFILE))
    found = re.fullmatch(r"python:(3\.\d+)-slim-\w+", base)
    assert found
    assert f"Programming Language :: Python :: {found[1]}" in PROJECT["classifiers"]


def test_what_is_installed_is_checked_and_leaves_nothing_behind() -> None:
    assert not re.findall(r"(?m)^(?:ADD|ONBUILD|MAINTAINER|VOLUME) ", DOCKERFILE)
    build, final = re.split(r"(?m)^FROM .*$", DOCKERFILE)[1:]
    assert "\nRUN " not in final
    installs = [line for line in build.splitlines() if " install " in line]
    assert 3 == len(installs)
    for line in installs:
        assert "--no-cache-dir" in line
        assert "--require-hashes" in line or "--no-index" in line


def test_the_images_variables_are_settings() -> None:
    assert {name for name in IMAGE if name.startswith("MAILROOM_")} <= KNOWN
    assert IMAGE["MAILROOM_HTTP"].rpartition(":")[2] == last("EXPOSE")
    assert ["MAILROOM_HTTP"] == re.findall(r"environ\['(\w+)'\]", DOCKERFILE)
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', DOCKERFILE))
    assert (PROJECT["license"], PROJECT["description"]) == (labels["licenses"], labels["description"])
    assert {"title", "version", "revision"} <= labels.keys()


def test_the_images_packages_are_those_of_the_tests() -> None:
    def pinned(name: str) -> set[str]:
        text = (ROOT / "requirements" / name).read_text()
        return set(re.findall(r"^([\w.-]+==\S+)", text, re.MULTILINE))

    assert pinned("image.txt") | pinned("build.txt") <= pinned("dev.txt")


def of_docker(words: list[str]) -> tuple[list[str], list[str]]:
    """Docker's options, and the words behind the image's name."""
    at = words.index("mailroom")
    return words[:at], words[at + 1 :]


def value_of(options: list[str], name: str) -> str:
    return options[options.index(name) + 1]


def test_the_documented_containers_are_stopped_in_order_and_keep_what_was_set_aside() -> None:
    commands = []
    for words in DOCKER_RUNS:
        options, command = of_docker(words)
        commands.append(command)
        assert {"--read-only", "--cap-drop"} <= set(options)
        # Nothing but `mailroom run` serves what the health check asks for.
        assert ("--no-healthcheck" in options) is (command not in ([], ["mailroom", "run"]))
        if command[:2] != ["mailroom", "migrate"]:
            assert int(value_of(options, "--stop-timeout")) > SHUTDOWN_MS / 1000 + GIVE_BACK_S
            assert value_of(options, "-v").endswith(f":{IMAGE['MAILROOM_SES_OUTPUT_PATH']}")
    assert [["mailroom", "migrate", "up"], [], ["bash", "-c"]] == [words[:3] for words in commands[:2]] + [
        commands[2][:2]
    ]


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
    assert [f"output:{IMAGE['MAILROOM_SES_OUTPUT_PATH']}"] == run["volumes"]
    port = IMAGE["MAILROOM_HTTP"].rpartition(":")[2]
    assert [f"127.0.0.1:{port}:{port}"] == run["ports"]
    assert int(run["stop_grace_period"].removesuffix("s")) * 1000 > SHUTDOWN_MS
    key = run["environment"]["MAILROOM_SECRET_KEY"]
    assert key.startswith("${MAILROOM_SECRET_KEY:?")  # no key of everybody's
    inbox = run["environment"]["AWS_ENDPOINT_URL_SES"].rpartition(":")[2]
    assert [f"127.0.0.1:{inbox}:{inbox}"] == COMPOSE["services"]["inbox"]["ports"]
