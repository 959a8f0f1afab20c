"""AWS credentials that are missing, broken, expired or renewed, as files and programs provide them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from starlette.requests import Request

from mailroom.answers import Result, Scope
from mailroom.demo.postgres import free_port
from mailroom.inbox import app, sesv2
from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.inbox.ses import Reply, reply
from mailroom.inbox.ses_protocol import Refusal, write_error
from mailroom.transports.aws_credentials import REFUSED
from mailroom.transports.transport import Transport, open_transport
from support import commands, processes, senders
from support.messages import message
from support.queue_sql import Db, sign_up
from support.runs import RunProcess, wait_for_readiness
from support.senders import SenderProcess, settings

OLD, NEW = "AKIAOLDOLDOLDOLDOLDO", "AKIANEWNEWNEWNEWNEWN"


@dataclass
class Keys:
    """The access keys that the local SES accepts, and its answer to any other."""

    accepted: set[str] = field(default_factory=lambda: {OLD})
    code: str = "ExpiredToken"


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Keys:
    """Lets the local SES accept some keys only."""
    keys, head = Keys(), app._head

    def with_signature(request: Request) -> bytes:
        return head(request) + request.headers.get("authorization", "").encode()

    def refusal_of(head: bytes) -> Refusal | None:
        if any(f"Credential={key}/".encode() in head for key in keys.accepted):
            return None
        return Refusal(keys.code, "The security token included in the request is expired", 403)

    def checked(inbox: Inbox, content_type: str, body: bytes, head: bytes) -> Reply:
        if refusal := refusal_of(head):
            return Reply(refusal.status, write_error(refusal))
        return reply(inbox, content_type, body, head)

    def checked_send(inbox: Inbox, body: bytes, head: bytes) -> Reply:
        refusal = refusal_of(head)
        return sesv2._refused(refusal) if refusal else send(inbox, body, head)

    send = sesv2.send
    monkeypatch.setattr(app, "_head", with_signature)
    monkeypatch.setattr("mailroom.inbox.app.reply", checked)
    monkeypatch.setattr("mailroom.inbox.sesv2.send", checked_send)
    return keys


def credentials_file(folder: Path, key: str) -> dict[str, str]:
    """Write a credentials file, in place; the variables that name it."""
    path = folder / "credentials"
    path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s/{key}\n")
    return {"AWS_SHARED_CREDENTIALS_FILE": str(path)}


def credential_process(folder: Path, key: str) -> dict[str, str]:
    """Let a program print credentials that state no expiry; the variables that name it."""
    printed = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": f"s/{key}"}
    (folder / "printed").write_text(json.dumps(printed))
    (folder / "config").write_text(f"[default]\ncredential_process = cat {folder / 'printed'}\n")
    return {"AWS_CONFIG_FILE": str(folder / "config")}


SOURCES: list[Callable[[Path, str], dict[str, str]]] = [credentials_file, credential_process]


def aws(url: str, **variables: str) -> dict[str, str]:
    """The AWS settings without credentials, and these variables."""
    every = senders.aws(url) | variables
    return {
        name: value for name, value in every.items() if "_KEY" not in name and name != "AWS_SESSION_TOKEN"
    }


@pytest.fixture(params=["ses", "sesv2"])
def transport(
    request: pytest.FixtureRequest,
    ses: InboxServer,
    keys: Keys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Transport]:
    for name in senders.aws(""):
        monkeypatch.delenv(name, raising=False)
    for name, value in aws(ses.url, **credentials_file(tmp_path, OLD)).items():
        monkeypatch.setenv(name, value)
    opened = open_transport(settings(tmp_path / "output", TRANSPORT=request.param))
    yield opened
    opened.close()


def result(transport: Transport) -> tuple[Result, Scope]:
    (answer,) = transport.send([message(1)])
    return answer.result, answer.scope


def test_credentials_that_come_before_the_first_call_are_used(transport: Transport, tmp_path: Path) -> None:
    (tmp_path / "credentials").unlink()
    with closing(open_transport(settings(tmp_path / "output"))) as opened:
        credentials_file(tmp_path, OLD)
        assert Result.SENT is result(opened)[0]


@pytest.mark.parametrize("code", [*REFUSED, "AccessDenied"])
def test_after_a_refusal_the_credentials_are_read_again(
    transport: Transport, keys: Keys, tmp_path: Path, code: str
) -> None:
    assert Result.SENT is result(transport)[0]
    keys.accepted, keys.code = {NEW}, code
    assert (Result.PAUSED, Scope.ACCOUNT) == result(transport)
    assert (Result.PAUSED, Scope.ACCOUNT) == result(transport)
    credentials_file(tmp_path, NEW)
    assert Result.SENT is result(transport)[0]


@pytest.mark.parametrize("transport", ["ses"], indirect=True)
def test_a_quota_that_is_refused_reads_them_again(transport: Transport, keys: Keys, tmp_path: Path) -> None:
    assert transport.quota()
    keys.accepted = {NEW}
    credentials_file(tmp_path, NEW)
    assert transport.quota() is None
    assert transport.quota()


@pytest.mark.parametrize("fault", ["AccountSendingPausedException", "Throttling"])
def test_other_refusals_keep_the_credentials(
    transport: Transport, ses: InboxServer, tmp_path: Path, fault: str
) -> None:
    assert Result.SENT is result(transport)[0]
    ses.inbox.faults.add(Fault("error", calls=1, code=fault))
    result(transport)
    credentials_file(tmp_path, NEW)  # which SES would refuse
    assert Result.SENT is result(transport)[0]


@pytest.mark.parametrize(
    "content",
    ["not a section", "[default]\naws_access_key_id = AKIA\n", "[other]\n", ""],
    ids=["no INI", "half", "no profile", "empty"],
)
def test_a_file_that_is_being_written_pauses(
    transport: Transport, keys: Keys, tmp_path: Path, content: str
) -> None:
    keys.accepted = {NEW}
    result(transport)
    (tmp_path / "credentials").write_text(content)
    assert (Result.PAUSED, Scope.ACCOUNT) == result(transport)
    credentials_file(tmp_path, NEW)
    assert Result.SENT is result(transport)[0]


@pytest.mark.parametrize(
    "program",
    ["/nonexistent/program", "false", "echo {", "echo {}"],
    ids=["missing", "fails", "no JSON", "no key"],
)
def test_a_broken_program_pauses_and_loses_nothing(
    ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\n")
    for name in senders.aws(""):
        monkeypatch.delenv(name, raising=False)
    for name, value in aws(ses.url, AWS_CONFIG_FILE=str(tmp_path / "config")).items():
        monkeypatch.setenv(name, value)
    transport = open_transport(settings(tmp_path / "output"))
    trouble = transport.check()
    assert trouble
    assert Result.PAUSED is trouble.result
    assert (Result.PAUSED, Scope.ACCOUNT) == result(transport)
    assert transport.quota() is None
    credential_process(tmp_path, OLD)
    assert transport.check() is None
    assert Result.SENT is result(transport)[0]
    transport.close()


def run(tmp_path: Path, database: str, ses: InboxServer, port: int, **variables: str) -> RunProcess:
    given = senders.environment(tmp_path / "output", SEND_RATE=1000, HTTP=f"127.0.0.1:{port}")
    every = processes.environment(database) | given | aws(ses.url, **variables)
    return RunProcess(every, tmp_path / "run.log", {"mailroom.sender.calls.CHECK_INTERVAL_S": 0.2})


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_a_worker_goes_on_with_renewed_credentials(
    database: str,
    db: Db,
    ses: InboxServer,
    keys: Keys,
    tmp_path: Path,
    source: Callable[[Path, str], dict[str, str]],
) -> None:
    with run(tmp_path, database, ses, free_port(), **source(tmp_path, OLD)) as worker:
        worker.wait_for_log("run.started")
        sign_up(db, "zoe")
        ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
        keys.accepted = {NEW}
        sign_up(db, "yan")
        worker.wait_for_log("ExpiredToken")
        source(tmp_path, NEW)
        ses.wait_for(lambda inbox: inbox.counts.accepted == 2)
        assert 0 == worker.stop()


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_the_pipes_sender_goes_on_with_renewed_credentials(
    ses: InboxServer, keys: Keys, tmp_path: Path, source: Callable[[Path, str], dict[str, str]]
) -> None:
    variables = senders.environment(tmp_path / "output", SEND_RATE=1000) | aws(
        ses.url, **source(tmp_path, OLD)
    )
    with SenderProcess(variables, tmp_path / "log") as sender:
        sender.send([message(1)])
        ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
        keys.accepted = {NEW}
        sender.send([message(2)])
        sender.wait_for_log("ExpiredToken")
        source(tmp_path, NEW)
        ses.wait_for(lambda inbox: inbox.counts.accepted == 2)
        assert 0 == sender.end()


@pytest.mark.slow
def test_a_worker_without_credentials_says_so_at_once_and_sends_when_they_come(
    database: str, db: Db, ses: InboxServer, tmp_path: Path
) -> None:
    port = free_port()
    missing = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")}
    with run(tmp_path, database, ses, port, **missing) as worker:
        worker.wait_for_log("run.started")
        assert " error sender.paused " in worker.log()
        assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in worker.log()
        wait_for_readiness(port, "sending")
        credentials_file(tmp_path, OLD)
        wait_for_readiness(port, None)
        sign_up(db, "zoe")
        ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
        assert 0 == worker.stop()


def test_the_pipes_sender_without_credentials_says_so_at_once(ses: InboxServer, tmp_path: Path) -> None:
    variables = senders.environment(tmp_path / "output") | aws(ses.url)
    with SenderProcess(variables, tmp_path / "log") as sender:
        sender.wait_for_log("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        sender.wait_for_log("sender.started")
        assert 0 == sender.end()


@pytest.mark.parametrize("variables", [{"AWS_PROFILE": "missing"}, {"AWS_DEFAULT_REGION": None}])
def test_settings_that_retrying_cannot_fix_end_it(
    ses: InboxServer, tmp_path: Path, variables: dict[str, str | None]
) -> None:
    every = senders.environment(tmp_path / "output") | aws(ses.url) | variables
    done = commands.run("sender", env={name: value for name, value in every.items() if value is not None})
    assert 78 == done.returncode, done.stderr
    assert "Try:" in done.stderr
    assert "Traceback" not in done.stderr
