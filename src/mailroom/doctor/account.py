"""An account of SES's as the checks see it: calls that only read, one attempt each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Self, TypeVar

import botocore.session
from botocore import exceptions as aws

from mailroom.doctor.report import NotKnown
from mailroom.errors import TransportError
from mailroom.settings.sender import SenderSettings
from mailroom.transports.saved_answers import redacted
from mailroom.transports.ses_client import DENIED, ERRORS, Client, asked, code_of, explain, open_client

Answer = TypeVar("Answer")

CONNECT_LIMIT_S: Final = 3.0
ANSWER_LIMIT_MS: Final = 4000


class Account:
    """An account of SES's as the checks see it.

    Attributes:
        unreadable: whether AWS's settings say something about credentials that makes no sense.
        quota: what GetSendQuota told; None when it did not.
        answered: our time before and after an answer, and its Date, as far as it had one.
    """

    def __init__(self, settings: SenderSettings) -> None:
        self.settings = settings
        self.session = botocore.session.get_session()
        self.unreadable = False
        self.quota: Mapping[str, float] | None = None
        self.answered: tuple[float, float, str] | None = None
        self._client: Client = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()

    @property
    def client(self) -> Client:
        """A client; nothing is asked of SES to make it.

        Raises:
            TransportError: botocore's settings are incomplete.
        """
        if self._client is None:
            self._client = open_client(
                session=self.session,
                connect_timeout_s=CONNECT_LIMIT_S,
                send_timeout_ms=ANSWER_LIMIT_MS,
                connections=1,
            )
        return self._client

    def ask(self, permission: str, call: Callable[[], Answer]) -> Answer:
        """What SES answers, at the second try if the first one was throttled.

        Raises:
            NotKnown: the permission is missing.
            TransportError: there is no answer, or another refusal.
        """
        try:
            return asked(call)
        except ERRORS as error:
            if code_of(error) in DENIED:
                raise NotKnown(
                    f"not known: {permission} is not permitted",
                    f"permit {permission} to the role, or look in the console of SES",
                ) from error
            raise self.explained(error) from error

    def explained(self, error: Exception) -> TransportError:
        """An exception of botocore's as one of ours, without credentials."""
        told = explain(error)
        return TransportError(self._clean(str(told)), hint=told.hint)

    def _clean(self, text: str) -> str:
        try:
            found = self.session.get_credentials()
        except aws.BotoCoreError:
            found = None
        return redacted(text, (found.secret_key, found.token, found.access_key) if found else ())
