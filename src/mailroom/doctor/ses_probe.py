"""The SES account as the checks see it: a client, and calls that only read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import botocore.session

from mailroom.doctor.report import NotKnown
from mailroom.doctor.ses_apis import FirstApi, SecondApi, SesApi
from mailroom.errors import TransportError
from mailroom.settings.sender import SenderSettings
from mailroom.transports.aws_client import DENIED, ERRORS, Client, asked, code_of, explain, open_client
from mailroom.transports.aws_credentials import resolve, secret_parts
from mailroom.transports.redaction import redacted

Value = TypeVar("Value")

CONNECT_LIMIT_S: Final = 3.0
ANSWER_LIMIT_MS: Final = 4000
AWS_HOST: Final = re.compile(r".+\.(amazonaws\.com(\.cn)?|api\.aws)")


class SesProbe:
    """What the checks of SES share.

    Attributes:
        api: the version of SES's API that the transport uses.
        unreadable: whether the AWS settings have invalid credentials.
        account: SES's answer about the account's limits; None if there was none.
        answered: our time before and after an answer, and the answer's Date.
    """

    def __init__(self, settings: SenderSettings) -> None:
        self.settings = settings
        self.api: SesApi = SecondApi() if settings.transport == "sesv2" else FirstApi()
        self.session = botocore.session.get_session()
        self.unreadable = False
        self.account: Mapping[str, Any] | None = None
        self.answered: tuple[float, float, str] | None = None
        self._client: Client = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()

    @property
    def client(self) -> Client:
        """A client; creating it makes no call.

        Raises:
            TransportError: the AWS settings are incomplete.
        """
        if self._client is None:
            self._client = open_client(
                self.api.service,
                session=self.session,
                connect_timeout_s=CONNECT_LIMIT_S,
                answer_timeout_ms=ANSWER_LIMIT_MS,
                connections=1,
            )
        return self._client

    @contextmanager
    def second_api(self) -> Iterator[Client]:
        """A client for version 2 of SES's API, at the same place as the first.

        Raises:
            TransportError: see ``client``.
        """
        if self.api.service == "SESV2":
            yield self.client
            return
        first = str(self.client.meta.endpoint_url)
        is_at_aws = AWS_HOST.fullmatch(urlsplit(first).hostname or "")
        client = open_client(
            "SESV2",
            session=self.session,
            connect_timeout_s=CONNECT_LIMIT_S,
            answer_timeout_ms=ANSWER_LIMIT_MS,
            connections=1,
            endpoint_url=None if is_at_aws or "AWS_ENDPOINT_URL_SESV2" in os.environ else first,
        )
        try:
            yield client
        finally:
            client.close()

    def ask(self, permission: str, call: Callable[[], Value]) -> Value:
        """The answer of SES; a throttled call is made twice.

        Raises:
            NotKnown: the permission is missing.
            TransportError: there was no answer, or another refusal.
        """
        try:
            return asked(call)
        except ERRORS as error:
            if code_of(error) in DENIED:
                raise NotKnown(
                    f"not known: {permission} is not permitted",
                    f"permit {permission} to the role, or look in the SES console",
                ) from error
            raise self.explained(error) from error

    def explained(self, error: Exception) -> TransportError:
        """An exception of botocore as a Mailroom error, without credentials."""
        raw = explain(error, self.api.service)
        return TransportError(self._clean(str(raw)), hint=raw.hint)

    def _clean(self, text: str) -> str:
        try:
            secrets = secret_parts(resolve(self.session)[1])
        except Exception:  # noqa: BLE001 - then there is none to show
            secrets = []
        return redacted(text, secrets)
