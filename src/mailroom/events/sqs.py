"""Receives from an SQS queue, and deletes what was recorded. Every method blocks; several threads may call.

Credentials, region, profile, proxy and endpoint (``AWS_ENDPOINT_URL_SQS``) come from botocore's usual
settings. A queue whose URL is AWS's own is asked in the region that the URL names.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from botocore import exceptions as aws

from mailroom.errors import TransportError
from mailroom.transports.aws_client import Client, code_of, explain
from mailroom.transports.aws_credentials import REFUSED, AwsSession
from mailroom.transports.redaction import redacted

MESSAGES_PER_CALL: Final = 10  # SQS's limit
LONG_POLL_S: Final = 20  # and this too
# How much longer than a long poll its answer may take.
ANSWER_LIMIT_S: Final = 5.0

_NO_QUEUE: Final = (
    "AWS.SimpleQueueService.NonExistentQueue",
    "QueueDoesNotExist",
    "NonExistentQueue",
    "InvalidAddress",
)
_REGION: Final = re.compile(
    r"(?:sqs\.([a-z0-9-]+)|([a-z0-9-]+)\.queue)\.(?:amazonaws\.com(?:\.cn)?|api\.aws)"
)


class Received(NamedTuple):
    """A message that was received: its text, and the handle to delete it with."""

    text: str
    handle: str


class EventQueue:
    """An SQS queue.

    Args:
        queue: its name or its URL.
        connections: how many calls may be under way.
        is_patient: whether calls may wait for a message; otherwise an answer must come in a few seconds.

    Raises:
        TransportError: botocore's configuration is incomplete.
    """

    def __init__(self, queue: str, *, connections: int, is_patient: bool = True) -> None:
        self.name = queue.rpartition("/")[2]
        self._given_url = queue if "/" in queue else ""
        self._url = self._given_url
        self._lock = threading.Lock()
        self._session = AwsSession(
            "SQS",
            answer_timeout_ms=round(1000 * (LONG_POLL_S * is_patient + ANSWER_LIMIT_S)),
            connections=connections,
            region=region_of(queue),
        )

    def receive(self, wait_s: int) -> list[Received]:
        """Up to ten messages; waits up to ``wait_s`` seconds for the first.

        Raises:
            TransportError: SQS does not answer, or refuses.
        """
        answer = self._ask(
            "ReceiveMessage", {"MaxNumberOfMessages": MESSAGES_PER_CALL, "WaitTimeSeconds": wait_s}
        )
        return [Received(one["Body"], one["ReceiptHandle"]) for one in answer.get("Messages", ())]

    def delete(self, messages: Sequence[Received]) -> int:
        """Delete up to ten messages; returns how many SQS did not delete, and so will send again.

        Raises:
            TransportError: see ``receive``.
        """
        entries = [{"Id": str(number), "ReceiptHandle": one.handle} for number, one in enumerate(messages)]
        return len(self._ask("DeleteMessageBatch", {"Entries": entries}).get("Failed", ()))

    def attributes(self, *names: str) -> Mapping[str, str]:
        """Attributes of the queue.

        Raises:
            TransportError: see ``receive``.
        """
        found: Mapping[str, str] = self._ask("GetQueueAttributes", {"AttributeNames": list(names)}).get(
            "Attributes", {}
        )
        return found

    @property
    def host(self) -> str:
        """The host that is asked."""
        return urlsplit(str(self._session.client().meta.endpoint_url)).netloc

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _ask(self, operation: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        client: Client = None
        try:
            client = self._session.client()
            return self._session.call(client, operation, {"QueueUrl": self._url_from(client), **parameters})
        except Exception as error:
            if code_of(error) in _NO_QUEUE:
                self._url = self._given_url  # it may be made again, elsewhere
            if client is not None and code_of(error) in REFUSED:
                self._session.expire(client)
            raise self._explained(error) from error

    def _url_from(self, client: Client) -> str:
        with self._lock:
            if not self._url:
                self._url = client.get_queue_url(QueueName=self.name)["QueueUrl"]
            url: str = self._url
            return url

    def _explained(self, error: Exception) -> TransportError:
        """An exception of botocore as a Mailroom error, without credentials."""
        found = error if isinstance(error, TransportError) else explain(error, "SQS")
        hint = found.hint
        if code_of(error) in _NO_QUEUE:
            hint = "correct MAILROOM_EVENTS, or the region; or create the queue"
        elif "kms" in code_of(error).lower():
            hint = "permit kms:Decrypt on the queue's key to the role, and enable the key"
        elif isinstance(error, aws.ClientError) and "AccessDenied" in code_of(error):
            hint = "permit sqs:GetQueueUrl, sqs:ReceiveMessage and sqs:DeleteMessage on the queue to the role"
        return TransportError(redacted(str(found), self._session.secrets), hint=hint)


def is_denied(error: TransportError) -> bool:
    """Whether the role may not make the call."""
    cause: Any = error.__cause__
    return isinstance(cause, Exception) and "AccessDenied" in code_of(cause)


def region_of(queue: str) -> str | None:
    """The region in the URL of a queue at AWS."""
    found = _REGION.fullmatch(urlsplit(queue).hostname or "") if "/" in queue else None
    return (found[1] or found[2]) if found else None
