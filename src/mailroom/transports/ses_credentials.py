"""Keeps a client for SES that signs with the machine's credentials as they are now.

botocore reads some credentials only once: those of a file, those of a ``credential_process`` that states no
expiry, and none at all. After SES has refused them, or while there are none, the next call reads them anew,
with a new session.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import botocore.session
from botocore import exceptions as aws
from botocore.session import Session

from mailroom.answers import Answer, Result, Scope
from mailroom.errors import TransportError
from mailroom.transports.ses_answers import CODES, NOT_ASKED
from mailroom.transports.ses_client import Client, code_of, explain, name_of, open_client

# SES does not accept the credentials themselves; others may be there by now.
REFUSED: Final = (
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "MissingAuthenticationToken",
    "OptInRequired",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
)
# Why credentials cannot be read for now. Any other failure is one of the configuration.
FOR_NOW: Final = (
    aws.CredentialRetrievalError,
    aws.MetadataRetrievalError,
    aws.SSOError,
    aws.TokenRetrievalError,
    aws.HTTPClientError,
    aws.ClientError,
    OSError,
    json.JSONDecodeError,
)


def resolve(session: Session) -> tuple[str, list[str]]:
    """How the session found its credentials, and their secret parts; refreshed if they have to be.

    Raises:
        Exception: there are none, or they cannot be read: of botocore, of a file, of a program.
    """
    found = session.get_credentials()
    if found is None:
        raise aws.NoCredentialsError
    frozen = found.get_frozen_credentials()
    return found.method, [word for word in (frozen.access_key, frozen.secret_key, frozen.token) if word]


def no_credentials(error: Exception) -> Answer:
    """The answer for every recipient when the credentials cannot be read, so that nothing was sent."""
    if isinstance(error, TransportError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    result, scope = Result.PAUSED, Scope.ACCOUNT
    for kind, known in NOT_ASKED.items():
        if isinstance(error, kind):
            result, scope = known
    if isinstance(error, aws.ClientError):  # of STS
        result, scope = CODES.get(code_of(error), (result, scope))
    explained = explain(error)
    text = str(explained).removeprefix("SES: ")
    detail = f"{name_of(error)}: no AWS credentials: {text}; {explained.hint}"
    return Answer(result, detail, scope=scope)


class _Opened(NamedTuple):
    session: Session
    client: Client


class SesSession:
    """A client, and the credentials that it signs with.

    Args:
        send_timeout_ms: how long a call may take.
        connections: how many calls may be under way.
        before_parse: is called with each reply to ``operation``, see botocore's event ``before-parse``.
        operation: the name of SES's operation.

    Raises:
        TransportError: botocore's configuration is incomplete.
    """

    def __init__(
        self, *, send_timeout_ms: int, connections: int, before_parse: Callable[..., None], operation: str
    ) -> None:
        self._timeout_ms, self._connections = send_timeout_ms, connections
        self._event, self._before_parse = f"before-parse.ses.{operation}", before_parse
        self._lock = threading.Lock()
        self._is_stale = False
        self._secrets: list[list[str]] = []
        self._opened: _Opened | None = None
        try:
            self._opened = self._open()
        except TransportError as error:
            if not isinstance(error.__cause__, FOR_NOW):
                raise

    def client(self) -> Client:
        """The client for the next call, with credentials.

        Raises:
            Exception: see ``resolve``. The next call reads them anew.
        """
        with self._lock:
            opened = self._opened
            if opened is None or self._is_stale:
                opened = self._open()
                self.close()
                self._opened, self._is_stale = opened, False
        try:
            _, secrets = resolve(opened.session)
        except Exception:
            self.expire(opened.client)
            raise
        if secrets not in self._secrets:
            self._secrets = [*self._secrets[-1:], secrets]
        return opened.client

    def expire(self, client: Client) -> None:
        """Read the credentials anew for the next call, unless they were since ``client`` returned this."""
        with self._lock:
            self._is_stale |= self._opened is not None and client is self._opened.client

    @property
    def secrets(self) -> list[str]:
        """The parts of the last credentials and of those before, which no text may show."""
        return [word for secrets in self._secrets for word in secrets]

    def close(self) -> None:
        """Close the connections."""
        if self._opened:
            self._opened.client.close()

    def _open(self) -> _Opened:
        session = botocore.session.get_session()
        client = open_client(session=session, send_timeout_ms=self._timeout_ms, connections=self._connections)
        events: Any = client.meta.events
        events.register(self._event, self._before_parse)
        return _Opened(session, client)
