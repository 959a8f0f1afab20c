"""A queue of events to read in tests, and an SQS that answers as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from support.inbox import sns_client, sqs_client

NAME: Final = "mailroom-events"
REFUSALS: Final = {
    "throttled": ("ThrottlingException", "RequestThrottled", "Rate exceeded"),
    "no queue": (
        "QueueDoesNotExist",
        "AWS.SimpleQueueService.NonExistentQueue",
        "The specified queue does not exist.",
    ),
    "no right": (
        "AccessDeniedException",
        "AccessDenied",
        "User: arn:aws:iam::123456789012:user/w is not authorized to perform: sqs:receivemessage",
    ),
    "away": ("InternalFailure", "InternalFailure", "We have a problem"),
}


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that left, which may be when the next test watches standard error."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


class ScriptedSqs:
    """An SQS with one queue, whose messages come again until they are deleted.

    Attributes:
        url: where it listens.
        refuses: by the name of an operation, which of ``REFUSALS`` it answers, or ``garbage``.
        delays: by the name of an operation, for how many seconds its answers are kept back at most: they are
            sent when the operation is taken out.
        calls: the operations in the order of the calls.
    """

    def __init__(self) -> None:
        self.refuses: dict[str, str] = {}
        self.delays: dict[str, float] = {}
        self.calls: list[str] = []
        self._changed = threading.Condition()
        self._messages: dict[str, tuple[str, bool]] = {}
        self._sent = 0
        self._server = QuietServer(("127.0.0.1", 0), _handler(self._answer))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()

    def send(self, *texts: str) -> None:
        with self._changed:
            for text in texts:
                self._sent += 1
                self._messages[str(self._sent)] = (text, False)
            self._changed.notify_all()

    def show_again(self) -> None:
        """End the visibility timeout of what was received and not deleted."""
        with self._changed:
            self._messages = {handle: (text, False) for handle, (text, _) in self._messages.items()}
            self._changed.notify_all()

    def hurry(self) -> None:
        """Keep no answers back any more."""
        with self._changed:
            self.delays = {}
            self._changed.notify_all()

    def left(self) -> int:
        """How many messages were not deleted."""
        return len(self._messages)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, operation: str, given: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        self.calls.append(operation)
        refusal = self.refuses.get(operation)
        if refusal == "garbage":
            return 200, {}, b"<html>proxy</html>"
        if refusal:
            code, query_code, words = REFUSALS[refusal]
            headers = {"x-amzn-query-error": f"{query_code};Sender"}
            body = {"__type": f"com.amazonaws.sqs#{code}", "message": words}
            return 500 if refusal == "away" else 400, headers, json.dumps(body).encode()
        answer = json.dumps(getattr(self, f"_{operation}")(given)).encode()
        with self._changed:
            self._changed.wait_for(lambda: operation not in self.delays, self.delays.get(operation, 0))
        return 200, {}, answer

    def _GetQueueUrl(self, given: dict[str, Any]) -> Any:  # noqa: N802 - SQS's names
        return {"QueueUrl": f"{self.url}/123456789012/{given['QueueName']}"}

    def _GetQueueAttributes(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"Attributes": {name: str(self.left()) for name in given["AttributeNames"]}}

    def _ReceiveMessage(self, given: dict[str, Any]) -> Any:  # noqa: N802
        def visible() -> list[str]:
            return [handle for handle, (_, is_taken) in self._messages.items() if not is_taken]

        with self._changed:
            self._changed.wait_for(visible, given["WaitTimeSeconds"])
            taken = visible()[: given["MaxNumberOfMessages"]]
            for handle in taken:
                self._messages[handle] = (self._messages[handle][0], True)
            return {
                "Messages": [
                    {"MessageId": handle, "ReceiptHandle": handle, "Body": self._messages[handle][0]}
                    for handle in taken
                ]
            }

    def _DeleteMessageBatch(self, given: dict[str, Any]) -> Any:  # noqa: N802
        with self._changed:
            for entry in given["Entries"]:
                self._messages.pop(entry["ReceiptHandle"], None)
        return {"Successful": [{"Id": entry["Id"]} for entry in given["Entries"]], "Failed": []}


@contextmanager
def scripted_sqs() -> Iterator[ScriptedSqs]:
    sqs = ScriptedSqs()
    try:
        yield sqs
    finally:
        sqs.close()


class MotoQueue:
    """The queue at moto's server, with topics of its SNS that send to it, raw and wrapped."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._sqs, self._sns = sqs_client(url), sns_client(url)
        self.queue_url: str = self._sqs.create_queue(QueueName=NAME)["QueueUrl"]
        names = ["QueueArn"]
        arn = self._sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=names)["Attributes"]
        self._topics = {}
        for is_raw in ("true", "false"):
            topic = self._sns.create_topic(Name=f"mail-{is_raw}")["TopicArn"]
            self._sns.subscribe(
                TopicArn=topic,
                Protocol="sqs",
                Endpoint=arn["QueueArn"],
                Attributes={"RawMessageDelivery": is_raw},
            )
            self._topics[is_raw] = topic

    def publish(self, text: str, *, raw: bool) -> None:
        self._sns.publish(TopicArn=self._topics["true" if raw else "false"], Message=text)

    def send(self, text: str) -> None:
        self._sqs.send_message(QueueUrl=self.queue_url, MessageBody=text)

    def left(self) -> int:
        """How many messages were not deleted."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self._sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=names)
        return sum(map(int, found["Attributes"].values()))


def _handler(answer: Callable[[str, dict[str, Any]], tuple[int, dict[str, str], bytes]]) -> Any:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, body = answer(self.headers["X-Amz-Target"].rpartition(".")[2], given)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
