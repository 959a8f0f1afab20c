"""Clients of an inbox: botocore's, one attempt a call, and plain HTTP; nothing of the machine's settings."""

from __future__ import annotations

import http.client
import json
from functools import cache
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import botocore.session
from botocore.config import Config
from botocore.session import Session

from mailroom.inbox.server import InboxServer

DATA: Final = {
    "login": "ada",
    "login_html": "ada",
    "secret": "S" * 86,
    "code": "12345",
    "expires_in": "15 minutes",
    "expires_in_html": "15 minutes",
}


@cache
def _session() -> Session:
    return botocore.session.Session()  # kept, for it reads SES's model from the disk


def ses_client(url: str, *, read_timeout_s: float = 30) -> Any:
    return _client("ses", url, read_timeout_s)


def sesv2_client(url: str) -> Any:
    return _client("sesv2", url, 30)


def sqs_client(url: str) -> Any:
    return _client("sqs", url, 30)


def sns_client(url: str) -> Any:
    return _client("sns", url, 30)


def _client(service: str, url: str, read_timeout_s: float) -> Any:
    return _session().create_client(
        service,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=read_timeout_s, proxies={}),
    )


def mail(server: InboxServer, *recipients: str, template: str = "activationv1", **data: str) -> list[str]:
    """Mail up to 50 people over SES's API, all with the same data; returns the ids."""
    ses = ses_client(server.url)
    answer = ses.send_bulk_templated_email(
        Source="Acme <noreply@acme.example>",
        Template=template,
        ConfigurationSetName="default",
        DefaultTemplateData=json.dumps(DATA | data),
        Destinations=[{"Destination": {"ToAddresses": [recipient]}} for recipient in recipients],
    )
    ses.close()
    return [status["MessageId"] for status in answer["Status"]]


class HttpAnswer(NamedTuple):
    """An answer over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    url: str, path: str, method: str = "GET", body: bytes | str | None = None, **headers: str
) -> HttpAnswer:
    """One request, with these headers: ``sec_fetch_site="none"``."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        named = {name.replace("_", "-").title(): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        return HttpAnswer(answer.status, told, answer.read())
    finally:
        connection.close()
