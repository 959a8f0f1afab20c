"""Opens botocore's clients for SES and SQS, and explains their exceptions."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar

import botocore.session
from botocore import exceptions as aws
from botocore.config import Config
from botocore.parsers import ResponseParserError
from botocore.session import Session

from mailroom.errors import TransportError
from mailroom.transports.aws_data import lighten
from mailroom.transports.ses_answers import CODES, THROTTLED
from mailroom.transports.transport import CONNECT_TIMEOUT_S

Value = TypeVar("Value")
Client = Any
"""botocore's client for a service; its methods are generated at run time."""

Service = Literal["SES", "SESV2", "SQS"]  # as in the names of AWS's variables
_NAMES: Final = {"SES": "ses", "SESV2": "sesv2", "SQS": "sqs"}

# What botocore raises for a call. The last is not a BotoCoreError, and its text quotes the answer.
ERRORS: Final = (aws.ClientError, aws.BotoCoreError, ResponseParserError)
DENIED: Final = ("AccessDenied", "AccessDeniedException", "NotAuthorized")
# SES on GetTemplate and others: "You can execute this operation no more than once per second".
PAUSE_S: Final = 1.1

# The user, and a password, in URLs and in mail addresses.
_USER_INFO: Final = re.compile(r"\S+@")


def open_client(
    service: Service = "SES",
    *,
    answer_timeout_ms: int,
    connections: int,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    session: Session | None = None,
    region: str | None = None,
    endpoint_url: str | None = None,
) -> Client:
    """A client that makes one attempt a call; it does not contact AWS yet.

    Args:
        service: which service.
        answer_timeout_ms: after how many milliseconds of silence a call fails.
        connections: how many calls may be under way.
        connect_timeout_s: the time limit for an attempt to connect.
        session: with the credentials; by default a new one.
        region: by default the region of the machine's AWS settings.
        endpoint_url: by default that of the machine's AWS settings, or AWS's own.

    Raises:
        TransportError: botocore's configuration is incomplete.
    """
    session = session or botocore.session.get_session()
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=connect_timeout_s,
        read_timeout=answer_timeout_ms / 1000,
        max_pool_connections=connections,
        tcp_keepalive=True,
        user_agent_extra="mailroom",
    )
    try:
        # Containers and functions of AWS get this variable; botocore reads only AWS_DEFAULT_REGION.
        region = region or session.get_config_variable("region") or os.environ.get("AWS_REGION")
        lighten(session)
        return session.create_client(
            _NAMES[service], region_name=region, endpoint_url=endpoint_url, config=config
        )
    except (aws.BotoCoreError, aws.ClientError, ValueError, OSError) as error:  # some are of the credentials
        raise explain(error, service) from error


def asked(call: Callable[[], Value]) -> Value:
    """What a call to SES returns; a throttled call is made once more.

    Raises:
        Exception: one of ``ERRORS``.
    """
    try:
        return call()
    except aws.ClientError as error:
        if CODES.get(code_of(error)) != THROTTLED:
            raise
    time.sleep(PAUSE_S)
    return call()


def explain(error: Exception, service: Service = "SES") -> TransportError:
    """The error to end with, for an exception of botocore in a call that sends no mail."""
    text, variable = " ".join(str(error).split()), f"AWS_ENDPOINT_URL_{service}"
    name = "SES" if service == "SESV2" else service
    match error:
        case aws.NoRegionError():
            hint = "set AWS_DEFAULT_REGION, or a region in the profile"
        case aws.NoCredentialsError() | aws.PartialCredentialsError():
            hint = (
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role"
            )
        case aws.EndpointConnectionError() | aws.ConnectTimeoutError() | aws.ReadTimeoutError():
            hint = f"check that this machine reaches {name}, and that {variable} is right"
        case aws.ClientError():
            hint = "check the account, the region and the role's policy"
        case ResponseParserError():
            text = f"the answer cannot be read, so it is not from {name}"
            hint = f"check {variable}, and whether a proxy (HTTPS_PROXY) changes answers"
        case _:
            hint = "check this machine's AWS settings: variables, profile, role"
    return TransportError(_USER_INFO.sub("…@", f"{name}: {text}"), hint=hint)


def code_of(error: Exception) -> str:
    """The error code in the service's answer; empty for any other exception."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, aws.ClientError) else ""


def name_of(error: Exception) -> str:
    """The error code in the service's answer, or the exception's name; both can be logged safely."""
    return code_of(error) or type(error).__name__
