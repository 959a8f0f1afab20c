"""Answers the SQS calls of a worker that reads SES's events, in SQS's JSON protocol. All names are SQS's.

There is one queue, ``mailroom-events``. A call with any content is answered, with an error if need be.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from mailroom.inbox.changes import Changes
from mailroom.inbox.event_queue import NAME, EventQueue, Message
from mailroom.inbox.events import ACCOUNT, AWS_REGION, write_envelope

SERVICE: Final = "AmazonSQS"
RECEIVE: Final = f"{SERVICE}.ReceiveMessage"
JSON_TYPE: Final = "application/x-amz-json-1.0"
MAX_RECEIVED: Final = 10
MAX_ENTRIES: Final = 10
MAX_WAIT_S: Final = 20
MAX_DELAY_S: Final = 900
MAX_VISIBILITY_S: Final = 43_200
VISIBILITY_S: Final = 30
MAX_TEXT: Final = 1_048_576
RETENTION_S: Final = 345_600
# The codes of the query protocol, which SDKs read from a header.
QUERY_CODES: Final[Mapping[str, str]] = {
    "QueueDoesNotExist": "AWS.SimpleQueueService.NonExistentQueue",
    "EmptyBatchRequest": "AWS.SimpleQueueService.EmptyBatchRequest",
    "TooManyEntriesInBatchRequest": "AWS.SimpleQueueService.TooManyEntriesInBatchRequest",
    "BatchEntryIdsNotDistinct": "AWS.SimpleQueueService.BatchEntryIdsNotDistinct",
}
_HANDLE: Final = re.compile(r"([0-9a-f]{8})-(\d{1,15})-(\d{1,15})", re.ASCII)
# The characters that SQS refuses in a message.
_UNSENDABLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class SqsRefusal(Exception):
    """A call is answered with an error, by the name that botocore's model gives it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class SqsCalls:
    """Answers the calls.

    Args:
        queue: the queue.
        changes: wakes the calls that wait for a message.
    """

    def __init__(self, queue: EventQueue, changes: Changes) -> None:
        self._queue = queue
        self._changes = changes
        # Handles of another run of the inbox are not valid here.
        self._run = uuid.uuid4().hex[:8]
        self._actions: dict[str, Callable[[_Given], dict[str, Any]]] = {
            "GetQueueUrl": self._get_queue_url,
            "GetQueueAttributes": self._get_queue_attributes,
            "SendMessage": self._send_message,
            "DeleteMessage": self._delete_message,
            "DeleteMessageBatch": self._delete_message_batch,
        }

    async def answer(self, request: Request, target: str, body: bytes) -> Response:
        """Return the answer to a call.

        Args:
            request: the call.
            target: its header ``X-Amz-Target``.
            body: its body.

        Raises:
            ClientDisconnect: the client left while it waited for a message.
        """
        try:
            given = _Given(body, str(request.base_url).rstrip("/"))
            if target == RECEIVE:
                return _json(await self._receive_message(given, request))
            return _json(self._action(target)(given))
        except SqsRefusal as refusal:
            return _error(refusal)

    def _action(self, target: str) -> Callable[[_Given], dict[str, Any]]:
        service, _, name = target.partition(".")
        if service != SERVICE or name not in self._actions:
            raise SqsRefusal("UnsupportedOperation", f"The inbox does not know the operation {target[:200]}")
        return self._actions[name]

    def _get_queue_url(self, given: _Given) -> dict[str, Any]:
        _check_name(given.text("QueueName"))
        return {"QueueUrl": f"{given.url}/{ACCOUNT}/{NAME}"}

    def _get_queue_attributes(self, given: _Given) -> dict[str, Any]:
        given.check_queue()
        visible, received, delayed = self._queue.depth()
        known = {
            "ApproximateNumberOfMessages": str(visible),
            "ApproximateNumberOfMessagesNotVisible": str(received),
            "ApproximateNumberOfMessagesDelayed": str(delayed),
            "MessageRetentionPeriod": str(RETENTION_S),
            "QueueArn": f"arn:aws:sqs:{AWS_REGION}:{ACCOUNT}:{NAME}",
            "ReceiveMessageWaitTimeSeconds": "0",
            "VisibilityTimeout": str(VISIBILITY_S),
        }
        wanted = given.texts("AttributeNames")
        if unknown := [name for name in wanted if name != "All" and name not in known]:
            raise SqsRefusal("InvalidAttributeName", f"Unknown Attribute {unknown[0]}.")
        return {
            "Attributes": {name: text for name, text in known.items() if name in wanted or "All" in wanted}
        }

    def _send_message(self, given: _Given) -> dict[str, Any]:
        given.check_queue()
        text = given.text("MessageBody")
        if _UNSENDABLE.search(text) or len(text.encode()) > MAX_TEXT:
            raise SqsRefusal(
                "InvalidMessageContents", f"A message is XML's characters, up to {MAX_TEXT} bytes."
            )
        message = self._queue.put(text, given.whole("DelaySeconds", 0, MAX_DELAY_S))
        self._changes.notify()
        return {"MessageId": _id(message), "MD5OfMessageBody": _md5(text)}

    async def _receive_message(self, given: _Given, request: Request) -> dict[str, Any]:
        given.check_queue()
        most = given.whole("MaxNumberOfMessages", 1, MAX_RECEIVED, least=1)
        visibility_s = given.whole("VisibilityTimeout", VISIBILITY_S, MAX_VISIBILITY_S)
        names = given.texts("AttributeNames") + given.texts("MessageSystemAttributeNames")
        until_s = asyncio.get_running_loop().time() + given.whole("WaitTimeSeconds", 0, MAX_WAIT_S)
        while True:
            number, now = self._changes.number, asyncio.get_running_loop().time()
            found = self._queue.receive(most, visibility_s)
            if found:
                return {"Messages": [self._received(message, names) for message in found]}
            if now >= until_s:
                return {}
            await self._changes.after(number, min(until_s, self._queue.next_s()), request.receive)

    def _received(self, message: Message, names: list[str]) -> dict[str, Any]:
        text = message.content if isinstance(message.content, str) else write_envelope(message.content)
        attributes = {
            "SenderId": "inbox",
            "SentTimestamp": _milliseconds(message.sent_s),
            "ApproximateReceiveCount": str(message.received),
            "ApproximateFirstReceiveTimestamp": _milliseconds(message.first_received_s),
        }
        shown = {name: value for name, value in attributes.items() if name in names or "All" in names}
        return {
            "MessageId": _id(message),
            "ReceiptHandle": f"{self._run}-{message.number}-{message.received}",
            "MD5OfBody": _md5(text),
            "Body": text,
        } | ({"Attributes": shown} if shown else {})

    def _delete_message(self, given: _Given) -> dict[str, Any]:
        given.check_queue()
        self._delete(given.text("ReceiptHandle"))
        return {}

    def _delete_message_batch(self, given: _Given) -> dict[str, Any]:
        given.check_queue()
        entries = given.objects("Entries")
        ids = [str(entry.get("Id")) for entry in entries]
        if not entries:
            raise SqsRefusal("EmptyBatchRequest", "There should be at least one entry.")
        if len(entries) > MAX_ENTRIES:
            raise SqsRefusal(
                "TooManyEntriesInBatchRequest", f"At most {MAX_ENTRIES} entries, not {len(entries)}."
            )
        if len(set(ids)) < len(ids):
            raise SqsRefusal("BatchEntryIdsNotDistinct", "Two entries have the same Id.")
        answer: dict[str, Any] = {"Successful": [], "Failed": []}
        for entry_id, entry in zip(ids, entries, strict=True):
            try:
                self._delete(str(entry.get("ReceiptHandle")))
            except SqsRefusal as refusal:
                answer["Failed"].append(
                    {"Id": entry_id, "Code": refusal.code, "Message": refusal.message, "SenderFault": True}
                )
            else:
                answer["Successful"].append({"Id": entry_id})
        return answer

    def _delete(self, handle: str) -> None:
        match = _HANDLE.fullmatch(handle)
        if not match or match[1] != self._run:
            raise SqsRefusal("ReceiptHandleIsInvalid", f"The receipt handle {handle[:200]!r} is not valid.")
        self._queue.delete(int(match[2]))


class _Given:
    """The parameters of a call, and the inbox's address."""

    def __init__(self, body: bytes, url: str) -> None:
        try:
            given = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            raise SqsRefusal("SerializationException", "The body is not a JSON object.")
        self._given = given
        self.url = url

    def check_queue(self) -> None:
        """Check that the call is about the queue; the host in the queue's URL may be any."""
        _check_name(self.text("QueueUrl").rstrip("/").rpartition("/")[2])

    def text(self, name: str) -> str:
        """Return a required text."""
        value = self._given.get(name)
        if isinstance(value, str) and value:
            return value
        raise SqsRefusal("MissingParameter", f"The request must contain the parameter {name}.")

    def texts(self, name: str) -> list[str]:
        """Return an optional list of texts."""
        value = self._given.get(name) or []
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return value
        raise SqsRefusal("InvalidParameterValue", f"{name} must be a list of texts.")

    def objects(self, name: str) -> list[dict[str, Any]]:
        """Return an optional list of objects."""
        value = self._given.get(name) or []
        if isinstance(value, list) and all(isinstance(each, dict) for each in value):
            return value
        raise SqsRefusal("InvalidParameterValue", f"{name} must be a list of objects.")

    def whole(self, name: str, otherwise: int, most: int, *, least: int = 0) -> int:
        """Return an optional whole number."""
        value = self._given.get(name)
        if value is None:
            return otherwise
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise SqsRefusal(
            "InvalidParameterValue",
            f"Value {str(value)[:40]} for parameter {name} is invalid."
            f" Reason: Must be between {least} and {most}.",
        )


def _check_name(name: str) -> None:
    if name != NAME:
        raise SqsRefusal("QueueDoesNotExist", f"The inbox has one queue, {NAME}, and no queue {name[:80]!r}.")


def _id(message: Message) -> str:
    return str(uuid.UUID(int=message.number))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _json(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content).encode(), media_type=JSON_TYPE)


def _error(refusal: SqsRefusal) -> Response:
    code = QUERY_CODES.get(refusal.code, refusal.code)
    content = {"__type": f"com.amazonaws.sqs#{refusal.code}", "message": refusal.message}
    headers = {"x-amzn-query-error": f"{code};Sender"}
    return Response(json.dumps(content).encode(), 400, headers, media_type=JSON_TYPE)
