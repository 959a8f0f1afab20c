"""The alerts and the dashboard of contrib name metrics and commands that exist; Prometheus accepts them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from mailroom.cli.main import cli
from mailroom.operations import fates
from mailroom.runner.metrics import Metrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "contrib" / "prometheus"
ALERTS = FOLDER / "alerts.yml"
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
TESTS = (FOLDER / "alerts_test.yml").read_text()
DASHBOARD: dict[str, Any] = json.loads((ROOT / "contrib" / "grafana" / "mailroom.json").read_text())
REFERENCE = (ROOT / "docs" / "reference" / "metrics.md").read_text()
GUIDE = (ROOT / "docs" / "deploy.md").read_text()
# What Grafana puts into an expression.
GIVEN = {"$job": ".+", "$__rate_interval": "1m"}
# Metrics of the process that are there too, by the reference.
OF_THE_PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
all_rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))


def promtool(*words: str | Path, fails: bool = False) -> str:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert fails == bool(done.returncode), said
    return said


def expressions() -> list[str]:
    """Those of the dashboard's panels, as Grafana asks them."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    for name, value in GIVEN.items():
        found = [expression.replace(name, value) for expression in found]
    assert found
    return found


def samples() -> set[str]:
    """The names under which Prometheus keeps the metrics of the reference."""
    names = set()
    for name, kind in re.findall(r"^\| `(mailroom_\w+)` \| ([a-z]+) \|", REFERENCE, re.MULTILINE):
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


def named(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:mailroom|process)_\w+", re.sub(r'"[^"]*"', "", expression)))


@needs_promtool
def test_prometheus_accepts_the_alerts() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", ALERTS)


@needs_promtool
def test_each_alert_fires_when_it_should_and_not_before() -> None:
    promtool("test", "rules", FOLDER / "alerts_test.yml")
    for rule in RULES:
        assert f'ALERTS{{alertname="{rule["alert"]}", alertstate="firing", severity="' in TESTS


@pytest.mark.slow
@needs_promtool
@pytest.mark.parametrize(
    ("written", "changed"),
    [
        (">= 0.05", ">= 0.06"),
        (">= 0.05", ">= 0.02"),
        (">= 0.001", ">= 0.003"),
        (">= 0.001", ">= 0.0005"),
        ("> 1.5", "> 0.5"),
        (">= 10\n", ">= 1\n"),
        ("> 1000", "> 800"),
        ("for: 10m", "for: 5m"),
    ],
)
def test_the_tests_of_the_alerts_see_a_wrong_limit(tmp_path: Path, written: str, changed: str) -> None:
    text = ALERTS.read_text()
    assert written in text
    (tmp_path / "alerts.yml").write_text(text.replace(written, changed))
    (tmp_path / "alerts_test.yml").write_text(TESTS)
    promtool("test", "rules", tmp_path / "alerts_test.yml", fails=True)


@all_rules
def test_an_alert_names_metrics_that_exist(rule: dict[str, Any]) -> None:
    found = named(rule["expr"])
    assert found
    assert found <= samples()


@all_rules
def test_an_alert_says_what_is_wrong_and_which_command_helps(rule: dict[str, Any]) -> None:
    said = rule["annotations"]
    assert {"summary", "description"} == set(said)
    assert said["summary"].endswith(".")
    assert rule["labels"]["severity"] in {"critical", "warning"}
    commands = re.findall(r"`mailroom ([^`]+)`", said["description"])
    assert commands
    for command in commands:
        assert_it_is_a_command(command.split())
    assert f"| `{rule['alert']}` | {rule['labels']['severity']} |" in REFERENCE


def assert_it_is_a_command(words: list[str]) -> None:
    command: click.Command = cli
    while isinstance(command, click.Group):
        assert words
        command = command.commands[words.pop(0)]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= options


def test_the_rates_alarm_where_status_does() -> None:
    written = {rule["alert"]: rule["expr"] for rule in RULES}
    assert f">= {fates.BOUNCE_LIMIT}\n" in written["MailroomBounceRate"]
    assert f">= {fates.COMPLAINT_LIMIT}\n" in written["MailroomComplaintRate"]
    for name in ("MailroomBounceRate", "MailroomComplaintRate"):
        assert f">= {fates.MIN_MAILS}\n" in written[name]
    assert f"> {fates.MIN_COMPLAINTS - 0.5}\n" in written["MailroomComplaintRate"]
    assert "[1d]" in written["MailroomBounceRate"]
    assert 1 == fates.COUNTED_FOR.days


def test_the_first_event_of_a_kind_is_an_increase() -> None:
    """For Prometheus a counter that begins with 1 has not increased."""
    text = Metrics().exposition(None, outages=0, is_listening=False, sending_paused_s=0).decode()
    for rule in RULES:
        for labels in re.findall(r"mailroom_events_total(\{[^}]*\})", rule["expr"]):
            kinds = re.findall(r'kind=~?"([^"]*)"', labels)[0].split("|")
            for kind in kinds:
                kind_type = "permanent" if kind == "bounced" else ""
                assert f'mailroom_events_total{{kind="{kind}",type="{kind_type}"}} 0.0' in text


@needs_promtool
def test_prometheus_accepts_the_configuration_of_the_guide(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```yaml\n(rule_files:.*?)```", GUIDE, re.DOTALL)
    (tmp_path / "alerts.yml").write_text(ALERTS.read_text())
    (tmp_path / "prometheus.yml").write_text(snippet)
    assert f"{len(RULES)} rules found" in promtool("check", "config", tmp_path / "prometheus.yml")


@needs_promtool
def test_prometheus_accepts_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": one} for number, one in enumerate(expressions())]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", tmp_path / "panels.yml")


def test_the_dashboard_shows_all_metrics_and_no_others() -> None:
    found = {name for expression in expressions() for name in named(expression)}
    assert found <= samples() | OF_THE_PROCESS
    of_a_histogram = re.compile(r"_(?:bucket|sum|count)$")
    shown = {of_a_histogram.sub("", name) for name in found}
    assert {of_a_histogram.sub("", name) for name in samples()} <= shown


def test_the_panels_lie_side_by_side_and_have_their_own_ids() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert not cells & taken
        taken |= cells
    assert len(DASHBOARD["panels"]) == len({panel["id"] for panel in DASHBOARD["panels"]})


def test_the_guides_name_both_files() -> None:
    for path in ("contrib/prometheus/alerts.yml", "contrib/grafana/mailroom.json"):
        assert f"`{path}`" in GUIDE
        assert (ROOT / path).exists()
    assert "`contrib`" in (ROOT / "README.md").read_text()
    checklist = (ROOT / "docs" / "how-to" / "production-checklist.md").read_text()
    assert "contrib/prometheus/alerts.yml" in checklist
    assert not set(re.findall(r"\bmailroom_\w+", checklist)) & samples()  # their place is the file
