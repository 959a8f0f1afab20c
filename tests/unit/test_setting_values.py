"""Values of settings: what would break every link, call or connection is refused, with its fault named."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mailroom.cli.main import cli
from mailroom.errors import SettingsError
from mailroom.settings import misspelt
from mailroom.settings.addresses import web_address
from mailroom.settings.sender import SenderSettings
from mailroom.settings.transports import SmtpServer, transports
from mailroom.settings.variables import read_settings, variables
from mailroom.settings.worker import RunSettings
from mailroom.transports.transport import open_transports

KEY = "deadbeef" * 8
URL = "postgresql://app:hunter2@db.example/app"
GOOD = {
    "DATABASE_URL": URL,
    "SECRET_KEY": KEY,
    "CHANNEL_NAME": "bell",
    "QUEUE_NAME": "mailroom",
    "HEALTHCHECK_INTERVAL": "1000",
    "BATCH_TIMEOUT": "5",
    "LINE_FORMAT": "json",
    "BATCH_LIMIT": "7",
    "TRANSPORT": "smtp://u:hunter2@mail.example:25,sesv2",
    "FAILOVER_AFTER": "3",
    "DEBUG": "false",
    "SES_CONFIG_SET": "letters",
    "SES_SOURCE": "Acme <noreply@acme.example>",
    "REPLY_TO": "Help <help@acme.example>",
    "SES_OUTPUT_PATH": "/tmp/output",
    "TEMPLATES": "/tmp",
    "APP_NAME": "Acme",
    "APP_URL": "https://acme.example",
    "TEMPLATE_ACTIVATION": "welcome",
    "TEMPLATE_PASSWORD_RECOVERY": "forgotten",
    "SEND_RATE": "12.5",
    "SEND_CONCURRENCY": "3",
    "SEND_TIMEOUT": "4",
    "SHUTDOWN_TIMEOUT": "5",
    "HTTP": "127.0.0.1:8027",
    "EVENTS": "mailroom-events",
}
ZERO_WIDTH = "\u200b"


def read(**values: str) -> Any:
    return read_settings(RunSettings, {f"MAILROOM_{name}": text for name, text in (GOOD | values).items()})


def refused(name: str, text: str) -> str:
    """What is reported about one variable, the only one at fault."""
    with pytest.raises(SettingsError) as found:
        read(**{name: text})
    (fault,) = found.value.faults
    assert fault.startswith(f"MAILROOM_{name}: ")
    assert "hunter2" not in fault
    assert KEY not in fault
    return fault


def test_the_table_has_every_variable() -> None:
    given = {re.sub("(?<=_TEMPLATE_).*", "<ACTION>", f"MAILROOM_{name}") for name in GOOD}
    assert {variable.name for variable in variables(RunSettings)} == given


@pytest.mark.parametrize("name", GOOD)
def test_blanks_around_a_value_are_removed(name: str) -> None:
    assert read() == read(**{name: f" \t{GOOD[name]} \r\n"})


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("quotes", ['""', "''", "“”"])
def test_quotes_around_a_value_are_named(name: str, quotes: str) -> None:
    fault = refused(name, quotes[0] + GOOD[name] + quotes[1])
    assert "is in quotes" in fault
    assert "remove the quotes" in fault


@pytest.mark.parametrize("name", GOOD)
def test_a_comment_behind_a_value_is_named(name: str) -> None:
    fault = refused(name, f"{GOOD[name]} # of production")
    assert "ends with a comment" in fault
    assert "on its own line" in fault


@pytest.mark.parametrize("name", GOOD)
def test_an_invisible_character_is_named(name: str) -> None:
    fault = refused(name, GOOD[name] + ZERO_WIDTH)
    assert f"U+200B at position {len(GOOD[name]) + 1}" in fault


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("APP_URL", "https://acme.example https://b.example", "contains a blank; write one address"),
        ("APP_URL", "https://acme.example #prod", "contains a blank; write one address"),
        ("APP_URL", "https://acme.example,https://b.example", "no valid host or port; write one address"),
        ("APP_URL", "https://acme.example;https://b.example", "no valid host or port; write one address"),
        ("APP_URL", "https://https://acme.example", "write one address"),
        ("APP_URL", "https://acme.example/https://b.example", "has // in its path; write one address"),
        ("APP_URL", "https://acme.example?from=mail", "has a query string"),
        ("APP_URL", "https://acme.example/?", "has a query string"),
        ("APP_URL", "https://acme.example/#/app", "or a fragment"),
        ("APP_URL", "https://acme.example#", "or a fragment"),
        ("APP_URL", "acme.example", "does not begin with https://"),
        ("APP_URL", "//acme.example", "does not begin with https://"),
        ("APP_URL", "https:acme.example", "does not begin with https://"),
        ("APP_URL", "ftp://acme.example", "does not begin with https://"),
        ("APP_URL", "javascript:alert(1)", "does not begin with https://"),
        ("APP_URL", "https://", "no valid host"),
        ("APP_URL", "https:///acme.example", "no valid host"),
        ("APP_URL", "https://acme.example:99999", "no valid host or port"),
        ("APP_URL", "https://acme.example:port", "no valid host or port"),
        ("APP_URL", "https://acme.example:0", "port 0"),
        ("APP_URL", "https://acme..example", "no valid host"),
        ("APP_URL", "https://acme.example.", "no valid host"),
        ("APP_URL", "https://-acme.example", "no valid host"),
        ("APP_URL", "https://ac_me$.example", "no valid host"),
        ("APP_URL", "https://-ü-.example", "no valid host"),
        ("APP_URL", "https://192.0.2.256", "no valid host"),
        ("APP_URL", "https://[2001:db8::g]", "no valid host"),
        ("APP_URL", "https://${HOST}", "no valid host"),
        ("APP_URL", "https://user@acme.example", "remove what is before the @"),
        ("APP_URL", "https://acme.example/größe", "percent-encode"),
        ("APP_URL", "https://acme.example/{tenant}", "percent-encode"),
        ("APP_URL", "https://acme.example/a\\b", "percent-encode"),
        ("APP_URL", "https://acme.example/%zz", "percent-encode"),
        ("APP_NAME", "{{login}}", "cannot be put into a template"),
        ("APP_NAME", "a{", "cannot be put into a template"),
        ("APP_NAME", "}b", "cannot be put into a template"),
        ("APP_NAME", "back\\", "cannot be put into a template"),
        ("APP_NAME", "two\nlines", "cannot be put into a template"),
        ("SES_SOURCE", "noreply@acme.example.", "ends with a dot"),
        ("SES_SOURCE", "a@b..c", "a part of it is empty"),
        ("SES_SOURCE", "a@.b", "a part of it is empty"),
        ("SES_SOURCE", "a..b@acme.example", "a part of it is empty"),
        ("SES_SOURCE", ".a@acme.example", "a part of it is empty"),
        ("SES_SOURCE", "a.@acme.example", "ends with a dot"),
        ("SES_SOURCE", "größe@acme.example", "before the @ is not ASCII"),
        ("SES_SOURCE", "Acme <größe@acme.example>", "before the @ is not ASCII"),
        ("SES_SOURCE", "noreply@-ü-.example", "not a valid address"),
        ("SES_SOURCE", "noreply@-acme.example", "not a valid address"),
        ("SES_SOURCE", "noreply@acme_$.example", "not a valid address"),
        ("SES_SOURCE", "noreply@127.0.0.256", "not a valid address"),
        ("SES_SOURCE", "a@b@c.example", "not one address; write name@domain"),
        ("SES_SOURCE", "a@acme.example, b@acme.example", "not one address"),
        ("SES_SOURCE", "a@acme.example,b@acme.example", "not one address"),
        ("SES_SOURCE", "a@acme.example;b@acme.example", "not one address"),
        ("SES_SOURCE", "a@acme.example b@acme.example", "not one address"),
        ("SES_SOURCE", "A <a@acme.example>, B <b@acme.example>", "not one address"),
        ("SES_SOURCE", "mailto:a@acme.example", "not a valid address"),
        ("SES_SOURCE", "Acme a@acme.example", "not one address"),
        ("SES_SOURCE", "Acme <a@acme.example", "not one address"),
        ("SES_SOURCE", "Acme <>", "not one address"),
        ("SES_SOURCE", "Acme <acme.example>", "not one address"),
        ("SES_SOURCE", "nobody", "not one address"),
        ("SES_SOURCE", "two\nlines <a@acme.example>", "not on one line"),
        ("SES_SOURCE", "Acme, Inc. <a@acme.example>", "put the name in double quotes"),
        ("SES_SOURCE", "Acme: mail <a@acme.example>", "put the name in double quotes"),
        ("SES_SOURCE", 'The "Acme" <a@acme.example>', "put the name in double quotes"),
        ("SES_SOURCE", "a@acme.example <a@acme.example>", "put the name in double quotes"),
        ("SES_SOURCE", f"{'Bücher ' * 40} <a@acme.example>", "longer than 320 characters"),
        ("SES_SOURCE", f"{'a' * 65}@acme.example", "not a valid address"),
        ("REPLY_TO", "help@acme.example, sales@acme.example", "not one address"),
        ("REPLY_TO", "größe@acme.example", "before the @ is not ASCII"),
        ("EVENTS", "my queue", "neither the name nor the URL of an SQS queue"),
        ("EVENTS", "arn:aws:sqs:eu-west-1:123456789012:events", "neither the name nor the URL"),
        ("EVENTS", "https://sqs.eu-west-1.amazonaws.com/", "neither the name nor the URL"),
        ("EVENTS", "https://u:hunter2@sqs.eu-west-1.amazonaws.com/1/events", "the value is neither"),
        ("SES_CONFIG_SET", "my set", "not a name in SES"),
        ("SES_CONFIG_SET", "ünset", "not a name in SES"),
        ("SES_CONFIG_SET", "s" * 65, "not a name in SES"),
        ("TEMPLATE_ACTIVATION", "welcome.html", "not a name in SES"),
        ("TEMPLATE_ACTIVATION", "a b", "not a name in SES"),
        ("TEMPLATE_PASSWORD_RECOVERY", "t" * 65, "not a name in SES"),
        ("SES_OUTPUT_PATH", "/etc/passwd", "'/etc/passwd' is not a folder"),
        ("SES_OUTPUT_PATH", "/etc/passwd/output", "'/etc/passwd' is not a folder"),
        ("TEMPLATES", "/etc/passwd", "not a folder; `mailroom init`"),
        ("TEMPLATES", "/nonexistent", "not a folder; `mailroom init`"),
        ("SEND_RATE", "0", "neither auto nor a number"),
        ("SEND_RATE", "14/s", "neither auto nor a number"),
        ("SEND_RATE", "1e3", "neither auto nor a number"),
        ("SEND_CONCURRENCY", "101", "not a whole number, from 1 to 100"),
        ("SEND_TIMEOUT", "10s", "not a whole number of milliseconds, without a unit"),
        ("SHUTDOWN_TIMEOUT", "-1", "not a whole number of milliseconds"),
        ("BATCH_TIMEOUT", "5_000", "not a whole number of milliseconds"),
        ("HEALTHCHECK_INTERVAL", "999", "from 1000 to 86400000"),
        ("BATCH_LIMIT", "10 tokens", "not a whole number, from 1 to 10000"),
        ("DEBUG", "perhaps", "neither true nor false"),
        ("QUEUE_NAME", "letters", "a database has one queue"),
        ("CHANNEL_NAME", "c" * 64, "longer than the 63 bytes"),
        ("HTTP", "http://127.0.0.1:8027", "neither host:port nor a port"),
        ("HTTP", "127.0.0.1:65536", "neither host:port nor a port"),
        ("HTTP", "127.0.0.1", "neither host:port nor a port"),
        ("TRANSPORT", "smtp", "neither ses, sesv2, debug nor smtp://"),
        ("TRANSPORT", "smtp://", "neither ses, sesv2, debug nor smtp://"),
        ("TRANSPORT", "smtp://u:hunter2@", "neither ses, sesv2, debug nor smtp://"),
        ("TRANSPORT", "smtp://u:hunter2@mail.example:0", "neither ses, sesv2, debug nor smtp://"),
        ("TRANSPORT", "smtp://u:hunter2@mail.example:99999", "neither ses, sesv2, debug nor smtp://"),
        ("TRANSPORT", "smtp://u:hunter2@mail..example", "neither ses, sesv2, debug nor smtp://"),
        ("TRANSPORT", "smtp://u:hunter2@mail.example..", "neither ses, sesv2, debug nor smtp://"),
        ("TRANSPORT", "smtp://.", "neither ses, sesv2, debug nor smtp://"),
        ("TRANSPORT", "smtp://mail\u3000server.example", "contains a blank"),
        ("TRANSPORT", "ses,smtp://u:hunter2@mail.example,sesv2", "3 transports"),
        ("SEND_RATE", "1,2,3", "3 rates"),
        ("SEND_RATE", "7,", "neither auto nor a number"),
        ("TRANSPORT", "ses,", "the second transport is empty"),
        ("TRANSPORT", ",smtp://u:hunter2@mail.example", "the first transport is empty"),
        ("TRANSPORT", "ses,ses", "the second transport is the first again"),
        (
            "TRANSPORT",
            "smtp://u:hunter2@b.example,smtp://b.example",
            "the second transport is the first again",
        ),
        ("TRANSPORT", "ses,debug", "write it alone"),
        ("TRANSPORT", "debug,smtp://u:hunter2@mail.example", "write it alone"),
        ("TRANSPORT", "ses,hunter2", "the second transport: neither ses, sesv2, debug nor smtp://"),
        ("TRANSPORT", "smtp://u:hunter2%@mail.example,ses", "the first transport: a % is not followed"),
        ("SES_SOURCE", "no\u3000reply@acme.example", "not one address"),
        ("APP_URL", "https://acme\u3000.example", "contains a blank"),
        ("SECRET_KEY", f"{KEY[:32]}\u3000{KEY[32:]}", "not hexadecimal"),
        ("TRANSPORT", "smtp://u:hunter2@mail.example,b.example", "neither ses, sesv2, debug nor smtp://"),
        ("TRANSPORT", "smtp://u:hunter2@mail.example/x", "neither ses, sesv2, debug nor smtp://"),
        ("TRANSPORT", "smtp://u:hun#ter2@mail.example", "%23 for #"),
        ("TRANSPORT", "smtp://u:hunter2@mail.example smtp://b.example", "contains a blank"),
        ("TRANSPORT", "smtp://u:hun?ter2@mail.example", "%3F for ?"),
        ("TRANSPORT", "smtp://u:hunter2%@mail.example", "%25 for %"),
        ("TRANSPORT", "smtp://u:hunter2%zz@mail.example", "%25 for %"),
        ("TRANSPORT", "smtp://u@mail.example", "a user without a password"),
        ("TRANSPORT", "smtp://:hunter2@mail.example", "a password without a user"),
        ("TRANSPORT", "smtp://u:hunter2ü@mail.example", "not ASCII"),
        ("TRANSPORT", "smtp://u:hunter2%C3%BC@mail.example", "not ASCII"),
        ("DATABASE_URL", "postgresql://app:hunter2@db/app postgresql://b/app", "contains a blank"),
        ("DATABASE_URL", "postgresql://app:hunter2@db/app #prod", "contains a blank"),
        ("DATABASE_URL", "postgresql://app:hunter2@db/app,postgresql://b/app", "write one address"),
        ("DATABASE_URL", "postgresql+psycopg://app:hunter2@db/app", "write postgresql://"),
        ("DATABASE_URL", "jdbc:postgresql://db/app?password=hunter2", "write postgresql://"),
        ("DATABASE_URL", "postgresql://app:hunter2@db/app?schema=public", "libpq's own options only"),
        ("DATABASE_URL", "host=db dbname=app password=hunter2 #prod", "not a connection string"),
        ("SECRET_KEY", "hunter2", "not hexadecimal"),
        ("SECRET_KEY", KEY[1:], "not hexadecimal"),
        ("SECRET_KEY", KEY[2:], "has 62 hexadecimal digits, and needs at least 64"),
        ("SECRET_KEY", f"{KEY},", "key 2 has 0 hexadecimal digits"),
        ("SECRET_KEY", f"{KEY} {KEY}", "not hexadecimal"),
    ],
)
def test_a_value_that_its_use_cannot_take_is_refused(name: str, text: str, words: str) -> None:
    assert words in refused(name, text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("https://acme.example/", "https://acme.example"),
        ("https://acme.example//", "https://acme.example"),
        ("HTTPS://Acme.example/app/", "HTTPS://Acme.example/app"),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://[2001:db8::1]:8443/a%20b", "https://[2001:db8::1]:8443/a%20b"),
        ("https://bücher.example", "https://bücher.example"),
        ("http://web_1:8000", "http://web_1:8000"),
    ],
)
def test_an_address_where_links_can_begin(text: str, value: str) -> None:
    assert value == read(APP_URL=text).sender.templates.app_url


@pytest.mark.parametrize(
    "text",
    [
        "noreply@localhost",
        "<noreply@acme.example>",
        "Bücher & Söhne <noreply@bücher.example>",
        '"Acme, Inc." <noreply@acme.example>',
        r'"The \"Acme\" <team>" <no-reply+mail@acme.example>',
        "Acme #1 <noreply@acme.example>",
        "O'Neill's <o'neill@acme.example>",
        "株式会社\u3000例 <noreply@acme.example>",
        "株式会社\u3000<noreply@acme.example>",
        '"株式会社\u3000例, 東京" <noreply@acme.example>',
    ],
)
def test_a_sender_that_providers_take(text: str) -> None:
    assert text == read(SES_SOURCE=text).sender.source


def test_an_application_may_have_an_ideographic_space_in_its_name() -> None:
    assert "株式会社\u3000例" == read(APP_NAME="株式会社\u3000例").sender.templates.app_name


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("smtp://m", SmtpServer("m", 587, "", "", tls=False, require_tls=False)),
        ("smtp://mail.example.:25", SmtpServer("mail.example", 25, "", "", tls=False, require_tls=False)),
        ("smtp://u:p@localhost.", SmtpServer("localhost", 587, "u", "p", tls=False, require_tls=False)),
        ("smtp://straße.example", SmtpServer("xn--strae-oqa.example", 587, "", "", False, False)),
        ("smtp://a%40b:p%25%20@[::1]:25/", SmtpServer("::1", 25, "a@b", "p% ", tls=False, require_tls=False)),
    ],
)
def test_a_mail_server_that_can_be_used(text: str, server: SmtpServer) -> None:
    assert server == read_settings(SenderSettings, {"MAILROOM_TRANSPORT": text}).transport


SERVER = SmtpServer("mail.example", 587, "", "", tls=False, require_tls=False)


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("ses,smtp://mail.example", ("ses", SERVER)),
        ("smtp://mail.example , sesv2", (SERVER, "sesv2")),
        ("ses,sesv2", ("ses", "sesv2")),
        ("smtp://mail.example,smtp://b.example:25", (SERVER, replace(SERVER, host="b.example", port=25))),
        (
            "ses,smtp://u:a,b@mail.example",
            ("ses", replace(SERVER, user="u", password="a,b", require_tls=True)),
        ),
        (
            "smtp://u:a@,ses,b@mail.example",
            (replace(SERVER, user="u", password="a@,ses,b", require_tls=True),),
        ),
        (
            "smtp://u:hunter2@mail.example,smtp://u:hunter3@b.example",
            (
                replace(SERVER, user="u", password="hunter2", require_tls=True),
                replace(SERVER, user="u", password="hunter3", require_tls=True, host="b.example"),
            ),
        ),
    ],
)
def test_two_transports(text: str, addresses: tuple[object, ...]) -> None:
    found = read_settings(SenderSettings, {"MAILROOM_TRANSPORT": text})
    assert addresses == found.addresses
    assert list(addresses) == [each.transport for each in found.each]
    assert ("ses" in text) == (found.over_ses is not None) or len(addresses) == 1


PASSWORDS = st.text("ab,@:.;=&", min_size=1, max_size=6)
ADDRESSES = st.one_of(
    st.sampled_from(["ses", "sesv2", "smtp://three.example"]),
    PASSWORDS.map(lambda password: f"smtp://u:{password}@one.example"),
    PASSWORDS.map(lambda password: f"smtp://u:{password}@two.example?tls=required"),
)


@given(first=ADDRESSES, second=ADDRESSES)
def test_a_list_is_read_as_each_of_it_alone(first: str, second: str) -> None:
    """Whatever the passwords hold."""
    alone = transports(first) + transports(second)
    assert 2 == len(alone)
    if len({one if isinstance(one, str) else one.host for one in alone}) == 2:
        assert alone == transports(f"{first},{second}")
    else:
        with pytest.raises(ValueError, match="is the first again"):
            transports(f"{first},{second}")


def test_each_transport_has_its_rate() -> None:
    both = {"MAILROOM_TRANSPORT": "ses,sesv2"}
    for text, rates in (("auto,20", [None, 20.0]), ("7", [7.0, 7.0]), (" 7.5 , auto", [7.5, None])):
        found = read_settings(SenderSettings, both | {"MAILROOM_SEND_RATE": text})
        assert rates == [each.send_rate for each in found.each]
    alone = read_settings(SenderSettings, {"MAILROOM_SEND_RATE": "7,8"})
    with pytest.raises(SettingsError, match="two rates and one transport"):
        open_transports(alone)


def test_debug_is_the_only_transport() -> None:
    found = read_settings(SenderSettings, {"MAILROOM_TRANSPORT": "ses,sesv2", "MAILROOM_DEBUG": "true"})
    assert ["debug"] == [each.transport for each in found.each]
    assert found.over_ses is None


def test_a_password_may_look_like_a_comment() -> None:
    url = "host=db dbname=app user=app password='a # b'"
    assert url == read(DATABASE_URL=url).collector.database_url


def test_a_file_is_named_without_blanks(tmp_path: Any) -> None:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    environment = {f"MAILROOM_{name}": text for name, text in GOOD.items() if name != "SECRET_KEY"}
    found = read_settings(RunSettings, environment | {"MAILROOM_SECRET_KEY_FILE": f"{path} "})
    assert (bytes.fromhex(KEY),) == found.collector.keys
    with pytest.raises(SettingsError, match="MAILROOM_SECRET_KEY_FILE, is in quotes"):
        read_settings(RunSettings, environment | {"MAILROOM_SECRET_KEY_FILE": f"'{path}'"})


@pytest.mark.parametrize("name", misspelt.LOG_VARIABLES)
def test_the_log_is_set_as_other_settings_are(name: str) -> None:
    good = {"MAILROOM_LOG_FORMAT": "json", "MAILROOM_LOG_LEVEL": "info"}[name]
    run = CliRunner().invoke
    assert 0 == run(cli, ["key", "new"], env={name: f" {good} "}).exit_code
    for text, words in ((f"'{good}'", "is in quotes"), (f"{good} # of production", "ends with a comment")):
        found = run(cli, ["key", "new"], env={name: text})
        assert 2 == found.exit_code
        assert words in found.output


def test_a_login_in_a_web_address_is_not_shown() -> None:
    with pytest.raises(ValueError, match="contains a user") as raised:
        web_address("https://user:hunter2@staging.example")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    ["", "events.fifo", "https://sqs.eu-west-1.amazonaws.com/123456789012/events", "http://[::1]:4566/0/q"],
)
def test_a_queue_that_can_be_read(text: str) -> None:
    assert text == read(EVENTS=text).events.queue
