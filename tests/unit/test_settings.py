"""The environment: defaults, faults all at once, secrets from files, and nothing shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mailroom
from mailroom.errors import SettingsError
from mailroom.settings import misspelt
from mailroom.settings.collector import CollectorSettings, DatabaseSettings, KeySettings
from mailroom.settings.sender import SenderSettings
from mailroom.settings.transports import SmtpServer
from mailroom.settings.variables import read_settings
from mailroom.settings.worker import RunSettings
from support.messages import ACTIVATION, PASSWORD_RECOVERY

KEY = "deadbeef" * 8
URL = "postgresql://app:hunter2@db.example.com/app"
GOOD = {"MAILROOM_DATABASE_URL": URL, "MAILROOM_SECRET_KEY": KEY}


def faults(environment: dict[str, str]) -> dict[str, str]:
    """The faults, by variable."""
    with pytest.raises(SettingsError) as refused:
        read_settings(CollectorSettings, environment)
    assert 78 == refused.value.exit_code
    assert refused.value.hint
    found = dict(fault.split(": ", 1) for fault in refused.value.faults)
    assert len(found) == len(refused.value.faults)
    assert all(name in str(refused.value) for name in found)
    return found


def test_defaults() -> None:
    settings = read_settings(CollectorSettings, GOOD)
    assert (URL, (bytes.fromhex(KEY),)) == (settings.database_url, settings.keys)
    assert "token_insert" == settings.channel_name
    assert (270_000, 5000, 10) == (
        settings.healthcheck_interval_ms,
        settings.batch_timeout_ms,
        settings.batch_limit,
    )


def test_run_sends_at_once() -> None:
    settings = read_settings(RunSettings, GOOD | {"MAILROOM_TRANSPORT": "debug"})
    assert 0 == settings.collector.batch_timeout_ms
    given = GOOD | {"MAILROOM_TRANSPORT": "debug", "MAILROOM_BATCH_TIMEOUT": "200"}
    assert 200 == read_settings(RunSettings, given).collector.batch_timeout_ms


def test_a_database_has_one_queue() -> None:
    fault = faults(GOOD | {"MAILROOM_QUEUE_NAME": "letters"})["MAILROOM_QUEUE_NAME"]
    assert "a database has one queue, called mailroom, not 'letters'" in fault
    assert "a database for each queue" in fault


def test_every_variable_is_read() -> None:
    settings = read_settings(
        CollectorSettings,
        GOOD
        | {
            "MAILROOM_CHANNEL_NAME": "bell",
            "MAILROOM_QUEUE_NAME": "mailroom",
            "MAILROOM_HEALTHCHECK_INTERVAL": "1000",
            "MAILROOM_BATCH_TIMEOUT": "0",
            "MAILROOM_BATCH_LIMIT": "1",
        },
    )
    assert ("bell", 1000, 0, 1) == (
        settings.channel_name,
        settings.healthcheck_interval_ms,
        settings.batch_timeout_ms,
        settings.batch_limit,
    )


def test_all_faults_are_told_at_once_with_what_would_be_right() -> None:
    found = faults(
        {
            "MAILROOM_DATABASE_URL": "nonsense",
            "MAILROOM_SECRET_KEY": "xyz",
            "MAILROOM_CHANNEL_NAME": "c" * 64,
            "MAILROOM_HEALTHCHECK_INTERVAL": "soon",
            "MAILROOM_BATCH_TIMEOUT": "-1",
            "MAILROOM_BATCH_LIMIT": "0",
        }
    )
    not_ms = "not a whole number of milliseconds, without a unit"
    assert {
        "MAILROOM_DATABASE_URL": "not a connection string; write postgresql://user:password@host:5432/database"
        " (with special characters percent-encoded, and libpq's own options only), or host=… dbname=… user=…",
        "MAILROOM_SECRET_KEY": "the key is not hexadecimal (pairs of 0-9 and a-f)",
        "MAILROOM_CHANNEL_NAME": f"'{'c' * 64}' is longer than the 63 bytes of a PostgreSQL name",
        "MAILROOM_HEALTHCHECK_INTERVAL": f"'soon' is {not_ms}, from 1000 to 86400000",
        "MAILROOM_BATCH_TIMEOUT": f"'-1' is {not_ms}, from 0 to 86400000",
        "MAILROOM_BATCH_LIMIT": "'0' is not a whole number, from 1 to 10000",
    } == found


def test_what_is_required_is_told() -> None:
    found = faults({})
    assert {"MAILROOM_DATABASE_URL", "MAILROOM_SECRET_KEY"} == set(found)
    assert all(fault.startswith("not set; it is ") for fault in found.values())


@pytest.mark.parametrize("number", ["1.5", "1e3", "٣", "", " ", "0x10", "9" * 5000, "10001", "+", "1 0"])
def test_what_is_no_whole_number_is_refused(number: str) -> None:
    environment = GOOD | {"MAILROOM_BATCH_LIMIT": number}
    if not number.strip():  # an empty variable is as good as none
        assert 10 == read_settings(CollectorSettings, environment).batch_limit
    else:
        assert {"MAILROOM_BATCH_LIMIT"} == set(faults(environment))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///app?host=/run/postgresql",
        "postgresql://a:1,b:2/app?target_session_attrs=read-write&sslmode=verify-full",
        "host=a,b port=1,2 dbname=app sslrootcert=/etc/root.crt",
        "postgres://u:p%40ss@h/d",
    ],
)
def test_any_libpq_string_will_do(url: str) -> None:
    assert url == read_settings(DatabaseSettings, {"MAILROOM_DATABASE_URL": url}).database_url


@pytest.mark.parametrize(
    "url", ["hunter2", "postgresql://u:hunter2@h/d?nonsense=hunter2", "password=hunter2 x"]
)
def test_a_string_that_is_none_is_not_shown(url: str) -> None:
    assert "hunter2" not in str(faults(GOOD | {"MAILROOM_DATABASE_URL": url}))


def test_secrets_come_from_files_too(tmp_path: Path) -> None:
    url, key = tmp_path / "url", tmp_path / "key"
    url.write_text(URL + "\n")
    key.write_text(KEY + "\r\n")
    settings = read_settings(
        CollectorSettings, {"MAILROOM_DATABASE_URL_FILE": str(url), "MAILROOM_SECRET_KEY_FILE": str(key)}
    )
    assert (URL, (bytes.fromhex(KEY),)) == (settings.database_url, settings.keys)


def test_files_at_fault_are_told(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.touch()
    binary.write_bytes(b"\xff\xfe")
    names = ("MAILROOM_DATABASE_URL", "MAILROOM_SECRET_KEY")
    for path, fault in (
        (empty, "is empty"),
        (binary, "not UTF-8"),
        (tmp_path / "none", "No such file"),
        (tmp_path, ""),
    ):
        found = faults({f"{name}_FILE": str(path) for name in names})
        assert set(names) == set(found)
        assert all(fault in text and str(path) in text for text in found.values())
    both = faults(GOOD | {f"{name}_FILE": str(empty) for name in names})
    assert {f"set it or {name}_FILE, not both" for name in names} == set(both.values())


def test_settings_show_no_secret() -> None:
    shown = repr(read_settings(CollectorSettings, GOOD))
    assert not [secret for secret in (KEY, "hunter2", repr(bytes.fromhex(KEY))) if secret in shown]


def test_keys_may_be_several() -> None:
    keys = {"MAILROOM_SECRET_KEY": f"{'00' * 32}, {'01' * 32}"}
    assert (bytes(32), b"\x01" * 32) == read_settings(KeySettings, keys).keys


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app:hun@ter2@db/app",
        "postgresql://app:hun/ter2@db/app",
        "postgresql://app:12/ter2@db/app",
        "host=db port=hunter2",
    ],
)
def test_a_password_that_libpq_would_take_for_something_else_is_refused(url: str) -> None:
    told = faults(GOOD | {"MAILROOM_DATABASE_URL": url})["MAILROOM_DATABASE_URL"]
    assert "%40 for @" in told
    assert "hun" not in told
    assert "ter2" not in told


def test_the_senders_defaults() -> None:
    settings = read_settings(SenderSettings, {})
    assert ("ses", "default", "noreply@localhost") == (
        settings.transport,
        settings.config_set,
        settings.source,
    )
    assert Path("output") == settings.output_path
    assert (None, {}) == (settings.templates.folder, settings.templates.constants)
    assert "activationv1" == settings.templates.name_of(ACTIVATION)
    assert "passwordrecoveryv1" == settings.templates.name_of(PASSWORD_RECOVERY)
    assert (None, 4, 10_000, 10_000) == (
        settings.send_rate,
        settings.send_concurrency,
        settings.send_timeout_ms,
        settings.shutdown_timeout_ms,
    )


def test_the_senders_variables_are_read(tmp_path: Path) -> None:
    settings = read_settings(
        SenderSettings,
        {
            "MAILROOM_SES_CONFIG_SET": "none",
            "MAILROOM_SES_SOURCE": "Acme <noreply@acme.example>",
            "MAILROOM_TEMPLATES": str(tmp_path),
            "MAILROOM_APP_NAME": "Acme",
            "MAILROOM_APP_URL": "https://acme.example/",
            "MAILROOM_TEMPLATE_ACTIVATION": "welcome",
            "MAILROOM_TEMPLATE_JOIN_US": "join",
            "MAILROOM_SEND_RATE": "12.5",
        },
    )
    assert ("", "Acme <noreply@acme.example>", 12.5) == (
        settings.config_set,
        settings.source,
        settings.send_rate,
    )
    assert tmp_path == settings.templates.folder
    assert {"app_name": "Acme", "app_url": "https://acme.example"} == settings.templates.constants
    assert {"activation": "welcome", "join_us": "join"} == settings.templates.names
    assert "welcome" == settings.templates.name_of(ACTIVATION)


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://mail.example", SmtpServer("mail.example", 587, "", "", tls=False, require_tls=False)),
        ("smtps://mail.example", SmtpServer("mail.example", 465, "", "", tls=True, require_tls=False)),
        ("smtp://u:p%40ss@m:25", SmtpServer("m", 25, "u", "p@ss", tls=False, require_tls=True)),
        ("smtp://u:p@127.0.0.1", SmtpServer("127.0.0.1", 587, "u", "p", tls=False, require_tls=False)),
        ("smtp://u:p@m?tls=optional", SmtpServer("m", 587, "u", "p", tls=False, require_tls=False)),
        ("smtp://m?tls=required", SmtpServer("m", 587, "", "", tls=False, require_tls=True)),
    ],
)
def test_a_mail_server_is_read_from_its_address(url: str, server: SmtpServer) -> None:
    transport = read_settings(SenderSettings, {"MAILROOM_TRANSPORT": url}).transport
    assert server == transport
    assert "p@ss" not in repr(transport)


@pytest.mark.parametrize("debug", ["true", "1", "YES", "on"])
def test_debug_wins_over_the_transport(debug: str) -> None:
    variables = {"MAILROOM_DEBUG": debug, "MAILROOM_TRANSPORT": "smtp://mail.example"}
    assert "debug" == read_settings(SenderSettings, variables).transport


def test_all_of_the_senders_faults_are_told_at_once() -> None:
    wrong = {
        "MAILROOM_TRANSPORT": "smtp://user:hunter2@",
        "MAILROOM_DEBUG": "perhaps",
        "MAILROOM_SES_SOURCE": "nobody",
        "MAILROOM_TEMPLATES": "/nonexistent",
        "MAILROOM_APP_URL": "javascript:alert(1)",
        "MAILROOM_SEND_RATE": "0",
        "MAILROOM_SEND_CONCURRENCY": "0",
        "MAILROOM_SEND_TIMEOUT": "-1",
        "MAILROOM_SHUTDOWN_TIMEOUT": "many",
    }
    with pytest.raises(SettingsError) as refused:
        read_settings(SenderSettings, wrong)
    assert set(wrong) == {fault.split(": ")[0] for fault in refused.value.faults}
    assert "hunter2" not in str(refused.value)


def test_every_variable_that_the_code_names_exists() -> None:
    code = "".join(path.read_text() for path in Path(mailroom.__file__).parent.rglob("*.py"))
    named = set(re.findall(r"\bMAILROOM_[A-Z_]*[A-Z]\b", code))
    assert named - {"MAILROOM_TEST", "MAILROOM_PORT"} <= misspelt.known()
