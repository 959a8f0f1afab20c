"""Keeps a client for SES or SQS that signs with the machine's credentials as they are now.

botocore reads some credentials only once: those of a file, those of a ``credential_process`` that states no
expiry, and none at all. After the service has refused them, or while there are none, the next call reads them
anew, with a new session.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple

import botocore.session
from botocore import exceptions as aws
from botocore import xform_name
from botocore.credentials import ReadOnlyCredentials
from botocore.session import Session

from mailroom.answers import Answer, Result, Scope
from mailroom.errors import TransportError
from mailroom.transports.aws_calls import AwsCalls, SeeReply
from mailroom.transports.aws_client import Client, Service, code_of, explain, name_of, open_client
from mailroom.transports.ses_answers import CODES, NOT_ASKED

# The service does not accept the credentials themselves; others may be there by now.
REFUSED: Final = (
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
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


def resolve(session: Session) -> tuple[str, ReadOnlyCredentials]:
    """How the session found its credentials, and them; refreshed if they have to be.

    Raises:
        Exception: there are none, or they cannot be read: of botocore, of a file, of a program.
    """
    found = session.get_credentials()
    if found is None:
        raise aws.NoCredentialsError
    return found.method, found.get_frozen_credentials()


def secret_parts(credentials: ReadOnlyCredentials) -> list[str]:
    """What no text may show."""
    return [word for word in (credentials.access_key, credentials.secret_key, credentials.token) if word]


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
    calls: AwsCalls
    signs: bool  # a client that was made without credentials never does


class AwsSession:
    """A client, and the credentials that it signs with.

    Args:
        service: which service.
        answer_timeout_ms: after how many milliseconds of silence a call fails.
        connections: how many calls may be under way.
        region: by default the region of the machine's AWS settings.
        see_reply: is called with each answer before it is parsed.

    Raises:
        TransportError: botocore's configuration is incomplete.
    """

    def __init__(
        self,
        service: Service,
        *,
        answer_timeout_ms: int,
        connections: int,
        region: str | None = None,
        see_reply: SeeReply | None = None,
    ) -> None:
        self._open_client = partial(
            open_client, service, answer_timeout_ms=answer_timeout_ms, connections=connections, region=region
        )
        self._see_reply = see_reply
        self._lock = threading.Lock()
        self._is_stale = False
        self._secrets: list[list[str]] = []
        self._credentials = ReadOnlyCredentials("", "", None)
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
            if opened is None or self._is_stale or not opened.signs:
                opened = self._open()
                self.close()
                self._opened, self._is_stale = opened, False
        try:
            _, credentials = resolve(opened.session)
        except Exception:
            self.expire(opened.client)
            raise
        self._credentials = credentials
        if (secrets := secret_parts(credentials)) not in self._secrets:
            self._secrets = [*self._secrets[-1:], secrets]
        return opened.client

    def call(self, client: Client, operation: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """Make a call of a client that ``client`` returned, for less; see ``AwsCalls.call``."""
        opened = self._opened
        if opened is None or opened.client is not client:
            answer: Mapping[str, Any] = getattr(client, xform_name(operation))(**parameters)
            return answer
        return opened.calls.call(self._credentials, operation, parameters)

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
        try:
            signs = session.get_credentials() is not None
        except Exception:  # noqa: BLE001 - open_client explains it
            signs = False
        client = self._open_client(session=session)
        return _Opened(session, client, AwsCalls(client, self._see_reply), signs)
