"""The units of systemd and Kubernetes: they name what exists, and keep the contract of an orderly end."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from mailroom.cli.main import cli
from mailroom.errors import DatabaseError
from mailroom.runner import health
from mailroom.runner.program import GIVE_BACK_S
from mailroom.settings import misspelt
from mailroom.settings.variables import read_settings
from mailroom.settings.variables import variables as settings_variables
from mailroom.settings.worker import HealthSettings, RunSettings
from project.test_containers import IMAGE, last
from project.test_site import blocks, run

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "deploy.md").read_text()
MANIFEST = (ROOT / "contrib" / "kubernetes" / "mailroom.yaml").read_text()
UNITS = sorted(path for path in (ROOT / "contrib" / "systemd").iterdir() if path.suffix != ".env")
UNITS_COPIED = re.findall(r"contrib/systemd/[*]\S+", GUIDE)
WORKER = ROOT / "contrib" / "systemd" / "mailroom@.service"
SERVICES = [path for path in UNITS if path.suffix == ".service"]
OBJECTS: dict[str, dict[str, Any]] = {one["kind"]: one for one in yaml.safe_load_all(MANIFEST)}
PODS = ("Job", "Deployment", "CronJob")
RUN_VARIABLES = list(settings_variables(RunSettings))
SECRETS = {f"{one.name}_FILE" for one in RUN_VARIABLES if one.secret}
KNOWN = {one.name for one in RUN_VARIABLES} | SECRETS | {"MAILROOM_LOG_FORMAT", "MAILROOM_LOG_LEVEL"}
SHUTDOWN_S = (
    int(next(one.default or 0 for one in RUN_VARIABLES if one.name == "MAILROOM_SHUTDOWN_TIMEOUT")) / 1000
)
# So much is systemd's own opinion of a service; 10 is one without any protection.
MAX_EXPOSED = 1.5


def unit(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for line in text.splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def assert_it_is_a_command(words: list[str]) -> None:
    command: click.Command = cli
    words = list(words)
    assert "mailroom" == Path(words.pop(0)).name
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context("mailroom", words)


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_service_starts_a_command_with_settings_that_exist(path: Path) -> None:
    service = unit(path.read_text())
    (command,) = service["ExecStart"]
    assert_it_is_a_command(shlex.split(command))
    assert_credentials_are_named(service)


def assert_credentials_are_named(service: dict[str, list[str]]) -> None:
    """Each by a setting of ours, or of AWS's."""
    credentials = {line.partition(":")[0] for line in service["LoadCredential"]}
    for line in service["Environment"]:
        name, _, value = line.partition("=")
        assert name in KNOWN | {"AWS_SHARED_CREDENTIALS_FILE"}
        if name not in KNOWN - SECRETS:
            credentials.remove(value.removeprefix("%d/"))
    assert set() == credentials


def test_the_service_is_stopped_in_order_and_not_started_in_vain() -> None:
    service = unit(WORKER.read_text())
    assert int(service["TimeoutStopSec"][0].removesuffix("s")) > SHUTDOWN_S + GIVE_BACK_S
    assert str(DatabaseError.exit_code) in service["RestartPreventExitStatus"][0].split()
    # A port may be free in a moment.
    assert str(health.ListenError.exit_code) not in service["RestartPreventExitStatus"][0].split()
    output = next(line for line in service["Environment"] if "OUTPUT_PATH" in line).partition("=")[2]
    assert f"/var/lib/{service['StateDirectory'][0]}" == output  # all else is read-only
    assert ["strict"] == service["ProtectSystem"]


def test_workers_on_one_machine_share_neither_port_nor_folder() -> None:
    instances = re.findall(r"mailroom@(\w+)\.service", GUIDE)
    assert ["8027", "8028"] == sorted(set(instances))
    service = unit(WORKER.read_text())
    given = dict(line.split("=", 1) for line in service["Environment"])
    addresses = {
        read_settings(HealthSettings, {"MAILROOM_HTTP": given["MAILROOM_HTTP"].replace("%i", one)}).address
        for one in instances
    }
    assert {("127.0.0.1", 8027), ("127.0.0.1", 8028)} == addresses
    assert "%i" in service["StateDirectory"][0]


def drop_ins() -> list[str]:
    return re.findall(r"```ini\n(.*?)```", GUIDE, re.DOTALL)


def test_the_drop_ins_hand_over_credentials_by_settings_that_exist() -> None:
    assert 2 == len(drop_ins())
    for text in drop_ins():
        service = unit(text)
        assert service["LoadCredential"]
        assert_credentials_are_named(service)


def test_the_files_that_systemd_reads_are_made_as_the_guide_says(tmp_path: Path) -> None:
    (tmp_path / "contrib").symlink_to(ROOT / "contrib")
    making = next(code for _, code in blocks(GUIDE, "sh") if "mailroom.env environment" in code)
    run(making, tmp_path)
    installed = next(code for _, code in blocks(GUIDE, "sh") if "/etc/mailroom" in code)
    for name in ("environment", "database-url", "oncall-database-url", "secret-key"):
        assert name in installed
        assert 0o600 == (tmp_path / name).stat().st_mode & 0o777
    lines = (tmp_path / "environment").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert [] == misspelt.unknown(given)
    files = {
        "MAILROOM_DATABASE_URL_FILE": str(tmp_path / "database-url"),
        "MAILROOM_SECRET_KEY_FILE": str(tmp_path / "secret-key"),
    }
    settings = read_settings(RunSettings, given | files)
    assert {"app_name", "app_url"} == set(settings.sender.templates.constants)
    for name in UNITS_COPIED:
        assert list((ROOT / "contrib" / "systemd").glob(name.rpartition("/")[2])), name


def test_every_guide_keeps_the_ledger_for_the_same_time() -> None:
    files = [*UNITS, ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    ages = {age for path in files for age in re.findall(r"prune --older-than (\w+)", path.read_text())}
    assert {"30d"} == ages


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
def test_systemd_takes_the_units_and_finds_them_tight(tmp_path: Path) -> None:
    for path in UNITS:
        # It wants the program to be there.
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/mailroom/bin/mailroom", "/bin/true"))
    additions = tmp_path / f"{WORKER.name}.d"
    additions.mkdir()
    for number, text in enumerate(drop_ins()):
        (additions / f"{number}.conf").write_text(text)
    units = [tmp_path / path.name.replace("@.", "@8027.") for path in UNITS]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    assert (0, "") == (done.returncode, done.stdout + done.stderr)
    for path in SERVICES:
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=yes", "--no-pager", tmp_path / path.name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if "offline" in done.stderr:
            pytest.skip("this systemd-analyze is too old to judge a unit that is not loaded")
        found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
        assert found, done.stderr
        assert float(found[1]) <= MAX_EXPOSED, done.stdout


def test_the_timer_starts_the_service_of_its_name() -> None:
    for path in UNITS:
        if path.suffix == ".timer":
            assert path.with_suffix(".service") in SERVICES


def pod(kind: str) -> dict[str, Any]:
    spec = OBJECTS[kind]["spec"]
    found: dict[str, Any] = spec.get("jobTemplate", {"spec": spec})["spec"]["template"]["spec"]
    return found


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", []), *spec["containers"]]


@pytest.mark.parametrize("kind", PODS)
def test_a_pod_may_do_nothing_but_its_work(kind: str) -> None:
    spec = pod(kind)
    user, group = map(int, last("USER").split(":"))
    context = spec["securityContext"]
    assert (True, user, group, group) == (
        context["runAsNonRoot"], context["runAsUser"], context["runAsGroup"], context["fsGroup"],
    )  # fmt: skip
    assert spec["automountServiceAccountToken"] is False
    for container in containers(spec):
        assert_it_is_a_command(container["command"])
        assert {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        } == container["securityContext"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == {one["name"] for one in spec["volumes"]}
        for entry in container["env"]:
            assert entry["name"] in KNOWN
            if entry["name"] in SECRETS:
                assert str(Path(entry["value"]).parent) in mounts.values()


def test_the_job_migrates_and_then_renews_the_roles() -> None:
    spec = pod("Job")
    assert [["mailroom", "migrate", "up"]] == [one["command"] for one in spec["initContainers"]]
    assert [["mailroom", "roles", "--apply"]] == [one["command"] for one in spec["containers"]]


def test_the_guide_makes_every_secret_that_the_pods_mount() -> None:
    made = {}
    for line in re.findall(r"^kubectl create secret generic (.*)$", GUIDE, re.MULTILINE):
        name, *options = line.split()
        made[name] = {option.removeprefix("--from-file=").partition("=")[0] for option in options}
    assert set(made) == set(re.findall(r"secretName: ([\w-]+)", MANIFEST))
    for kind in PODS:
        (secret,) = (one["secret"]["secretName"] for one in pod(kind)["volumes"] if "secret" in one)
        for container in containers(pod(kind)):
            read = {Path(one["value"]).name for one in container["env"] if one["name"] in SECRETS}
            assert read <= made[secret]


def test_the_guide_deletes_the_old_job_before_it_applies_the_new_one() -> None:
    name = OBJECTS["Job"]["metadata"]["name"]
    delete, apply, wait = re.findall(r"^kubectl (?:delete|apply|wait) .*$", GUIDE, re.MULTILINE)
    assert f"kubectl delete job {name} --ignore-not-found" == delete
    assert "contrib/kubernetes/mailroom.yaml" in apply
    assert wait.endswith(f"job/{name}")


def test_the_deployment_is_probed_where_health_is_served() -> None:
    (container,) = pod("Deployment")["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    (port,) = container["ports"]
    assert f"0.0.0.0:{port['containerPort']}" == given["MAILROOM_HTTP"]
    assert str(port["containerPort"]) == last("EXPOSE")
    assert IMAGE["MAILROOM_SES_OUTPUT_PATH"] == given["MAILROOM_SES_OUTPUT_PATH"]
    assert given["MAILROOM_SES_OUTPUT_PATH"] in [one["mountPath"] for one in container["volumeMounts"]]
    probes = {name: container[name]["httpGet"] for name in container if name.endswith("Probe")}
    assert {
        "startupProbe": {"path": "/livez", "port": port["name"]},
        "livenessProbe": {"path": "/livez", "port": port["name"]},
        "readinessProbe": {"path": "/readyz", "port": port["name"]},
    } == probes
    served = Path(str(health.__file__)).read_text()
    for probe in probes.values():
        assert f'Route("{probe["path"]}"' in served
    # An answer of /readyz takes two seconds when the database is deaf.
    assert container["readinessProbe"]["timeoutSeconds"] > 2
    annotations = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert str(port["containerPort"]) == annotations["prometheus.io/port"]


def test_the_deployment_ends_in_order() -> None:
    assert pod("Deployment")["terminationGracePeriodSeconds"] > SHUTDOWN_S + GIVE_BACK_S


def test_the_objects_know_each_other() -> None:
    labels = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert labels == OBJECTS[kind]["spec"]["selector"]["matchLabels"]
    assert labels != OBJECTS["Job"]["spec"]["template"]["metadata"]["labels"]
    assert pod("Deployment")["serviceAccountName"] == OBJECTS["ServiceAccount"]["metadata"]["name"]
    for name in OBJECTS["ConfigMap"]["data"]:
        assert name in KNOWN or name.startswith("AWS_")
    assert OBJECTS["PodDisruptionBudget"]["spec"]["minAvailable"] < OBJECTS["Deployment"]["spec"]["replicas"]
