"""Makes a client's calls for about half of what they cost.

botocore prepares the first call of an operation: where it goes, its headers, how it is signed. Those after it
repeat that with a body and a signature of their own, over botocore's connections. What is left out is the
same for each call: hooks, the rules for the endpoint, the check of parameters that our own code made.
botocore's parser reads the answers that are no plain JSON, and all that tell of an error.

See https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import string
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

from botocore import parsers, serialize, xform_name
from botocore.awsrequest import AWSPreparedRequest, HeadersDict
from botocore.credentials import ReadOnlyCredentials
from botocore.endpoint import convert_to_response_dict
from botocore.utils import normalize_url_path

from mailroom.transports.aws_client import Client

ALGORITHM: Final = "AWS4-HMAC-SHA256"
TIME_HEADER: Final = "X-Amz-Date"
SESSION_HEADER: Final = "X-Amz-Security-Token"
# Headers of one call: made anew, or left out.
_OF_ONE_CALL: Final = {
    "authorization",
    "content-length",
    "x-amz-date",
    "x-amz-security-token",
    "amz-sdk-invocation-id",
    "amz-sdk-request",
}
_AUTHORIZATION: Final = re.compile(
    rf"{ALGORITHM} Credential=[^/]+/\d+/(?P<scope>[^,]+), SignedHeaders=(?P<signed>[^,]+), Signature=\w+"
)
# What a form leaves as it is, and two bytes that are in no text, for the time being in place of = and &.
_EQUALS, _AND = b"\xff", b"\xfe"
_PLAIN: Final = (string.ascii_letters + string.digits + "_.-~").encode() + _EQUALS + _AND
_DEFAULT_PORT: Final = re.compile(r"(?<=^http://).*(?=:80$)|(?<=^https://).*(?=:443$)")

SeeReply = Callable[[dict[str, Any]], None]


class _Prepared(NamedTuple):
    """How botocore prepared an operation's call, as far as it is the same for each.

    Attributes:
        path: as it is signed.
        signed: the headers among those that are signed, by their small names.
        scope: region, service and the end of the signature's scope.
    """

    url: str
    path: str
    headers: Mapping[str, str]
    signed: Mapping[str, str]
    scope: str


class AwsCalls:
    """Makes the calls of one client. Several threads may use it.

    Args:
        client: the client.
        see_reply: is called with each answer before it is parsed.
    """

    def __init__(self, client: Client, see_reply: SeeReply | None = None) -> None:
        self._client = client
        self._see_reply = see_reply
        self._model: Any = client.meta.service_model
        protocol = self._model.resolved_protocol
        self._is_json = protocol in {"json", "rest-json"}
        self._serializer: Any = serialize.create_serializer(protocol, include_validation=False)
        self._parser: Any = parsers.create_parser(protocol)
        self._prepared: dict[str, _Prepared] = {}
        service = self._model.service_id.hyphenize()
        self._event = f"{{}}.{service}.{{}}".format
        client.meta.events.register(f"before-send.{service}", self._learn)
        if see_reply:
            client.meta.events.register(
                f"before-parse.{service}", lambda response_dict, **_: see_reply(response_dict)
            )

    def call(
        self, credentials: ReadOnlyCredentials, operation: str, parameters: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Make one call.

        Args:
            credentials: what it is signed with.
            operation: its name at AWS, of an operation whose parameters are all in the body. In JSON, they
                and the answer are texts and numbers: no times, no bytes.
            parameters: as for the client's method; they are not checked.

        Returns:
            What the client's method returns; perhaps without ``ResponseMetadata``.

        Raises:
            Exception: what the client's method raises.
        """
        prepared = self._prepared.get(operation)
        if prepared is None:
            first: Mapping[str, Any] = getattr(self._client, xform_name(operation))(**parameters)
            return first
        model = self._model.operation_model(operation)
        if self._is_json:
            body = json.dumps(parameters).encode()
        else:
            body = form(self._serializer.serialize_to_request(parameters, model)["body"])
        headers: Any = HeadersDict(_signed(prepared, body, credentials))
        request: Any = AWSPreparedRequest("POST", prepared.url, headers, body, stream_output=False)
        http = self._client._endpoint.http_session.send(request)
        reply = convert_to_response_dict(http, model)
        if self._see_reply:
            self._see_reply(reply)
        if http.status_code < 300 and self._is_json and (answer := _json_object(reply["body"])) is not None:
            return answer
        parsed: dict[str, Any] = self._parser.parse(reply, model.output_shape)
        if http.status_code < 300:
            return parsed
        name = self._event("after-call", operation)
        self._client.meta.events.emit(name, http_response=http, parsed=parsed, model=model, context={})
        fault = parsed.get("Error", {})
        error = self._client.exceptions.from_code(fault.get("QueryErrorCode") or fault.get("Code"))
        raise error(parsed, operation)

    def _learn(self, request: AWSPreparedRequest, event_name: str, **_: object) -> None:
        """Keep how a call was prepared, if it is signed in the usual way."""
        headers = {name: _text(value) for name, value in request.headers.items()}
        found = _AUTHORIZATION.fullmatch(headers.get("Authorization", ""))
        url = urlsplit(request.url)
        if not found or url.query or request.method != "POST" or "X-Amz-Content-SHA256" in request.headers:
            return
        without_port = _DEFAULT_PORT.search(f"{url.scheme}://{url.netloc.lower()}")
        values = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
        values["host"] = without_port[0] if without_port else url.netloc.lower()
        self._prepared[event_name.rpartition(".")[2]] = _Prepared(
            request.url,
            quote(normalize_url_path(url.path), safe="/~"),
            {name: value for name, value in headers.items() if name.lower() not in _OF_ONE_CALL},
            {name: values[name] for name in found["signed"].split(";") if name not in _OF_ONE_CALL},
            found["scope"],
        )


def form(fields: Mapping[str, object]) -> bytes:
    """The fields of a form, as ``urlencode`` writes them, which takes a long body byte by byte."""
    text = _AND.join([f"{name}".encode() + _EQUALS + f"{value}".encode() for name, value in fields.items()])
    # "%" first, since others become one, and " " last, since it becomes "+".
    for byte in sorted(
        set(text.translate(None, _PLAIN)), key=lambda byte: (byte != ord("%"), byte == ord(" "))
    ):
        text = text.replace(bytes([byte]), b"+" if byte == ord(" ") else b"%%%02X" % byte)
    return text.replace(_EQUALS, b"=").replace(_AND, b"&")


def _json_object(body: bytes) -> dict[str, Any] | None:
    """The object in an answer; None if it is another's answer."""
    with suppress(ValueError, RecursionError):
        if isinstance(found := json.loads(body), dict):
            return found
    return None


def _signed(prepared: _Prepared, body: bytes, credentials: ReadOnlyCredentials) -> dict[str, str]:
    """The headers of a call, with its signature."""
    time = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    own = {TIME_HEADER: time} | ({SESSION_HEADER: credentials.token} if credentials.token else {})
    signed = sorted([*prepared.signed.items(), *((name.lower(), value) for name, value in own.items())])
    canonical = "".join(f"{name}:{value}\n" for name, value in signed)
    listed = ";".join(name for name, _ in signed)
    request = f"POST\n{prepared.path}\n\n{canonical}\n{listed}\n{hashlib.sha256(body).hexdigest()}"
    scope = f"{time[:8]}/{prepared.scope}"
    text = f"{ALGORITHM}\n{time}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    signature = hmac.digest(_signing_key(credentials.secret_key, scope), text.encode(), "sha256").hex()
    signer = f"Credential={credentials.access_key}/{scope}"
    return {
        **prepared.headers,
        **own,
        "Authorization": f"{ALGORITHM} {signer}, SignedHeaders={listed}, Signature={signature}",
        "Content-Length": str(len(body)),
    }


@lru_cache(maxsize=8)
def _signing_key(secret: str, scope: str) -> bytes:
    """The key of a day, a region and a service."""
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
